"""What all teleoperation devices share: the clutch, the take-over without a jump, the pace.

A device says where its hand is; this class says what that asks of the robot. Whatever a hand does, three things hold:
the first target after engaging is the robot's present one; no joint's target moves faster than the robot may; and the
target after releasing is the robot's present one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from real_robot.core.types import SECOND, Button, Joints, RobotSpec, State, TeleopSample
from real_robot.teleop.clutch import Clutch

LONGEST_STEP = 0.1  # s: after a longer pause the hand moves on as if no more than this had passed


@dataclass(frozen=True)
class Hand:
    """A reading of a device.

    Attributes:
        grip: what closes the clutch, 0..1; NaN where the device is lost.
        motion: what ``Device.follow`` makes a target of.
        buttons: pressed since the last reading.
    """

    grip: float
    motion: Any = None
    buttons: Button = Button.NONE


class Device(ABC):
    """A teleoperation device.

    Args:
        spec: of the robot that is led.
        clutch: closed by ``Hand.grip``.

    Attributes:
        waits: nobody closes the clutch by hand: it is kept open until the robot is enabled.
    """

    waits = False

    def __init__(self, spec: RobotSpec, clutch: Clutch):
        self.spec, self.clutch = spec, clutch
        self._last: Joints | None = None  # the target of the last reading, while engaged
        self._t = 0

    def start(self) -> None:  # noqa: B027
        """Raises DeviceError saying what was tried."""

    def close(self) -> None:  # noqa: B027
        """Lets go of the device."""

    @abstractmethod
    def poll(self, now: int) -> Hand:
        """Where the hand is, without waiting."""

    @abstractmethod
    def begin(self, target: Joints, motion: Any) -> None:
        """The robot is at ``target`` and the hand at ``motion`` now: from here on the hand's motion counts."""

    @abstractmethod
    def follow(self, motion: Any, last: Joints, dt: float) -> Joints:
        """The target for a hand that is at ``motion``; ``last`` was asked for ``dt`` seconds ago."""

    def permits(self, motion: Any, target: Joints) -> bool:
        """Whether the clutch may close with the robot at ``target``."""
        return True

    def release(self) -> None:
        """Opens the clutch at once: the robot is not heard from."""
        self.clutch.open()
        self._last = None

    def anchor(self) -> None:
        """The next reading starts anew from the robot's target: what the hand did meanwhile was not followed."""
        self._last = None

    def read(self, state: State, target: Joints, now: int | None = None) -> TeleopSample:
        """The hand's wish; ``target`` is what the robot was last sent, ``now`` this moment by default."""
        now = time.monotonic_ns() if now is None else now
        hand = self.poll(now)
        dt, self._t = min((now - self._t) / SECOND, LONGEST_STEP), now
        was = self.clutch.engaged
        engaged = self.clutch.update(hand.grip, now)
        if engaged and not was and not self.permits(hand.motion, target):
            self.clutch.open()
            engaged = False
        if not engaged:
            self._last = None
            return TeleopSample(now, False, target.copy(), hand.buttons)
        if self._last is None:
            self.begin(target.copy(), hand.motion)
            self._last = target.copy()
        else:
            self._last = self._paced(self.follow(hand.motion, self._last, dt), self._last, dt)
        return TeleopSample(now, True, self._last.copy(), hand.buttons)

    def _paced(self, want: Joints, last: Joints, dt: float) -> Joints:
        """As near to ``want`` as the robot's limits let it come in ``dt``; where it is, if that is no number."""
        if not np.isfinite(want).all():
            return last
        step = self.spec.velocity * dt
        low, high = np.minimum(self.spec.lower, last), np.maximum(self.spec.upper, last)
        return np.clip(last + np.clip(want - last, -step, step), low, high)
