"""Time: the machine's monotonic clock, and one that a test turns by hand."""

from __future__ import annotations

import time

from real_robot.core.types import SECOND

SPIN = 200_000  # ns before a deadline that are waited out awake: a sleeping process is woken up to that much late


class MonotonicClock:
    """CLOCK_MONOTONIC: the same for all processes of this machine, untouched by changes of the date."""

    def now(self) -> int:
        """ns."""
        return time.monotonic_ns()

    def sleep_until(self, t: int) -> None:
        """Sleeps, then spins for the last 0.2 ms."""
        while (left := t - time.monotonic_ns()) > 0:
            if left > SPIN:
                time.sleep((left - SPIN) / SECOND)


class VirtualClock:
    """A clock that stands still until something sleeps: loops run as fast as they can, and always alike."""

    def __init__(self, start: int = SECOND):
        self.t = start

    def now(self) -> int:
        """ns."""
        return self.t

    def sleep_until(self, t: int) -> None:
        """It is ``t`` now."""
        self.t = max(self.t, t)

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.t += round(seconds * SECOND)
