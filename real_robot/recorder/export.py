"""Finished episodes -> the data set that policies are trained on, and films of them for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.episodes import EpisodeStore
from data.errors import DataError
from real_robot.core.types import SECOND
from real_robot.recorder import folder as folders
from real_robot.recorder.episode import Episode
from real_robot.recorder.pictures import fit
from real_robot.recorder.resample import newest
from real_robot.recorder.sampling import Hook, Rule, sample, task_of


@dataclasses.dataclass
class Report:
    """What became of the episodes, by number.

    Attributes:
        added: are in the data set since now.
        before: were already.
        left_out: with the reason: their label, or what is wrong with them.
        changed: are in the data set, though their label would leave them out today.
    """

    added: list[int] = dataclasses.field(default_factory=list)
    before: list[int] = dataclasses.field(default_factory=list)
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)
    changed: list[int] = dataclasses.field(default_factory=list)


def export(
    recording: str | Path,
    path: str | Path,
    rule: Rule,
    *,
    include: Sequence[str] = ("success", "unlabelled"),
    hook: Hook | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Adds the finished episodes of a recording to a data set; those that are in it are not looked at again.

    Args:
        recording: folder that the recorder wrote.
        path: of the data set, new or begun by an earlier export with the same rule.
        rule: see ``Rule``.
        include: groups of episodes: success, unlabelled, failure, truncated (see ``folder.group``).
        hook: makes further observations.
        progress: called with (episodes looked at, all).

    Raises:
        DataError: no finished episode, or the data set was made by another rule.
    """
    folders.check_groups(include)
    found = [f for f in folders.episodes(recording) if folders.is_done(f)]
    if not found:
        raise DataError(f"{recording} holds no finished episode (episode_0000/done).")
    report, store = Report(), _reopen(Path(path), rule)
    there = set(store.episode_meta("recording").tolist()) if store is not None and store.n_episodes else set()
    for i, folder in enumerate(found):
        n, group = folders.number(folder), folders.group(folders.read_meta(folder))
        if n in there:
            report.before.append(n)
            report.changed += [n] if group not in include else []
        elif group not in include:
            report.left_out[n] = group
        else:
            try:
                store = _add(folder, Path(path), store, rule, hook)
                report.added.append(n)
            except DataError as e:
                report.left_out[n] = str(e)
        if progress:
            progress(i + 1, len(found))
    gone = there - {folders.number(f) for f in found}
    report.changed = sorted({*report.changed, *gone})
    return report


def _reopen(path: Path, rule: Rule) -> EpisodeStore | None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    store = EpisodeStore.open(path, mode="a")
    before, now = store.attrs.get("rule"), rule.to_dict()
    if before != now:
        before = before or {}
        told = ", ".join(f"{k}: {before.get(k)!r} there, {v!r} here" for k, v in now.items() if before.get(k) != v)
        raise DataError(f"{path} was exported by another rule ({told}). Choose another path.")
    return store


def _add(folder: Path, path: Path, store: EpisodeStore | None, rule: Rule, hook: Hook | None) -> EpisodeStore:
    episode = Episode(folder)
    if episode.log.lost:
        raise DataError(
            f"{folder}/log is damaged after byte {episode.log.size} ({episode.log.lost} bytes cannot be read)."
        )
    rows = sample(episode, rule, hook)
    if store is None:
        attrs = {"rule": rule.to_dict(), "source": "recording", "info": episode.meta["info"]}
        store = EpisodeStore.create(path, task_of(episode, rule, hook), attrs)
    label = {"success": 1, "failure": 0}.get(episode.meta["label"], -1)
    seed = episode.meta["info"].get("seed")
    number = folders.number(folder)
    store.append(rows, meta={
        "recording": number, "seed": number if seed is None else int(seed), "success": label,
        "seconds": folders.seconds(episode.meta), "realtime": episode.meta["realtime"],
    })  # fmt: skip
    return store


def film(folder: str | Path, path: str | Path, fps: int = 20, height: int = 240) -> Path:
    """An MP4 of an episode, all cameras side by side, at the speed at which it happened.

    Raises:
        DataError: there are no pictures, or the path does not end in .mp4.
    """
    import imageio_ffmpeg

    path, episode = Path(path), Episode(folder)
    if path.suffix != ".mp4":
        raise DataError(f"{path}: films end in .mp4.")
    cameras = [episode.pictures(name) for name in episode.cameras]
    if not cameras:
        raise DataError(f"{folder} has no pictures.")
    sizes = [(height, 2 * round(height * p.shape[1] / p.shape[0] / 2)) for p in cameras]
    start = episode.meta["start"]
    end = episode.meta["end"] or max(int(p.t[-1]) for p in cameras)
    at = start + np.round(np.arange(max(1, int((end - start) / SECOND * fps))) * SECOND / fps).astype(np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(
        str(path), (sum(w for _, w in sizes), height), fps=fps, codec="libx264", quality=7, macro_block_size=2
    )
    writer.send(None)
    try:
        for t in at:
            row = []
            for pictures, size in zip(cameras, sizes, strict=True):
                i = int(newest(pictures.t, np.array([t]))[0])
                row.append(fit(pictures[i], size=size) if i >= 0 else np.zeros((*size, 3), np.uint8))
            writer.send(np.ascontiguousarray(np.concatenate(row, 1)))
    finally:
        writer.close()
    return path
