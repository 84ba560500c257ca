"""When a hand leads the robot, and when not: a clutch with hysteresis, and a leader's alignment."""

from __future__ import annotations

import math

import numpy as np

from data.errors import ConfigError
from real_robot.core.types import SECOND, Joints, RobotSpec


class Clutch:
    """Closed by a value that rises, opened by one that falls; a trembling hand between the two changes nothing.

    Args:
        engage: value from which it closes, in (0, 1].
        release: value below which it opens; less than ``engage``.
        engage_after: s that the value must have stayed at ``engage`` or above.
        release_after: s that it must have stayed below ``release``.
    """

    def __init__(
        self, engage: float = 0.6, release: float = 0.4, engage_after: float = 0.05, release_after: float = 0.0
    ):
        if not 0 < release < engage <= 1:
            raise ConfigError(f"clutch: expected 0 < release < engage <= 1, got release={release}, engage={engage}.")
        if engage_after < 0 or release_after < 0:
            raise ConfigError(f"clutch: times cannot be negative, got {engage_after} s and {release_after} s.")
        self.engage, self.release = engage, release
        self._after = {False: round(engage_after * SECOND), True: round(release_after * SECOND)}
        self.engaged = False
        self._since: int | None = None  # when the value came to ask for a change

    def update(self, value: float, now: int) -> bool:
        """Whether it is closed, given the hand's ``value`` at ``now`` (ns). A value that is no number opens it."""
        if not math.isfinite(value):
            self.open()
            return False
        wants_change = value < self.release if self.engaged else value >= self.engage
        if not wants_change:
            self._since = None
        else:
            self._since = now if self._since is None else self._since
            if now - self._since >= self._after[self.engaged]:
                self.engaged, self._since = not self.engaged, None
        return self.engaged

    def open(self) -> None:
        """At once: the connection is lost, or the robot is."""
        self.engaged, self._since = False, None


class Alignment:
    """Whether a leader stands as its follower does.

    Args:
        spec: the follower.
        tolerance: rad or m, largest difference of an arm's joint.
        gripper_tolerance: the same of the gripper's opening.
    """

    def __init__(self, spec: RobotSpec, tolerance: float = 0.1, gripper_tolerance: float = 0.3):
        self.spec = spec
        self.tolerance = np.full(spec.n, float(tolerance))
        if spec.gripper:
            self.tolerance[-1] = gripper_tolerance
        if not (self.tolerance > 0).all():
            raise ConfigError(f"teleop.tolerance must be positive, is {tolerance} and {gripper_tolerance}.")

    def off(self, leader: Joints, follower: Joints) -> str:
        """Which joints must be brought nearer, and by how much: "elbow -0.42 rad"; empty when aligned."""
        difference = leader - follower
        wrong = ~(np.abs(difference) <= self.tolerance)  # NaN is wrong too
        names = self.spec.joints
        units = ["rad"] * self.spec.n
        if self.spec.gripper:
            units[-1] = "of its opening"
        return ", ".join(f"{names[i]} {difference[i]:+.2f} {units[i]}" for i in np.flatnonzero(wrong))
