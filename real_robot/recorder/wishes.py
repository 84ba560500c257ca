"""What people ask of the recorder: buttons in the rings ``request.*`` and ``teleop``, each read once, in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from real_robot.core.ring import Ring
from real_robot.core.types import Button
from real_robot.recorder.log import Log

OURS = Button.START | Button.STOP | Button.SUCCESS | Button.FAILURE | Button.DISCARD
Handled = dict[str, list[int]]  # {ring: [its id, number of the last record read]}; JSON-ready


def asks(name: str) -> bool:
    """Whether buttons come through this ring."""
    return name.split(".")[0] in ("request", "teleop")


class Wish(NamedTuple):
    """Buttons that were pressed at ``t``; record ``n`` of ring ``name``."""

    t: int
    name: str
    source: int
    n: int
    buttons: Button


class Wishes:
    """Reads every record of these rings once, also across recorders.

    Attributes:
        handled: how far; what a recorder leaves to the next.
    """

    def __init__(self, handled: Handled | None = None):
        self.handled: Handled = dict(handled or {})

    def read(self, rings: Mapping[str, Ring]) -> list[Wish]:
        """The new ones, by time; each has to be told to ``done``."""
        found = []
        for name, ring in rings.items():
            if not asks(name):
                continue
            for record in ring.since(self._last(name, ring.id))[0]:
                found.append(Wish(record.t, name, ring.id, record.n, Button(int(record.data["buttons"])) & OURS))
        return self._sorted(found)

    def recorded(self, log: Log) -> list[Wish]:
        """Those that are in an episode's log but may not have been seen to: a killed recorder's."""
        found = []
        for entry in log.index:
            stream = log.streams[entry.stream]
            if asks(stream.name) and entry.n > self._last(stream.name, stream.source):
                buttons = int(np.frombuffer(log.payload(entry), stream.layout.head, 1)["buttons"][0])
                found.append(Wish(entry.t, stream.name, stream.source, entry.n, Button(buttons) & OURS))
        return self._sorted(found)

    def done(self, wish: Wish) -> None:
        """It need not be seen to again."""
        if wish.n > self._last(wish.name, wish.source):
            self.handled[wish.name] = [wish.source, wish.n]

    def _last(self, name: str, source: int) -> int:
        known = self.handled.get(name)
        return known[1] if known is not None and known[0] == source else 0

    def _sorted(self, found: list[Wish]) -> list[Wish]:
        wishes = sorted((w for w in found if w.buttons), key=lambda w: w.t)
        for name in sorted({w.name for w in found}):  # samples without buttons need not be read again
            mine = [w for w in found if w.name == name]
            quiet = next((i for i, w in enumerate(mine) if w.buttons), len(mine))
            if quiet:
                self.done(mine[quiet - 1])
        return wishes


def merge(all_handled: Iterable[Handled]) -> Handled:
    """The furthest of several, in the order of time."""
    out: Handled = {}
    for handled in all_handled:
        for name, (source, n) in handled.items():
            if name not in out or out[name][0] != source or out[name][1] < n:
                out[name] = [source, n]
    return out
