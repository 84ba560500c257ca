"""A policy that Deft knows nothing of, for base=tests.entry.walker:make."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.spec import TaskSpec


def make(spec: TaskSpec) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Walks straight from the position to the goal, too slowly."""
    assert spec.action.shape == (2,)

    def act(obs: dict[str, np.ndarray]) -> np.ndarray:
        assert obs["state"].shape == (2, 4)
        position, goal = np.split(obs["state"][-1], 2)
        way = goal - position
        return np.tile(0.5 * way / (np.abs(way).max() + 1e-6), (6, 1))

    return act


def make_short(spec: TaskSpec) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Answers with too few actions."""
    return lambda obs: make(spec)(obs)[:2]
