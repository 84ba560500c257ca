"""How smooth executed actions are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def jerk(actions: Float[np.ndarray, "t da"]) -> float:
    """Mean squared third difference, (action units / step^3)^2; not a number for less than four steps."""
    return float(np.square(np.diff(actions, 3, axis=0)).mean()) if len(actions) > 3 else math.nan


def jumps(actions: Float[np.ndarray, "t da"], n_action_steps: int, delay: int) -> tuple[float, float]:
    """Mean squared change from one action to the next (where a new chunk takes over, elsewhere), squared action units.

    The chunk of decision n takes over at control step n Ta + delay, n > 0. Not a number where there is no such step.
    """
    change = np.square(np.diff(actions, axis=0)).mean(1)
    steps = np.arange(1, len(change) + 1)
    switch = (steps >= n_action_steps) & ((steps - delay) % n_action_steps == 0)
    return tuple(float(part.mean()) if len(part) else math.nan for part in (change[switch], change[~switch]))  # type: ignore[return-value]


def smoothness(episodes: Sequence[np.ndarray], n_action_steps: int, delay: int) -> dict[str, float | None]:
    """Means over episodes of (T, Da) executed actions: ``jerk``, ``jump_at_switch``, ``jump_elsewhere``."""
    rows = np.array([(jerk(a), *jumps(a, n_action_steps, delay)) for a in episodes])
    known = [column[~np.isnan(column)] for column in rows.T]
    means = [float(column.mean()) if len(column) else None for column in known]
    return dict(zip(("jerk", "jump_at_switch", "jump_elsewhere"), means, strict=True))
