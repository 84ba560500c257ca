"""Another arm in a person's hand: its joints are the robot's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from data.errors import ConfigError
from real_robot.core.types import Button, Joints, RobotSpec
from real_robot.teleop.clutch import Alignment, Clutch
from real_robot.teleop.device import Device, Hand
from real_robot.teleop.devices.keys import HELP, Keys


class Arm(Protocol):
    """Whatever has joints to read; motors, if it has any, must be limp."""

    def read_joints(self) -> Any:
        """(m,) its own joints in its own units. Raises DeviceError where it does not answer."""
        ...


class Leader(Device):
    """The robot's joints are ``sign * scale * arm[index] + offset``.

    It engages only where the arm stands as the robot does, within the tolerance; what remains of the difference then
    melts away within ``settle`` seconds, so that a closed gripper in the hand is a closed gripper at the robot.

    Args:
        spec: of the robot that follows.
        arm: with ``read_joints``, and perhaps ``connect`` and ``close``.
        keys: of the terminal: "c" closes and opens the clutch. Without, it closes where the robot is enabled and
            the arm aligned.
        index: (n,) which of the arm's joints leads each of the robot's; the same order by default.
        sign: (n,) 1 or -1.
        scale: (n,) of the robot's joint to the arm's.
        offset: (n,) rad or m, added last.
        tolerance: rad or m, by which an arm's joint may be off when engaging.
        gripper_tolerance: the same of the gripper's opening.
        settle: s.
    """

    def __init__(
        self,
        spec: RobotSpec,
        arm: Arm,
        *,
        keys: Keys | None = None,
        index: Sequence[int] | None = None,
        sign: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        offset: Sequence[float] | None = None,
        tolerance: float = 0.1,
        gripper_tolerance: float = 0.3,
        settle: float = 1.0,
    ):
        super().__init__(spec, Clutch(engage=0.6, release=0.4, engage_after=0.05))
        self.arm, self.keys, self.settle = arm, keys, settle
        self.index = np.arange(spec.n) if index is None else np.asarray(index, np.int64)
        self.sign, self.scale = self._vector("sign", sign, 1.0), self._vector("scale", scale, 1.0)
        self.offset = self._vector("offset", offset, 0.0)
        if self.index.shape != (spec.n,):
            raise ConfigError(f"teleop.index: expected {spec.n} numbers, one per joint of {spec.name}.")
        if not (np.abs(self.sign) == 1).all():
            raise ConfigError(f"teleop.sign: expected 1 and -1 only, got {self.sign.tolist()}.")
        self.alignment = Alignment(spec, tolerance, gripper_tolerance)
        self.misaligned = ""  # by how much each joint is off, where that is why it does not engage
        self._closed = self.waits = keys is None
        self._rest = np.zeros(spec.n)
        self._age = 0.0

    def _vector(self, name: str, value: Sequence[float] | None, default: float) -> Joints:
        out = np.full(self.spec.n, default) if value is None else np.asarray(value, np.float64)
        if out.shape != (self.spec.n,) or not np.isfinite(out).all():
            raise ConfigError(f"teleop.{name}: expected {self.spec.n} numbers, one per joint of {self.spec.name}.")
        return out

    @property
    def help(self) -> str:
        """One line for the person who holds it."""
        if self.keys is None:
            return "the leader leads once the robot is enabled and it stands as the robot does"
        return f"c takes hold, where the leader stands as the robot does, and lets go | {HELP}"

    def start(self) -> None:
        """Connects the arm."""
        if self.keys is not None:
            self.keys.start()
        if (connect := getattr(self.arm, "connect", None)) is not None:
            connect()
        self.joints()

    def close(self) -> None:
        """Lets go of it."""
        if self.keys is not None:
            self.keys.close()
        if (close := getattr(self.arm, "close", None)) is not None:
            close()

    def joints(self) -> Joints:
        """(n,) of the robot, as the arm stands."""
        arm = np.asarray(self.arm.read_joints(), np.float64)
        if arm.ndim != 1 or self.index.max() >= len(arm):
            raise ConfigError(f"teleop.index names joint {self.index.max()} of an arm that has {arm.size}.")
        return self.sign * self.scale * arm[self.index] + self.offset

    def poll(self, now: int) -> Hand:
        """How the arm stands."""
        buttons = Button.NONE
        if self.keys is not None:
            typed = self.keys.read()
            buttons = self.keys.buttons(typed)
            if typed.count("c") % 2:
                self._closed = not self._closed
        leader = self.joints()
        return Hand(float(self._closed) if np.isfinite(leader).all() else np.nan, leader, buttons)

    def permits(self, motion: Joints, target: Joints) -> bool:
        """Where the arm stands as the robot does."""
        self.misaligned = self.alignment.off(motion, target)
        if self.misaligned and self.keys is not None:
            self._closed = False  # it is for the person to try again, not for chance
        return not self.misaligned

    def begin(self, target: Joints, motion: Joints) -> None:
        """From here."""
        self._rest, self._age = target - motion, 0.0

    def follow(self, motion: Joints, last: Joints, dt: float) -> Joints:
        """As the arm stands, and a rest that melts."""
        self._age += dt
        left = max(0.0, 1 - self._age / self.settle) if self.settle > 0 else 0.0
        return motion + left * self._rest
