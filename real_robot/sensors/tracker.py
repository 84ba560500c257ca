"""Poses of objects from a simulated world, as a motion capture system or a marker tracker would tell them."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import numpy as np

from real_robot.core.clock import MonotonicClock
from real_robot.core.ring import Ring
from real_robot.core.streams import Session, sensor_dtype
from real_robot.core.types import SECOND


class Tracker:
    """Copies a field of the ``world`` ring to ``sensor.<name>``.

    Args:
        session: whose rings are read and written.
        name: of the sensor.
        field: of the ``world`` ring, such as "cube".
        entries: of that field; by default a position.
    """

    def __init__(self, session: Session, name: str, field: str, entries: Sequence[int] = (0, 1, 2)):
        self._session, self.field, self._entries = session, field, list(entries)
        self._ring = session.reopen(f"sensor.{name}", sensor_dtype(len(entries)), 1024)
        self._world: Ring | None = None
        self._seen = 0

    def look(self) -> None:
        """The newest record, where there is a new one."""
        if self._world is None:
            if not self._session.has("world"):
                return
            self._world = self._session.attach("world")
        record = self._world.latest()
        if record is not None and record.n != self._seen:
            self._seen = record.n
            self._ring.put((np.asarray(record.data[self.field], np.float64)[self._entries],), record.t)


def run(folder: str, *, name: str, field: str, entries: Sequence[int] = (0, 1, 2), hz: float = 60.0) -> None:
    """Writes ``sensor.<name>`` until the session ends.

    Args:
        folder: of the session.
        name, field, entries: see ``Tracker``.
        hz: readings per second.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    session, clock = Session(folder), MonotonicClock()
    tracker, due = Tracker(session, name, field, entries), clock.now()
    while not session.stopping:
        tracker.look()
        due = max(due + round(SECOND / hz), clock.now())
        clock.sleep_until(due)
