"""From streams with times of their own to a fixed rate."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from real_robot.core.types import SECOND


def newest(t: Int64[np.ndarray, " s"], at: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
    """Index of the last sample at or before each time; -1 before the first."""
    return np.searchsorted(t, at, side="right") - 1


def too_old(t: Int64[np.ndarray, " s"], at: Int64[np.ndarray, " k"], max_age: float) -> NDArray[np.bool_]:
    """Where the last sample is older than ``max_age`` s, or there is none yet."""
    i = newest(t, at)
    return (i < 0) | (at - t[np.maximum(i, 0)] > max_age * SECOND)


def interpolate(
    t: Int64[np.ndarray, " s"], values: Float64[np.ndarray, "s n"], at: Int64[np.ndarray, " k"]
) -> Float64[np.ndarray, "k n"]:
    """Between the samples around each time; the last sample beyond it."""
    values = np.asarray(values, np.float64)
    before = np.clip(newest(t, at), 0, len(t) - 1)
    after = np.minimum(before + 1, len(t) - 1)
    span = (t[after] - t[before]).astype(np.float64)
    share = np.where(span > 0, np.clip((at - t[before]) / np.maximum(span, 1), 0, 1), 0.0)[:, None]
    return values[before] * (1 - share) + values[after] * share


def decision_times(start: int, end: int, hz: float) -> Int64[np.ndarray, " k"]:
    """t_k = start + k / hz, as long as t_k + 1 / hz does not pass ``end``."""
    n = max(0, int((end - start) / SECOND * hz + 1e-6))
    return start + np.round(np.arange(n) * (SECOND / hz)).astype(np.int64)
