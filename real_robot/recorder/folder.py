"""The folder of a recording: one folder per episode.

    OUT/episode_0000/log         see ``real_robot.recorder.log``
                     meta.json   replaced whole whenever it changes
                     done        empty; there once the episode has ended
    OUT/discarded/episode_0001   as above; ``restore`` brings it back

meta.json: name, status (recording, finished), session, date, start and end (ns), realtime (ns of the date at start),
label (success, failure or null), truncated (why, or null), discard, handled (how far the wishes were read, by ring),
streams (tallies), late (s after start from which a ring can tell), info (what the recorder was given: robot, cameras).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import ConfigError, DataError, nearest
from real_robot.core.types import SECOND
from real_robot.recorder.log import Log, LogWriter, tallies

LABELS = ("success", "failure")
GROUPS = ("success", "unlabelled", "failure", "truncated")  # what an episode is, see ``group``
_NAME = re.compile(r"episode_(\d{4,})")
_DRAFT = ".draft-"
DISCARDED = "discarded"


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Replaces meta.json: there is always the old one or the new one, also after a power cut."""
    draft = folder / ".meta.json"
    with open(draft, "w") as f:
        json.dump(meta, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    os.replace(draft, folder / "meta.json")


def read_meta(folder: Path) -> dict[str, Any]:
    """Raises DataError where there is none, or none that can be read."""
    try:
        return json.loads((folder / "meta.json").read_text())
    except FileNotFoundError:
        raise DataError(f"{folder} is not an episode: it has no meta.json.") from None
    except ValueError as e:
        raise DataError(f"{folder}/meta.json is not JSON ({e}).") from None


def update_meta(folder: Path, **values: Any) -> dict[str, Any]:
    """Some values anew; returns all."""
    meta = read_meta(folder) | values
    write_meta(folder, meta)
    return meta


def number(folder: Path) -> int:
    """Of an episode's folder, by its name."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise DataError(f"{folder} is not the folder of an episode (episode_0000).")
    return int(match[1])


def episodes(out: str | Path, *, discarded: bool = False) -> list[Path]:
    """Folders of all episodes, finished or not, in order; or of those that were discarded."""
    root = Path(out) / DISCARDED if discarded else Path(out)
    if not root.exists():
        return []
    return sorted((p for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()), key=number)


def find(out: str | Path, n: int, *, discarded: bool = False) -> Path:
    """Folder of episode ``n``. Raises DataError, telling which there are."""
    known = {number(p): p for p in episodes(out, discarded=discarded)}
    if n not in known:
        where = f"{out}/{DISCARDED}" if discarded else str(out)
        there = f"{min(known)} to {max(known)}, {len(known)} in all" if known else "none at all"
        raise DataError(f"{where} has no episode {n}: there are {there}.")
    return known[n]


def is_done(folder: Path) -> bool:
    """Whether the episode has ended."""
    return (folder / "done").exists()


def begin(out: Path, meta: dict[str, Any]) -> Path:
    """A new episode's folder, with its meta.json; it appears in one step."""
    used = [number(p) for d in (False, True) for p in episodes(out, discarded=d)]
    name = f"episode_{max(used, default=-1) + 1:04d}"
    draft = out / f"{_DRAFT}{name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    write_meta(draft, {"name": name, "status": "recording", **meta})
    os.rename(draft, out / name)
    return out / name


def finish(folder: Path, meta: dict[str, Any]) -> None:
    """The episode has ended; its log is complete. May be repeated."""
    write_meta(folder, {**meta, "status": "finished"})
    (folder / "done").touch()


def set_label(folder: Path, label: str | None, **values: Any) -> None:
    """success, failure, or None: unlabelled. Raises ConfigError for another word."""
    if label is not None and label not in LABELS:
        raise ConfigError(f"An episode is labelled {' or '.join(LABELS)}, or none, not '{label}'.")
    update_meta(folder, label=label, **values)


def discard(folder: Path, **values: Any) -> Path:
    """Out of the way, not deleted; returns where it lies now."""
    update_meta(folder, discard=True, **values)
    return _put_away(folder)


def _put_away(folder: Path) -> Path:
    target = folder.parent / DISCARDED / folder.name
    target.parent.mkdir(exist_ok=True)
    os.rename(folder, target)
    return target


def restore(folder: Path) -> Path:
    """Inverse of ``discard``."""
    target = folder.parent.parent / folder.name
    if target.exists():
        raise DataError(f"{target} exists already; {folder} stays where it is.")
    # Said first: an episode that lies beside the others and says "discard" is put away by the next recorder.
    update_meta(folder, discard=False)
    os.rename(folder, target)
    return target


def group(meta: dict[str, Any]) -> str:
    """success or failure where it is labelled, else truncated where it is cut off, else unlabelled."""
    return meta["label"] or ("truncated" if meta["truncated"] else "unlabelled")


def check_groups(wanted: Sequence[str]) -> None:
    """Raises ConfigError for a word that is none of GROUPS."""
    for word in wanted:
        if word not in GROUPS:
            raise ConfigError(f"Episodes cannot be chosen by '{word}'. {nearest(word, list(GROUPS))}")


def clean(out: Path) -> list[Path]:
    """Puts right what a killed recorder left between two steps; returns the episodes that have not ended."""
    for draft in out.glob(f"{_DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True)
    for folder in episodes(out):
        if is_done(folder) and read_meta(folder)["discard"]:
            _put_away(folder)
    return [folder for folder in episodes(out) if not is_done(folder)]


def recover(folder: Path, why: str, **values: Any) -> dict[str, Any]:
    """Ends an episode that nobody goes on with: what is whole in its log is kept, and it is marked truncated.

    Args:
        folder: of the episode.
        why: it is truncated.
        values: of its meta, to be changed.

    Returns:
        Its meta.
    """
    end, streams = None, {}
    if (folder / "log").exists():
        LogWriter(folder / "log").close()  # cuts off what is not whole
        found = Log(folder / "log").streams.values()
        end, streams = max((s.t_last for s in found if s.records), default=None), tallies(found)
    meta = read_meta(folder) | values
    meta |= {"truncated": meta["truncated"] or why, "end": meta["end"] or end or meta["start"], "streams": streams}
    finish(folder, meta)
    return meta


def seconds(meta: dict[str, Any]) -> float:
    """Length of an episode; 0 while it goes on."""
    return (meta["end"] - meta["start"]) / SECOND if meta["end"] else 0.0
