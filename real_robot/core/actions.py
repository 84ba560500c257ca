"""What the numbers of a policy's actions are: where the joints should be, or how far they should go in a step.

``delta`` is the default: learnt targets are then exact to a share of a step instead of a share of the whole range, and
two chunks in a row cannot disagree about where the robot is. Measured in docs/robot/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from data.errors import ConfigError
from real_robot.core.types import Joints, RobotSpec

SPACES = ("delta", "absolute")


@dataclass(frozen=True)
class ActionSpace:
    """From joint targets to actions and back.

    Attributes:
        space: "delta": each joint's way since the action before, as a share of what its largest velocity allows in a
            step; a gripper's opening 0..1 as -1..1. "absolute": rad or m, openings 0..1.
        hz: actions per second.
        velocity: (n,) largest, rad/s or m/s.
        lower, upper: (n,) joint range.
        gripper: whether the last joint is one.
    """

    space: str
    hz: float
    velocity: Joints
    lower: Joints
    upper: Joints
    gripper: bool

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ConfigError(f"space={self.space} is not known: {' or '.join(SPACES)}.")
        for key in ("velocity", "lower", "upper"):
            object.__setattr__(self, key, np.asarray(getattr(self, key), np.float64))

    @classmethod
    def of(cls, spec: RobotSpec, space: str, hz: float) -> ActionSpace:
        """A robot's."""
        return cls(space, hz, spec.velocity, spec.lower, spec.upper, spec.gripper)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ActionSpace:
        """Inverse of ``to_dict``."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        lists = {key: getattr(self, key).tolist() for key in ("velocity", "lower", "upper")}
        return {"space": self.space, "hz": self.hz, "gripper": self.gripper, **lists}

    @property
    def low(self) -> float:
        """No action's entry is smaller."""
        return -1.0 if self.space == "delta" else float(self.lower.min())

    @property
    def high(self) -> float:
        """No action's entry is larger."""
        return 1.0 if self.space == "delta" else float(self.upper.max())

    @property
    def _step(self) -> Joints:
        """(n,) how far a joint gets."""
        return self.velocity / self.hz

    def encode(self, targets: Float64[np.ndarray, "t n"], before: Float64[np.ndarray, "#t n"]) -> Any:
        """(T, n) actions that lead from ``before`` each target to it; what no action reaches is cut off."""
        if self.space == "absolute":
            return targets.copy()
        actions = (targets - before) / self._step
        if self.gripper:
            actions[:, -1] = 2 * targets[:, -1] - 1
        return np.clip(actions, -1, 1)

    def decode(self, actions: Float64[np.ndarray, "t n"], start: Joints) -> Float64[np.ndarray, "t n"]:
        """(T, n) targets of actions that begin at target ``start`` (n,), within the joint range."""
        if self.space == "absolute":
            return actions.copy()
        actions = np.where(np.isfinite(actions), np.clip(actions, -1, 1), np.nan)  # for the safety layer to refuse
        targets = np.empty_like(actions)
        at = start
        for i, action in enumerate(actions):
            at = np.clip(at + action * self._step, self.lower, self.upper)
            if self.gripper:
                at[-1] = (action[-1] + 1) / 2
            targets[i] = at
        return targets
