"""One episode while it is being recorded: every ring of the session, copied into the log record by record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from real_robot.core.ring import Ring
from real_robot.core.streams import Session
from real_robot.core.types import SECOND
from real_robot.recorder.log import LogWriter, Stream, tallies
from real_robot.recorder.pictures import Encoding, Layout

STATUS = "recorder"  # the recorder's own ring, which it does not record
CLOCK = np.dtype([("realtime", "<i8")])  # ns of the date, at the record's time: the stream "clock"
TURN = 16  # turns in which a full ring is emptied: rings that hold equally long are equally far from overrunning
FLUSH_BYTES = 8 << 20
PASS = 0.25  # s after which the rings may wait while the recorder looks at what else there is


def present(session: Session, known: Mapping[str, Ring]) -> dict[str, Ring]:
    """The rings of the session, those in ``known`` not opened anew unless another one has taken their place."""
    out = {}
    for name in session.names():
        if name == STATUS:
            continue
        try:
            old = known.get(name)
            out[name] = old if old is not None and old.is_current else session.attach(name)
        except (OSError, DataError):  # it went away, or is none
            continue
    return out


def first_since(ring: Ring, t: int) -> int:
    """Number of the oldest record that is still there and not older than ``t``; the next to come if there is none."""
    n = ring.newest
    while n > 0 and (found := ring.time(n)) is not None and found >= t:
        n -= 1
    return n + 1


@dataclass
class _Follower:
    ring: Ring
    stream: Stream
    next: int


class Take:
    """Records into ``folder``/log until it is closed.

    Args:
        folder: of the episode; its log is continued where there is one.
        start: records from this time on belong to it, ns.
        encoding: of pictures.
        sync: s between two fsyncs; they run beside, because a disk may take its time.

    Every method may raise OSError: the disk.
    """

    def __init__(self, folder: Path, start: int, encoding: Encoding, sync: float = 1.0):
        self.folder, self.start, self.encoding, self.sync = folder, start, encoding, sync
        self.log = LogWriter(folder / "log")
        self._followers: dict[str, _Follower] = {}
        self._pool = ThreadPoolExecutor(1, "fsync")
        self._syncing: Future[None] | None = None
        self._synced = 0.0
        self._clock_at = 0
        self.late: dict[str, float] = {}  # s from ``start`` for which a ring could no longer tell

    def follow(self, rings: Mapping[str, Ring]) -> None:
        """Takes up rings that are new, or have replaced another."""
        for name, ring in rings.items():
            old = self._followers.get(name)
            if old is not None and old.ring is ring:
                continue
            if old is not None:
                self._drain(old, old.ring.newest, old.ring.slots)
            self._followers[name] = self._begin(name, ring)

    def _begin(self, name: str, ring: Ring) -> _Follower:
        layout = Layout(ring.dtype, self.encoding.of(ring.dtype))
        stream = self.log.stream(name, ring.id, layout, time.monotonic_ns())
        if stream.last:  # of a recorder before this one
            return _Follower(ring, stream, stream.last + 1)
        following = first_since(ring, self.start)
        oldest = ring.time(following)
        if following > 1 and ring.time(following - 1) is None and oldest is not None and oldest > self.start:
            self.late[name] = round((oldest - self.start) / SECOND, 3)
        return _Follower(ring, stream, following)

    def drain(self, until: int | None = None) -> bool:
        """Copies what is new, each ring in its turn; False where something was left for the next call.

        Args:
            until: later records do not belong to the episode: a recorder that is too slow comes to an end, too.
        """
        ends = {name: f.ring.newest for name, f in self._followers.items()}
        deadline = time.monotonic() + PASS
        while True:
            behind = False
            for name, follower in self._followers.items():
                behind |= self._drain(follower, ends[name], max(1, follower.ring.slots // TURN), until)
            if self.log.waiting > FLUSH_BYTES:
                self.log.flush()
            if not behind or time.monotonic() > deadline:
                break
        if time.monotonic_ns() - self._clock_at >= SECOND:
            self._write_clock()
        self.log.flush()
        return not behind

    def _drain(self, follower: _Follower, end: int, at_most: int, until: int | None = None) -> bool:
        """Whether there is more."""
        ring, stream = follower.ring, follower.stream
        for _ in range(at_most):
            if follower.next > end or (until is not None and (ring.time(follower.next) or 0) > until):
                return False
            record = ring.get(follower.next)
            if record is not None:
                self.log.append(stream, record.n, record.t, stream.layout.pack(record.data))
            # Without a record it was overwritten: the stream's numbers tell (``Stream.missed``).
            follower.next = follower.next + 1 if record is not None else self._oldest(ring, follower.next + 1)
        return follower.next <= end

    @staticmethod
    def _oldest(ring: Ring, n: int) -> int:
        """The first record from ``n`` on that is still there; some room is left to the writer."""
        return max(n, ring.newest - ring.slots + 1 + ring.slots // 50)

    def _write_clock(self) -> None:
        now = time.monotonic_ns()
        stream = self.log.stream("clock", 0, Layout(CLOCK), now)
        self.log.append(stream, stream.last + 1, now, np.array((time.time_ns(),), CLOCK).tobytes())
        self._clock_at = now

    def keep_safe(self) -> None:
        """Once in a while, an fsync, beside."""
        if self._syncing is not None and self._syncing.done():
            syncing, self._syncing = self._syncing, None
            syncing.result()
        if self._syncing is None and time.monotonic() - self._synced > self.sync:
            self._synced = time.monotonic()
            self._syncing = self._pool.submit(self.log.sync)

    @property
    def streams(self) -> dict[str, dict[str, Any]]:
        """Tallies by ring."""
        return tallies(self.log.streams.values())

    def close(self) -> None:
        """Everything on the disk, as far as it takes it."""
        if self.log.fd < 0:
            return
        try:
            self.log.flush()
            self.log.sync()
        finally:
            self._pool.shutdown()
            self.log.close()
