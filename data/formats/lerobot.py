"""LeRobot's data sets (v2.0, v2.1, v3.0), read in place, without lerobot: parquet with video or pictures.

    observation.images.<camera>       -> rgb_<camera>; observation.image -> rgb
    observation.<key>                 -> <key>, dots as underscores: "observation.state" is "state"
    action                            -> action
    next.reward, next.done, next.success -> reward, done, success
    timestamp, task_index             -> extras of the same name; the tasks' texts are attrs["tasks"]
    anything else                     -> an extra of the same name; texts are not shown

``frame_index``, ``episode_index`` and ``index`` follow from the episodes. The rate is ``fps``. ``splits`` that do not
hold every episode are masks. What the format does not say is as ``data.guess`` has it. Data sets that Deft wrote also
hold our own metadata (``deft`` in info.json).

Read with pyarrow and PyAV (extra "lerobot").
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from data import checks
from data.errors import DataError
from data.formats.lerobot_meta import INFO, Feature, Outline, read_outline
from data.formats.parquet_rows import ColumnRows, PictureRows
from data.formats.video_rows import VideoRows
from data.guess import guess_task
from data.source import Episodes, Rows

OURS = "deft"
RENAMED = {"next.reward": "reward", "next.done": "done", "next.success": "success"}
COUNTED = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_SCALARS = (*COUNTED, *RENAMED)
_NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


def is_lerobot(path: Path) -> bool:
    """A folder with meta/info.json."""
    return (path / INFO).is_file()


class LeRobotEpisodes(Episodes):
    """A folder; see the module."""

    format = "lerobot"

    def __init__(self, path: Path) -> None:
        self.path = path
        outline = read_outline(path)
        self.episode_ends = outline.ends
        ours = outline.info.get(OURS)
        ours = ours if isinstance(ours, dict) else {}
        self._check_order(outline)
        self._arrays: dict[str, Rows] = {}
        observed = []
        derived = ours.get("derived", ())  # what LeRobot wants and the source did not have
        features = {n: f for n, f in outline.features.items() if n not in derived}
        for name, key in _shown(features, ours.get("names")).items():
            rows = self._rows(outline, outline.features[name], key, ours)
            if rows is not None:
                self._arrays[key] = rows
                observed += [key] if name.startswith("observation.") else []
        self._episode_meta = {**self._splits(outline), **outline.numbers}
        if ours:
            self._read_ours(ours)
            return
        robot = outline.info.get("robot_type")
        self.attrs = {"tasks": outline.tasks, **({"robot_type": robot} if isinstance(robot, str) else {})}
        self.task = guess_task(
            self,
            f"lerobot/{path.resolve().name}",
            extras=[k for k in self._arrays if k not in observed],
            control_hz=outline.fps,
        )

    def _check_order(self, outline: Outline) -> None:
        """Also keeps ``self._stamps``: (n_steps,) seconds of each row in its episode."""
        for name in ("episode_index", "timestamp"):
            if name not in outline.features:
                raise DataError(f"{self.path / INFO}: features has no '{name}', only {sorted(outline.features)}.")

        def column(name: str, dtype: type) -> np.ndarray:
            rows = ColumnRows(outline.files, outline.file_ends, name, (), np.dtype(dtype))
            return np.concatenate([rows.read(a, b) for a, b, _ in rows.blocks(0, len(rows))])

        changes = np.flatnonzero(np.diff(column("episode_index", np.int64))) + 1  # v2's numbers may have gaps
        if not np.array_equal(changes, outline.ends[:-1]):
            raise DataError(
                f"{outline.files[0].parent.parent}: column 'episode_index' says that episodes end at rows "
                f"{str(changes.tolist())[:60]}, meta/ says {str(outline.ends[:-1].tolist())[:60]}. The rows and their "
                "episodes do not belong together."
            )
        self._stamps = column("timestamp", np.float64)

    def _rows(self, outline: Outline, feature: Feature, key: str, ours: dict[str, Any]) -> Rows | None:
        if feature.dtype == "string" or (feature.dtype == "video" and feature.name not in outline.videos):
            return None
        if feature.dtype in ("video", "image"):
            shape = self._picture_shape(feature)
            if feature.dtype == "image":
                return PictureRows(outline.files, outline.file_ends, feature.name, shape)
            files, starts = outline.videos[feature.name]
            times = np.repeat(starts, np.diff(outline.ends, prepend=0)) + self._stamps
            return VideoRows(key, files, outline.ends, times, shape, outline.fps)
        if not _NUMBERS.fullmatch(feature.dtype):
            raise DataError(f"{self.path / INFO}: feature '{feature.name}' has an unknown dtype, '{feature.dtype}'.")
        bare = feature.shape == (1,) and (feature.name in _SCALARS or key in ours.get("scalars", ()))
        shape = () if bare else feature.shape
        if feature.name in ("frame_index", "episode_index", "index"):
            return None
        return ColumnRows(outline.files, outline.file_ends, feature.name, shape, np.dtype(feature.dtype))

    def _picture_shape(self, feature: Feature) -> tuple[int, ...]:
        """(H, W, 3), whichever way round info.json has it."""
        shape, names = feature.shape, feature.more.get("names")
        first = names[0] if isinstance(names, list) and len(names) == 3 else None
        if len(shape) == 3 and (first in ("channel", "channels") or (shape[0] == 3 and shape[2] != 3)):
            shape = (*shape[1:], shape[0])
        if len(shape) != 3 or shape[2] != 3:
            raise DataError(f"{self.path / INFO}: pictures '{feature.name}' are {feature.shape}, expected (H, W, 3).")
        return shape

    def _splits(self, outline: Outline) -> dict[str, np.ndarray]:
        out, splits = {}, outline.info.get("splits")
        for name, words in splits.items() if isinstance(splits, dict) else ():
            found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", words) if isinstance(words, str) else None
            if found is None:
                raise DataError(f"{self.path / INFO}: the split '{name}' is {words!r}, expected 'first:end'.")
            number = np.arange(len(outline.ends))
            chosen = (number >= int(found[1])) & (number < int(found[2]))
            if not chosen.all():
                out[f"mask_{name}"] = chosen
        return out

    def _read_ours(self, ours: dict[str, Any]) -> None:
        self.task = checks.read_task(self.path, ours)
        skip = ("task", "names", "scalars", "derived")
        self.attrs = {k: v for k, v in ours.items() if k not in skip}
        if self.task is not None:
            checks.check_arrays(self.path, self.task, self._outline())


def _shown(features: dict[str, Feature], ours: Any) -> dict[str, str]:
    """{feature: key}; the second of two that would have one key is shown under its whole name."""
    out: dict[str, str] = {}
    for name, feature in features.items():
        key = ours.get(name) if isinstance(ours, dict) else _key(name, feature)
        key = key if isinstance(key, str) and key and "/" not in key else name
        out[name] = name if key in out.values() or (key != name and key in features) else key
    return out


def _key(name: str, feature: Feature) -> str:
    bare = name.removeprefix("observation.")
    if bare == name:
        return RENAMED.get(name, name)
    if feature.dtype in ("video", "image"):
        head, dot, camera = bare.partition(".")
        if head in ("image", "images"):
            bare = f"rgb_{camera}" if dot else "rgb"
    return bare.replace(".", "_")  # a network's parts cannot have dots in their names
