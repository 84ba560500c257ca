"""Data sets in LeRobot's layout, v3.0 or v2.1, which ``LeRobotDataset`` opens as its own.

Observations are written as ``observation.<key>``, pictures "rgb_<camera>" as ``observation.images.<camera>``, "reward",
"done" and "success" as ``next.<key>``, all else under its name. What LeRobot wants and the source does not have is
derived, and known as such when Deft reads it again: ``timestamp`` is step / fps, and without texts in attrs["tasks"]
the only task is the source's name.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import checks
from data.errors import ConfigError, DataError, nearest
from data.formats.lerobot import COUNTED, OURS, RENAMED
from data.formats.lerobot_files import FilesV2, FilesV3
from data.formats.lerobot_stats import PictureStats, of_numbers
from data.formats.video_write import CODECS
from data.source import Episodes
from data.spec import TaskSpec

WRITERS = {"v3.0": FilesV3, "v2.1": FilesV2}
PICTURES = (*CODECS, "png")
_NEXT = {ours: theirs for theirs, ours in RENAMED.items()}
_COUNTED = {"timestamp": "float32", **dict.fromkeys(COUNTED[1:], "int64")}


@dataclass(frozen=True)
class LeRobotOptions:
    """How a LeRobot data set is written.

    Attributes:
        version: of the layout, "v3.0" or "v2.1".
        pictures: "h264" or "av1" video, or "png": lossless, in the parquet files.
    """

    version: str = "v3.0"
    pictures: str = "h264"

    def __post_init__(self) -> None:
        if self.version not in WRITERS:
            raise ConfigError(f"version={self.version}: LeRobot's layout is written as {' or '.join(WRITERS)}.")
        if self.pictures not in PICTURES:
            raise ConfigError(f"Unknown pictures={self.pictures}. {nearest(self.pictures, list(PICTURES))}")


DEFAULTS = LeRobotOptions()


def write_lerobot(
    source: Episodes,
    path: Path,
    progress: Callable[[int], None] = lambda done: None,
    options: LeRobotOptions = DEFAULTS,
) -> None:
    """``source`` as a folder at ``path``, which must not exist.

    Raises:
        DataError: no actions, no rate, no episodes, a dtype or a picture that the format cannot hold, or rows that
            cannot be read.
    """
    task = source.task
    if task is None or not source.n_episodes:
        raise DataError(f"{source.path} has no 'action' or no episodes; say which key holds it: keys={{action: KEY}}.")
    if not task.control_hz > 0:
        raise DataError(f"{source.path} does not say its rate, without which there is no LeRobot data set: hz=...")
    plan = _Plan(source, task, options)
    files = WRITERS[options.version](path, plan.features, task.control_hz, options.pictures)
    try:
        for i in range(source.n_episodes):
            _write_episode(plan, files, i)
            progress(i + 1)
        files.close()
    except BaseException:
        files.abandon()
        raise
    files.finish(plan.tasks, {"splits": _splits(source), OURS: plan.ours()})


class _Plan:
    """What goes where."""

    def __init__(self, source: Episodes, task: TaskSpec, options: LeRobotOptions) -> None:
        self.source, self.task, self.fps = source, task, task.control_hz
        self.tasks, self.has_tasks = self._texts()
        self.has_time = self._is_step_over_fps()
        kept = (*(["timestamp"] if self.has_time else []), *(["task_index"] if self.has_tasks else []))
        self.names: dict[str, str] = {k: self._name(k) for k in source.keys if k not in kept}
        if len(set(self.names.values())) != len(self.names):
            raise DataError(f"{source.path}: two keys would have one name in LeRobot's layout: {self.names}.")
        self.derived = [k for k in ("timestamp", "task_index") if k not in kept]
        self.features: dict[str, dict[str, Any]] = {}
        for key, name in self.names.items():
            shape, dtype = source.shape(key), source.dtype(key)
            if self.is_picture(key):
                kind = "image" if options.pictures == "png" else "video"
                names: list[str] | None = ["height", "width", "channels"]
                self.features[name] = {"dtype": kind, "shape": list(shape), "names": names}
                continue
            if dtype.kind not in "biuf" or dtype.itemsize > 8 or len(shape) > 5 or 0 in shape:
                raise DataError(f"{source.path}: '{key}' {shape} {dtype} does not fit LeRobot's layout.")
            self.features[name] = {"dtype": dtype.newbyteorder("=").name, "shape": list(shape or (1,)), "names": None}
        for name, dtype in _COUNTED.items():
            self.features[name] = {"dtype": dtype, "shape": [1], "names": None}

    def is_picture(self, key: str) -> bool:
        """uint8 (H, W, 3)."""
        shape = self.source.shape(key)
        return len(shape) == 3 and shape[2] == 3 and self.source.dtype(key) == np.uint8

    def ours(self) -> dict[str, Any]:
        """What Deft reads again."""
        kept = {k: v for k, v in self.source.attrs.items() if k not in ("schema_version", "task")}
        return {
            **kept,
            "task": self.task.to_dict(),
            "schema_version": checks.SCHEMA_VERSION,
            "names": {theirs: key for key, theirs in self.names.items()},
            "scalars": [k for k in self.names if self.source.shape(k) == ()],
            "derived": self.derived,
        }

    def task_index(self, start: int, stop: int) -> np.ndarray:
        """(n,) int64."""
        if not self.has_tasks:
            return np.zeros(stop - start, np.int64)
        return self.source.array("task_index").read(start, stop).astype(np.int64)

    def _name(self, key: str) -> str:
        if key in self.task.obs:
            if self.is_picture(key):
                return "observation.image" if key == "rgb" else f"observation.images.{key.removeprefix('rgb_')}"
            return f"observation.{key}"
        if key in _NEXT and self.source.shape(key) == ():
            return _NEXT[key]
        return f"extra.{key}" if key in _COUNTED or key.startswith(("observation.", "next.")) else key

    def _scalar(self, key: str, kind: str) -> bool:
        return key in self.source.keys and self.source.shape(key) == () and self.source.dtype(key).kind == kind

    def _texts(self) -> tuple[list[str], bool]:
        texts = self.source.attrs.get("tasks")
        if isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) and self._scalar(
            "task_index", "i"
        ):  # fmt: skip
            index = self.source.array("task_index").read(0, self.source.n_steps)
            if index.min() >= 0 and index.max() < len(texts) and self.source.dtype("task_index") == np.int64:
                return texts, True
        return [self.task.name], False

    def _is_step_over_fps(self) -> bool:
        """A timestamp of one's own, of a clock, stays beside LeRobot's."""
        if not self._scalar("timestamp", "f") or self.source.dtype("timestamp") != np.float32:
            return False
        step = np.arange(self.source.n_steps) - np.repeat(
            self.source.episode_starts, self.source.episode_ends - self.source.episode_starts
        )
        stamps = self.source.array("timestamp").read(0, self.source.n_steps)
        return bool((np.abs(stamps - step / self.fps) < 1e-4).all())


def _write_episode(plan: _Plan, files: FilesV2 | FilesV3, i: int) -> None:
    source = plan.source
    start, stop = int(source.episode_starts[i]), int(source.episode_ends[i])
    n, columns, stats = stop - start, {}, {}
    for key, name in plan.names.items():
        rows = source.array(key)
        if not plan.is_picture(key):
            columns[name] = rows.read(start, stop)
            if (bad := checks.first_not_finite(columns[name])) is not None:
                raise DataError(
                    f"{source.path}: data/{key} holds a value that is not finite (NaN or infinite) in episode {i} "
                    f"at step {bad}; LeRobot's statistics cannot hold it."
                )
            continue
        found = PictureStats(n)
        for a, b, _ in rows.blocks(start, stop):
            block = rows.read(a, b)
            found.add(block)
            if plan.features[name]["dtype"] == "video":
                files.add_frames(name, block, first=a == start)
            else:
                columns.setdefault(name, []).extend(_png(p) for p in block)
        stats[name] = found.stats()
    step, task_index = np.arange(n), plan.task_index(start, stop)
    stamps = source.array("timestamp").read(start, stop) if plan.has_time else (step / plan.fps).astype(np.float32)
    counted = (stamps, step, np.full(n, i), step + start, task_index)
    columns |= dict(zip(_COUNTED, counted, strict=True))
    stats = {k: stats[k] if k in stats else of_numbers(columns[k]) for k in plan.features}
    numbers = {
        m: (source.episode_meta(m).dtype.str, source.episode_meta(m)[i].tolist()) for m in source.episode_meta_names
    }
    texts = [plan.tasks[t] for t in dict.fromkeys(task_index.tolist())]
    files.add_episode(columns, n, texts, stats, json.dumps(numbers) if numbers else None)


def _png(picture: np.ndarray) -> dict[str, Any]:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}


def _splits(source: Episodes) -> dict[str, str]:
    """LeRobot's are ranges; of the masks, those that are ranges too."""
    out = {"train": f"0:{source.n_episodes}"}
    for name in source.episode_meta_names:
        chosen = np.flatnonzero(source.episode_meta(name)) if name.startswith("mask_") else np.empty(0)
        if len(chosen) and chosen[-1] - chosen[0] + 1 == len(chosen):
            out[name.removeprefix("mask_")] = f"{chosen[0]}:{chosen[-1] + 1}"
    return out
