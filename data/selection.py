"""A data set seen through options: other names, several arrays as one, some of the episodes, a rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import checks
from data.errors import ConfigError, DataError, nearest
from data.guess import NOT_OBSERVED, action_range, guess_task
from data.rotations import POSE, POSE_6D, poses_6d
from data.source import Episodes, Rows
from data.spec import FieldSpec, TaskSpec


class Joined(Rows):
    """Arrays of vectors side by side: (n, D1) and (n, D2) as (n, D1 + D2)."""

    def __init__(self, name: str, parts: Sequence[Rows]) -> None:
        for part in parts:
            if len(part.shape) > 2 or part.dtype.kind not in "biuf":
                raise DataError(f"{part.name} has steps of {part.shape[1:]}; only vectors of numbers can be joined.")
        self.name, self._parts = name, list(parts)
        width = sum(int(np.prod(p.shape[1:], dtype=np.int64)) for p in parts)
        self.shape, self.dtype = (len(parts[0]), width), np.result_type(*(p.dtype for p in parts))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""
        return np.concatenate([_flat(p.read(start, stop)) for p in self._parts], 1, dtype=self.dtype)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places."""
        return np.concatenate([_flat(p.gather(rows)) for p in self._parts], 1, dtype=self.dtype)

    def stamps(self) -> list[Any]:
        """Those of the parts."""
        return [p.stamps() for p in self._parts]


class Picked(Rows):
    """Some row ranges of an array, one after the other."""

    def __init__(self, rows: Rows, runs: Sequence[tuple[int, int]]) -> None:
        self.name, self.dtype, self._rows, self.seekable = rows.name, rows.dtype, rows, rows.seekable
        self._runs = np.array(runs, np.int64).reshape(-1, 2)
        self._ends = np.cumsum(self._runs[:, 1] - self._runs[:, 0])
        self.shape = (int(self._ends[-1]) if len(self._ends) else 0, *rows.shape[1:])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""
        parts = [self._rows.read(a, b) for a, b in self._spans(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate([self._rows.read(0, 0), *parts])

    def _spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        out = []
        for i in range(int(np.searchsorted(self._ends, start, side="right")), len(self._ends)):
            end, (_, b) = int(self._ends[i]), self._runs[i]
            first = int(end - (b - self._runs[i, 0]))
            if first >= stop:
                break
            out.append((int(b) - (end - max(start, first)), int(b) - (end - min(stop, end))))
        return out

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places."""
        return self._rows.gather(self._source_rows(rows))

    def _source_rows(self, rows: np.ndarray) -> np.ndarray:
        run = np.searchsorted(self._ends, rows, side="right")
        return self._runs[run, 1] - (self._ends[run] - rows)

    def stamps(self) -> list[Any]:
        """Those of the array, and the ranges."""
        return [self._runs.tolist(), *self._rows.stamps()]

    def raw(self) -> tuple[Path, np.ndarray] | None:
        """Where the array has its rows."""
        found = self._rows.raw()
        return None if found is None else (found[0], found[1][self._source_rows(np.arange(len(self)))])


class SixD(Rows):
    """Absolute actions with rotation vectors, (n, 7 k), as (n, 10 k): see ``data.rotations``."""

    def __init__(self, rows: Rows) -> None:
        width = rows.shape[-1] if len(rows.shape) == 2 else 0
        if width == 0 or width % POSE:
            raise DataError(
                f"{rows.name} has steps of {rows.shape[1:]}; absolute actions are {POSE} numbers per arm: position, "
                "rotation vector, gripper."
            )
        self.name, self.dtype, self._rows = rows.name, np.dtype(np.float64), rows
        self.shape = (len(rows), width // POSE * POSE_6D)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""
        return poses_6d(self._rows.read(start, stop))

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places."""
        return poses_6d(self._rows.gather(rows))

    def stamps(self) -> list[Any]:
        """Those of the array."""
        return ["6d", *self._rows.stamps()]


class View(Episodes):
    """``source`` with options applied; its ``format`` and ``path`` are the source's."""

    def __init__(
        self,
        source: Episodes,
        *,
        keys: Mapping[str, str | Sequence[str]] | None = None,
        hz: float | None = None,
        episodes: np.ndarray | None = None,
        actions: str | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            source: what is looked at.
            keys: {name here: key there, or several whose vectors are joined}; all other keys keep their names.
            hz: actions per second, of a format that does not say.
            episodes: the numbers of those to show; None for all.
            actions: "absolute": robomimic's absolute actions (``actions_abs``; ``actions`` where its controller takes
                such; or what ``keys`` says "action" is), their rotations as six numbers.

        Raises:
            DataError: a key or an episode that is not there, or a rate where another one is known.
        """
        self.format, self.path, self.attrs = source.format, source.path, dict(source.attrs)
        arrays: dict[str, Rows] = {k: source.array(k) for k in source.keys}
        for name, wanted in (keys or {}).items():
            parts = [wanted] if isinstance(wanted, str) else list(wanted)
            if not parts or not all(isinstance(p, str) for p in parts):
                raise ConfigError(f"keys={{{name}: {wanted}}}: expected the key of {source.path}, or a list of keys.")
            found = [source.array(p) for p in parts]
            arrays[name] = found[0] if isinstance(wanted, str) else Joined(f"{source.path}/{name}", found)
        if actions is not None:
            arrays["action"] = _absolute(source, arrays, "action" in (keys or {}), actions)
        self.episode_ends, self._episode_meta = source.episode_ends, dict(source._episode_meta)
        if episodes is not None:
            wrong = episodes[(episodes < 0) | (episodes >= source.n_episodes)]
            if len(wrong):
                raise DataError(f"{source.path} has {source.n_episodes} episodes; there is no episode {wrong[0]}.")
            arrays = {k: Picked(a, source.runs(episodes)) for k, a in arrays.items()}
            self.episode_ends = np.cumsum((source.episode_ends - source.episode_starts)[episodes], dtype=np.int64)
            self._episode_meta = {k: v[episodes] for k, v in self._episode_meta.items()}
        self._arrays, self._source, self._numbers = arrays, source, episodes
        self.task = self._task_of(source, dict(keys or {}), hz)
        if actions is not None and self.task is not None:
            low, high = action_range(self.array("action"))
            self.task = dataclasses.replace(
                self.task,
                action=FieldSpec(self.shape("action"), "float64", "action"),
                action_low=low,
                action_high=high,
                env_args={**self.task.env_args, "actions": actions} if self.task.env_args else {},
            )

    def scene(self, i: int) -> str | None:
        """The source's."""
        return self._source.scene(i if self._numbers is None else int(self._numbers[i]))

    def _task_of(self, source: Episodes, keys: dict[str, Any], hz: float | None) -> TaskSpec | None:
        if (task := source.task) is None:
            task = guess_task(self, self.path.stem)
        elif keys:
            seen = {k: v for k, v in source.fields.items() if k in task.obs}
            for name, wanted in keys.items():
                if name != "action" and name not in NOT_OBSERVED:
                    known = source.fields[wanted] if isinstance(wanted, str) else None
                    guessed = checks.guess_field(name, self.shape(name), self.dtype(name))
                    seen[name] = guessed if known is None or known.kind == "action" else known
            action, low, high = task.action, task.action_low, task.action_high
            if keys.get("action", "action") != "action":
                action = FieldSpec(self.shape("action"), self.dtype("action").name, "action")
                low, high = action_range(self.array("action"))
            env_args = task.env_args
            if env_args.get("suite") == "robomimic":  # which finds them in its simulation by the same names
                before = env_args.get("keys", {})
                named = {k: _through(before, v) for k, v in keys.items() if k in seen}
                env_args = {**env_args, "keys": {**before, **named}}
            task = dataclasses.replace(
                task, obs=seen, action=action, action_low=low, action_high=high, env_args=env_args
            )
        if hz is not None:
            if not hz > 0 or (task is not None and task.control_hz not in (0.0, hz)):
                known = f"{task.control_hz:g} actions per second" if task else "no rate"
                raise DataError(f"{self.path} says {known}; hz={hz:g} does not fit. Leave it out.")
            task = dataclasses.replace(task, control_hz=float(hz)) if task else None
        return task


def masked(source: Episodes, mask: str) -> np.ndarray:
    """Numbers of the episodes that are in ``mask`` (robomimic's filter keys: train, valid, 20_percent, ...)."""
    masks = [n.removeprefix("mask_") for n in source.episode_meta_names if n.startswith("mask_")]
    if mask not in masks:
        known = nearest(mask, masks) if masks else "It has none."
        raise DataError(f"{source.path} has no mask/{mask}. {known}")
    return np.flatnonzero(source.episode_meta(f"mask_{mask}"))


def _through(before: Mapping[str, Any], wanted: str | Sequence[str]) -> str | list[str]:
    """``wanted`` in the names that ``before`` gave other names to."""
    if isinstance(wanted, str):
        return before.get(wanted, wanted)
    found = [before.get(w, w) for w in wanted]
    return [name for part in found for name in ([part] if isinstance(part, str) else part)]


def _absolute(source: Episodes, arrays: Mapping[str, Rows], chosen: bool, actions: str) -> Rows:
    if actions != "absolute":
        raise ConfigError(f"actions={actions}: expected absolute, or null for the actions as they are.")
    env_args = source.task.env_args if source.task else {}
    if env_args.get("actions") == "absolute":
        raise ConfigError(f"{source.path} holds absolute actions with 6-D rotations already; leave out actions.")
    if chosen or takes_poses(env_args.get("env_args", {})):
        return SixD(arrays["action"])
    if "actions_abs" not in arrays:
        raise DataError(
            f"{source.path} has no actions_abs, the absolute actions of its delta actions: robomimic's script "
            "robosuite_add_absolute_actions.py writes them; or say which key they are: keys={action: KEY}."
        )
    return SixD(arrays["actions_abs"])


def takes_poses(env_args: Any) -> bool:
    """Whether the controller in robomimic's ``env_args`` takes absolute actions."""
    kwargs = env_args.get("env_kwargs") if isinstance(env_args, Mapping) else None
    config = kwargs.get("controller_configs") if isinstance(kwargs, Mapping) else None
    config = config[0] if isinstance(config, list) and config else config
    if not isinstance(config, Mapping):
        return False
    parts = config.get("body_parts")
    parts = {**parts, **parts.get("arms", {})} if isinstance(parts, Mapping) else {"right": config}
    arm = parts.get("right")
    return isinstance(arm, Mapping) and (arm.get("control_delta") is False or arm.get("input_type") == "absolute")


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(len(rows), -1)
