"""What a running robot is really told to do by whoever learns on it, and when: read from its session."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from real_robot.core.streams import Session
from real_robot.core.types import SECOND


class Decisions:
    """Watches the chunks of ``hold`` actions.

    Attributes:
        seen: (time, s; (1 + hold, n) joints: where the decision finds them, and where it leads them), of each.
    """

    def __init__(self, folder: Path, hold: int):
        self.seen: list[tuple[float, np.ndarray]] = []
        self._session, self._hold, self._over = Session(folder), hold, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        ring, last = self._session.attach("chunk"), 0
        while not self._over.is_set():
            for record in ring.since(last)[0]:
                last = record.n
                points = np.array(record.data["actions"][: int(record.data["length"])])
                if len(points) == self._hold + 1 and np.ptp(points, axis=0).any():  # not where it is to stand still
                    self.seen.append((record.t / SECOND, points))
            time.sleep(0.01)

    def close(self) -> None:
        """The session goes on."""
        self._over.set()
        self._thread.join()
