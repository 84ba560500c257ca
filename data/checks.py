"""What an episode store may hold, checked when it is opened and before an episode is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import DataError, nearest
from data.spec import FieldSpec, TaskSpec

if TYPE_CHECKING:
    from data.source import Rows

SCHEMA_VERSION = 1
_RESERVED = ("schema_version", "task")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
Outline = tuple[tuple[int, ...], np.dtype]  # (shape of one time step, dtype)


def first_not_finite(rows: np.ndarray) -> int | None:
    """First row of (n, ...) that holds NaN or an infinity; None if there is none (integers never do)."""
    if rows.dtype.kind != "f":
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(rows.sum(dtype=np.float64)):  # cheap, and finite only if every value is
            return None
    bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    return int(bad.argmax()) if bad.any() else None


def guess_field(key: str, shape: tuple[int, ...], dtype: np.dtype) -> FieldSpec:
    """The kind of an array nobody described, from its shape without time."""
    if key == "action":
        return FieldSpec(shape, dtype.name, "action")
    if dtype == np.uint8 and len(shape) == 3:
        return FieldSpec(shape, dtype.name, "rgb")
    if len(shape) == 2 and dtype.kind == "f":
        return FieldSpec(shape, dtype.name, "pointcloud" if shape[1] in (3, 6) else "depth")
    return FieldSpec(shape, dtype.name, "state")


def task_fields(task: TaskSpec) -> dict[str, FieldSpec]:
    """Observations and "action" of a task."""
    return {**task.obs, "action": task.action}


def check_names(path: Path, task: TaskSpec, attrs: dict[str, Any]) -> None:
    """Refuse names that cannot be files or that the store uses itself."""
    for name in [*task.obs, *attrs]:
        if name in _RESERVED or not _NAME.fullmatch(name) or (name in task.obs and name == "action"):
            raise DataError(f"{path}: '{name}' cannot be the name of an observation or attribute.")


def read_task(path: Path, attrs: dict[str, Any]) -> TaskSpec | None:
    """The task in a store's root attributes; None for a store that Deft did not write."""
    if "task" not in attrs:
        return None
    version = attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {version!r}; this Deft reads version {SCHEMA_VERSION}. "
            "Update Deft, or read the data set with the version that wrote it."
        )
    try:
        return TaskSpec.from_dict(attrs["task"])
    except (KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: the attribute 'task' is not a task's metadata ({type(e).__name__}: {e}).") from e


def read_ends(path: Path, array: Rows) -> np.ndarray:
    """``meta/episode_ends`` as (n_episodes,) int64, strictly increasing from above 0."""
    if len(array.shape) != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{path}: meta/episode_ends is {array.shape} {array.dtype}, expected (n_episodes,) int64.")
    ends = array.read(0, len(array)).astype(np.int64)
    bad = np.flatnonzero(np.diff(ends, prepend=0) <= 0)
    if len(bad):
        i = int(bad[0])
        raise DataError(
            f"{path}: meta/episode_ends must increase from above 0, but is {ends[i]} at episode {i} after "
            f"{ends[i - 1] if i else 0}. The store is corrupt; copy it again."
        )
    return ends


def check_arrays(path: Path, task: TaskSpec, have: dict[str, Outline]) -> None:
    """Do the arrays fit the task the store says it holds?"""
    for key, spec in task_fields(task).items():
        if key not in have:
            raise DataError(f"{path} has no data/{key}, which its task '{task.name}' needs. Found {sorted(have)}.")
        if have[key] != (spec.shape, np.dtype(spec.dtype)):
            raise DataError(
                f"{path}: data/{key} is {_rows(have[key][0])} {have[key][1]}, "
                f"but its task '{task.name}' says {_rows(spec.shape)} {spec.dtype}."
            )


def check_episode(where: str, episode: dict[str, np.ndarray], task: TaskSpec, have: dict[str, Outline] | None) -> int:
    """Does an episode fit the task and the episodes before it?

    Args:
        where: how messages begin.
        episode: {key: (T, *shape)}.
        task: observations and action that must be there.
        have: outline of every key of the episodes before; None for the first, which may bring extras.

    Returns:
        T.
    """
    known = {k: (f.shape, np.dtype(f.dtype)) for k, f in task_fields(task).items()} | (have or {})
    for key in sorted(set(known) - set(episode)):
        raise DataError(f"{where}: key '{key}' is missing; got {sorted(episode)}, expected {sorted(known)}.")
    for key in sorted(set(episode) - set(known)):
        if have is not None or not _NAME.fullmatch(key):
            raise DataError(f"{where}: key '{key}' was not expected. {nearest(key, sorted(known))}")
    for key, value in episode.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise DataError(f"{where}: '{key}' must be a numpy array of numbers, got {kind}.")
        shape, dtype = known.get(key, (value.shape[1:], value.dtype))
        if value.ndim == 0 or value.shape[1:] != shape or value.size == 0:
            raise DataError(f"{where}: '{key}' has shape {value.shape}, expected {_rows(shape)} with T >= 1.")
        if value.dtype != dtype:
            raise DataError(f"{where}: '{key}' has dtype {value.dtype}, expected {dtype}.")
        if (bad := first_not_finite(value)) is not None:
            raise DataError(f"{where}: '{key}' holds a value that is not finite (NaN or infinite) at step {bad}.")
    lengths = {k: len(v) for k, v in episode.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"{where}: all keys must have the same number of steps, got {lengths}.")
    return lengths["action"]


def check_meta(where: str, meta: dict[str, Any], have: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Per-episode numbers as arrays (1, ...) of the dtypes used so far; ``have`` is None for the first episode."""
    if have is not None and set(meta) != set(have):
        raise DataError(f"{where}: meta has {sorted(meta)}, expected {sorted(have)} as in the episodes before.")
    out = {}
    for name, value in meta.items():
        row = np.asarray(value)[None]
        if row.dtype.kind not in "biuf" or name == "ends" or not _NAME.fullmatch(name) or row.size == 0:
            raise DataError(f"{where}: meta '{name}' must be a number or an array of numbers, got {value!r}.")
        if have is not None:
            want = have[name]
            if row.shape[1:] != want.shape[1:] or not np.can_cast(row.dtype, want.dtype, "same_kind"):
                raise DataError(
                    f"{where}: meta '{name}' is {row.shape[1:]} {row.dtype}, expected {want.shape[1:]} {want.dtype}."
                )
            row = row.astype(want.dtype)
        out[name] = row
    return out


def _rows(shape: tuple[int, ...]) -> str:
    return f"(T{''.join(f', {n}' for n in shape)})"
