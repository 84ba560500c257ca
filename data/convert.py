"""Data sets of any format as another one; filter and merge on the way. See ``--help``."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from data import journal
from data.ahead import Ahead
from data.command import READING, READING_HELP, Bar, options, run_command
from data.cores import n_cores
from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError, DeftError, nearest
from data.formats.lerobot_write import DEFAULTS, LeRobotOptions, write_lerobot
from data.formats.robomimic_write import write_robomimic
from data.merged import Merged
from data.opening import open_with
from data.selection import View
from data.source import Episodes
from data.zarr_write import file_lock

FORMATS = ("deft", "dp", "robomimic", "lerobot")
USAGE = f"""python -m data.convert SRC [SRC ...] out=DST [format=deft|dp|robomimic|lerobot] [key=value ...]

Copies data sets of any format, one after the other, into a new one. The result appears under its name when it is
complete. To deft and dp, an interrupted conversion goes on where it was when the same is asked again, and is refused
where the source or an option has changed; to robomimic and lerobot it starts anew.

Options (key=value):
  out            the new data set; must not exist
  format: null   null: by the name: .hdf5, .h5: robomimic; .zip: dp; else deft
                   deft        zarr v2 directory in Diffusion Policy's layout, with our metadata
                   dp          the same, and a zip file of it where the name ends in .zip: replay_buffer.zarr.zip
                   robomimic   HDF5, as robomimic's SequenceDataset reads it
                   lerobot     a folder, as LeRobotDataset reads it
  version: v3.0  of LeRobot's layout: v3.0, v2.1
  pictures: h264 in LeRobot's layout: h264 or av1 video, or png (lossless, in the parquet files)
  episodes: null some only, by their numbers in SRC: 0-9,12
  split: null    0.1: two data sets, DST-train and DST-valid (before the suffix), a tenth of the episodes in the latter
  seed: 0        of the split
  workers: null  threads that decode the episodes that come next while one is written; null: as many as cores
  anew: false    give up what an interrupted conversion has left
{READING_HELP}"""


RESUMABLE = ("deft", "dp")


def convert(
    source: Episodes,
    out: Path,
    format: str,
    progress: Callable[[int], None] = lambda done: None,
    lerobot: LeRobotOptions = DEFAULTS,
    *,
    workers: int = 1,
    anew: bool = False,
    resumed: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes ``source`` to ``out``, which appears there complete or not at all.

    Args:
        source: read in order, once.
        out: must not exist.
        format: one of ``FORMATS``.
        progress: called with the number of episodes that are written.
        lerobot: options of that format.
        workers: threads that decode ahead; 1: none.
        anew: forget what an interrupted conversion has left.
        resumed: called with the number of episodes that are there already, where it goes on.

    Raises:
        DataError: something is at ``out`` already, ``source`` cannot be read or does not fit the format, or what is
            there was begun from another source or with other options.
    """
    if format not in FORMATS:
        raise ConfigError(f"Unknown format '{format}'. {nearest(format, list(FORMATS))}")
    if workers < 1:
        raise ConfigError(f"workers={workers} must be at least 1.")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, lock = _beside(out, "partial"), _beside(out, "lock")
    changed: list[str] | None = None
    with file_lock(lock):
        try:
            if out.exists():
                give_up(out)
                raise DataError(f"{out} exists already; choose another path.")
            resumes = format in RESUMABLE
            wanted = journal.request(source, format) if resumes else {}
            changed = journal.changes(_beside(out, "journal"), wanted) if draft.exists() and not anew else None
            if changed and resumes:
                raise DataError(
                    f"{out} is half-written from another source or with other options: {', '.join(changed)} changed. "
                    "Ask as before to go on, or give up what is there with anew=true."
                )
            if changed is None or not resumes:
                give_up(out)
                if resumes:
                    journal.begin(_beside(out, "journal"), wanted)
            with Ahead(source, workers) if workers > 1 else nullcontext(source) as rows:
                _write(rows, draft, format, progress, lerobot, resumed)
            os.rename(zip_store(draft, _beside(out, "partial.zip")) if resumes and out.suffix == ".zip" else draft, out)
            give_up(out)
        except BaseException as e:
            if format not in RESUMABLE or (isinstance(e, DeftError) and not changed):
                give_up(out)
            raise
        finally:
            lock.unlink(missing_ok=True)


def _write(
    rows: Episodes,
    draft: Path,
    format: str,
    progress: Callable[[int], None],
    lerobot: LeRobotOptions,
    resumed: Callable[[int], None],
) -> None:
    if format == "robomimic":
        write_robomimic(rows, draft, progress)
    elif format == "lerobot":
        write_lerobot(rows, draft, progress, lerobot)
    else:
        _write_store(rows, draft, progress, resumed)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}")


def give_up(out: Path) -> None:
    """Removes what an unfinished conversion to ``out`` has left beside it."""
    _remove(_beside(out, "partial"))
    _remove(_beside(out, "partial.zip"))
    _remove(_beside(out, "journal"))


def _write_store(source: Episodes, path: Path, progress: Callable[[int], None], resumed: Callable[[int], None]) -> None:
    if source.task is None:
        raise DataError(f"{source.path} has no 'action', only {source.keys}; say which it is: keys={{action: KEY}}.")
    if path.exists():
        store = EpisodeStore.open(path, "a")  # cuts off the episode that was not finished
        resumed(store.n_episodes)
    else:
        attrs = {k: v for k, v in source.attrs.items() if k != "schema_version"}
        store = EpisodeStore.create(path, source.task, attrs)
    for i in range(store.n_episodes, source.n_episodes):
        store.append(source.episode(i), {n: source.episode_meta(n)[i] for n in source.episode_meta_names})
        progress(i + 1)
    (path / ".lock").unlink(missing_ok=True)


def zip_store(folder: Path, path: Path) -> Path:
    """The store in ``folder`` as a zip file at ``path``; chunks are compressed already, so it only stores them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as z:
        for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name != ".lock"):
            z.write(file, file.relative_to(folder).as_posix())
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _numbers(words: str) -> np.ndarray:
    """ "0-2,5" -> [0, 1, 2, 5]."""
    out: list[int] = []
    for word in words.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"episodes={words}: '{word}' is not the number of an episode (3, or 3-7 for several).")
        out += range(int(first), int(last or first) + 1)
    return np.array(out, np.int64)


def format_of(out: Path, given: str | None) -> str:
    """The format that is ``given``, or that a name like ``out`` stands for."""
    if given is not None:
        return given
    return {".hdf5": "robomimic", ".h5": "robomimic", ".zip": "dp"}.get(out.suffix.lower(), "deft")


def _parts(source: Episodes, out: Path, fraction: float | None, seed: int) -> list[tuple[Episodes, Path]]:
    if fraction is None:
        return [(source, out)]
    if not 0 < fraction < 1 or source.n_episodes < 2:
        raise ConfigError(f"split={fraction} of {source.n_episodes} episodes: give a share in (0, 1), of two or more.")
    order = np.random.default_rng(seed).permutation(source.n_episodes)
    n = min(max(1, round(source.n_episodes * fraction)), source.n_episodes - 1)
    stem, dot, suffix = out.name.partition(".")
    return [
        (View(source, episodes=np.sort(chosen)), out.with_name(f"{stem}-{name}{dot}{suffix}"))
        for name, chosen in (("train", order[n:]), ("valid", order[:n]))
    ]


def _already(parts: list[tuple[Episodes, Path]], given: str | None) -> list[Path]:
    """Of a split that was interrupted, what is complete. Begins the journals of all parts."""
    if len(parts) == 1 or format_of(parts[0][1], given) not in RESUMABLE:
        return []
    wanted = {path: journal.request(part, format_of(path, given)) for part, path in parts}
    there = [path for _, path in parts if path.exists()]
    missing = [path for path in wanted if path not in there]
    if there:
        same = missing and all(journal.changes(_beside(path, "journal"), wanted[path]) == [] for path in missing)
        return there if same else []
    for path in missing:
        if not _beside(path, "partial").exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            journal.begin(_beside(path, "journal"), wanted[path])
    return []


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    paths = [w for w in argv if "=" not in w]
    defaults = {
        "out": None,
        "format": None,
        "episodes": None,
        "split": None,
        "seed": 0,
        "version": "v3.0",
        "pictures": "h264",
        "workers": None,
        "anew": False,
        **READING,
    }
    given = options([w for w in argv if "=" in w], defaults)
    if not paths or not isinstance(given["out"], str):
        raise ConfigError("What into what? python -m data.convert SRC out=DST")
    sources = [open_with(path, given) for path in paths]
    source = sources[0] if len(sources) == 1 else Merged(sources)
    if given["episodes"] is not None:
        source = View(source, episodes=_numbers(str(given["episodes"])))
    out, lerobot, workers = Path(given["out"]), LeRobotOptions(given["version"], given["pictures"]), given["workers"]
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool)):
        raise ConfigError(f"workers={workers} must be a number of threads.")
    parts = _parts(source, out, given["split"], given["seed"])
    done = _already(parts, given["format"])
    for part, path in parts:
        if path in done:
            continue
        bar = Bar(f"writing {path}", part.n_episodes)
        convert(
            part, path, format_of(path, given["format"]), bar.update, lerobot,
            workers=n_cores() if workers is None else workers, anew=given["anew"], resumed=bar.resume,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    run_command(main, USAGE)
