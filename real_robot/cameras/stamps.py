"""When a picture was taken, on this machine's clock."""

from __future__ import annotations

from collections import deque

from real_robot.core.types import SECOND

WINDOW = 10 * SECOND  # looked back on: crystals drift by some 50 us in it


class DeviceClock:
    """Maps a device's own time onto the machine's: the fastest arrival of the last seconds had the least delay.

    What is left is the least delay itself, which is the device's ``latency_ms``.
    """

    def __init__(self) -> None:
        self._offsets: deque[tuple[int, int]] = deque()  # (received, offset), offsets rising: the first is the least
        self._newest = -1

    def map(self, device: int, received: int) -> int:
        """The machine's time (ns) of the device's time ``device`` (ns), a message of which came in at ``received``.

        A device whose time runs backwards was started anew: its past is forgotten.
        """
        if device < self._newest:
            self._offsets.clear()
        self._newest = device
        offset = received - device
        while self._offsets and self._offsets[-1][1] >= offset:
            self._offsets.pop()
        self._offsets.append((received, offset))
        while self._offsets[0][0] < received - WINDOW:
            self._offsets.popleft()
        return device + self._offsets[0][1]


class Backlog:
    """Tells pictures that had been waiting in a buffer, so that the time they come in says nothing of their age.

    After a gap (a stalled network, a process that was stopped, a stream that is being opened) all are taken for old
    until one has to be waited for.

    Args:
        period: between pictures, ns; from then on what is usual.
        now: when the source was opened.
    """

    def __init__(self, period: int, now: int):
        self._period, self._last = period, now
        self._usual = float(period)
        self._since: int | None = now

    def holds(self, asked: int, came: int) -> bool:
        """Whether the picture asked for at ``asked``, which came at ``came``, is out of a buffer."""
        interval, self._last = came - self._last, came
        if self._since is not None:
            if came - asked > self._period // 2:
                self._since = None
        else:
            if interval > max(3 * self._usual, SECOND // 10):
                self._since = came
            # A camera may slow down for good (auto-exposure in dim light): one gap, and then it is usual
            self._usual += 0.3 * (min(interval, 10 * self._usual) - self._usual)
        return self._since is not None

    def lasts(self, now: int) -> int:
        """ns since the gap."""
        return 0 if self._since is None else now - self._since
