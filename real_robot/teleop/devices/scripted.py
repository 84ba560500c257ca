"""A hand that follows a script: a recorded demonstration, or a sequence made by a test."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.errors import ConfigError, DataError
from real_robot.core.types import SECOND, Button, Joints, RobotSpec, TeleopSample
from real_robot.teleop.clutch import Clutch
from real_robot.teleop.device import Device, Hand


class Scripted(Device):
    """Replays samples at the times that they carry, counted from the first reading.

    Their targets are approached at the robot's largest speeds, where it is elsewhere when the hand engages.

    Args:
        spec: of the robot.
        samples: in order of time.
    """

    waits = True

    def __init__(self, spec: RobotSpec, samples: Iterable[TeleopSample]):
        super().__init__(spec, Clutch(engage_after=0.0))
        self.samples = list(samples)
        wrong = [i for i, s in enumerate(self.samples) if s.target.shape != (spec.n,)]
        if not self.samples or wrong:
            which = f"sample {wrong[0]} has no" if wrong else "there is none that has a"
            raise ConfigError(f"scripted teleoperation: {which} target for the {spec.n} joints of {spec.name}.")
        self._begun: int | None = None
        self._next = 0

    @classmethod
    def load(cls, spec: RobotSpec, path: str | Path) -> Scripted:
        """From an .npz with t (T,) s, engaged (T,), target (T, n), buttons (T,)."""
        try:
            with np.load(path) as f:
                t, engaged, target, buttons = (f[k] for k in ("t", "engaged", "target", "buttons"))
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} is no script of teleoperation (t, engaged, target, buttons): {error}.") from None
        rows = zip(t, engaged, target.astype(np.float64), buttons, strict=True)
        return cls(spec, [TeleopSample(round(a * SECOND), bool(b), c, Button(int(d))) for a, b, c, d in rows])

    @property
    def done(self) -> bool:
        """Whether the last sample was given."""
        return self._next >= len(self.samples)

    def poll(self, now: int) -> Hand:
        """The newest sample that is due, with the buttons of all that were passed over."""
        self._begun = now if self._begun is None else self._begun
        due, buttons = self.samples[0].t + now - self._begun, Button.NONE
        if self.done:
            return Hand(0.0)
        while not self.done and self.samples[self._next].t <= due:
            buttons |= self.samples[self._next].buttons
            self._next += 1
        sample = self.samples[self._next - 1]
        return Hand(float(sample.engaged), sample.target, buttons)

    def begin(self, target: Joints, motion: Joints) -> None:
        """The script goes on, wherever the robot is."""

    def follow(self, motion: Joints, last: Joints, dt: float) -> Joints:
        """What the script says."""
        return motion
