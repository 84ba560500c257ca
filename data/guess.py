"""The contract of a data set that states none, put together from what its arrays say.

- Observations are all arrays but the actions and what tells of the episode (``NOT_OBSERVED``). Kinds follow from shape
  and dtype (``checks.guess_field``).
- The range of actions is [-1, 1] where all lie in it (controllers with normalised inputs, as robosuite's), otherwise
  the least and greatest value over all dimensions. A policy clamps to it.
- The control rate is what the format says, else 0: unknown. Training does not need it; a robot and a video's speed do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from data import checks
from data.errors import DataError
from data.source import Episodes, Rows
from data.spec import FieldSpec, TaskSpec

NOT_OBSERVED = ("reward", "done", "success", "timestamp", "states")


def guess_task(
    source: Episodes,
    name: str,
    *,
    extras: Collection[str] = NOT_OBSERVED,
    control_hz: float = 0.0,
    env_args: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
) -> TaskSpec | None:
    """The task of ``source``; None without an array "action" (T, Da) and at least one observation.

    Args:
        source: its arrays are read, its task is not.
        name: of the task.
        extras: keys that are no observations.
        control_hz: actions per second; 0 if unknown.
        env_args: what rebuilds the environment; {} if unknown.
        versions: of the simulator's packages.
    """
    have = {k: (source.shape(k), source.dtype(k)) for k in source.keys}
    if "action" not in have:
        return None
    shape, dtype = have["action"]
    if len(shape) != 1 or dtype.kind not in "iuf":
        raise DataError(
            f"{source.path}: the actions are (T{''.join(f', {n}' for n in shape)}) {dtype}, expected (T, Da)."
        )
    observed = [k for k in have if k != "action" and k not in extras]
    if not observed:
        return None
    low, high = action_range(source.array("action"))
    return TaskSpec(
        name=name,
        obs={k: checks.guess_field(k, *have[k]) for k in observed},
        action=FieldSpec(shape, dtype.name, "action"),
        action_low=low,
        action_high=high,
        control_hz=control_hz,
        env_args=env_args or {},
        versions=versions or {},
    )


def action_range(rows: Rows) -> tuple[float, float]:
    """(low, high) of actions whose format states none; values that are not finite do not count (see ``data.check``)."""
    low, high = np.inf, -np.inf
    for a, b, empty in rows.blocks(0, len(rows)):
        block = np.zeros(1) if empty else rows.read(a, b)
        finite = block[np.isfinite(block)] if block.dtype.kind == "f" else block
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if (low >= -1 and high <= 1) or low > high:
        return -1.0, 1.0
    return low, high
