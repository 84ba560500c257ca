"""Data sets of any format as another one; filter and merge on the way. See ``--help``."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.command import READING, READING_HELP, Bar, options, run_command
from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError, nearest
from data.formats.lerobot_write import DEFAULTS, LeRobotOptions, write_lerobot
from data.formats.robomimic_write import write_robomimic
from data.merged import Merged
from data.opening import open_with
from data.source import Episodes
from data.selection import View
from data.zarr_write import file_lock

FORMATS = ("deft", "dp", "robomimic", "lerobot")
USAGE = f"""python -m data.convert SRC [SRC ...] out=DST [format=deft|dp|robomimic|lerobot] [key=value ...]

Copies data sets of any format, one after the other, into a new one. The result appears under its name when it is
complete; a conversion that was interrupted leaves nothing there, and starts anew when it is called again.

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
{READING_HELP}"""


def convert(
    source: Episodes,
    out: Path,
    format: str,
    progress: Callable[[int], None] = lambda done: None,
    lerobot: LeRobotOptions = DEFAULTS,
) -> None:
    """Writes ``source`` to ``out``, which appears there complete or not at all.

    Raises:
        DataError: something is at ``out`` already, or ``source`` cannot be read or does not fit the format.
    """
    if format not in FORMATS:
        raise ConfigError(f"Unknown format '{format}'. {nearest(format, list(FORMATS))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, lock = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.lock")
    with file_lock(lock):
        if out.exists():
            raise DataError(f"{out} exists already; choose another path.")
        _remove(draft)  # of a conversion that was killed
        try:
            if format == "robomimic":
                write_robomimic(source, draft, progress)
            elif format == "lerobot":
                write_lerobot(source, draft, progress, lerobot)
            else:
                _write_store(source, draft, progress)
                if out.suffix == ".zip":
                    draft = _zipped(draft)
            os.rename(draft, out)
        except BaseException:
            _remove(draft)
            raise
        finally:
            lock.unlink(missing_ok=True)


def _write_store(source: Episodes, path: Path, progress: Callable[[int], None]) -> None:
    if source.task is None:
        raise DataError(f"{source.path} has no 'action', only {source.keys}; say which it is: keys={{action: KEY}}.")
    attrs = {k: v for k, v in source.attrs.items() if k != "schema_version"}
    store = EpisodeStore.create(path, source.task, attrs)
    for i in range(source.n_episodes):
        store.append(source.episode(i), {n: source.episode_meta(n)[i] for n in source.episode_meta_names})
        progress(i + 1)
    (path / ".lock").unlink(missing_ok=True)


def _zipped(folder: Path) -> Path:
    """The store as a zip file; chunks are compressed already, so it only stores them."""
    path = folder.with_name(folder.name + ".zip")
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as z:
            for file in sorted(f for f in folder.rglob("*") if f.is_file()):
                z.write(file, file.relative_to(folder).as_posix())
    except BaseException:
        path.unlink(missing_ok=True)
        _remove(folder)
        raise
    _remove(folder)
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


def _format_of(out: Path, given: str | None) -> str:
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
        **READING,
    }
    given = options([w for w in argv if "=" in w], defaults)
    if not paths or not isinstance(given["out"], str):
        raise ConfigError("What into what? python -m data.convert SRC out=DST")
    sources = [open_with(path, given) for path in paths]
    source = sources[0] if len(sources) == 1 else Merged(sources)
    if given["episodes"] is not None:
        source = View(source, episodes=_numbers(str(given["episodes"])))
    out, lerobot = Path(given["out"]), LeRobotOptions(given["version"], given["pictures"])
    for part, path in _parts(source, out, given["split"], given["seed"]):
        bar = Bar(f"writing {path}", part.n_episodes)
        convert(part, path, _format_of(path, given["format"]), bar.update, lerobot)
    return 0


if __name__ == "__main__":
    run_command(main, USAGE)
