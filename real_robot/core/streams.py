"""The rings of a session: which there are, what a record of each holds, where they lie.

    state      control    every tick: what the robot said
    command    control    every tick: what was asked for, what was sent, and why
    chunk      policy     one per chunk
    teleop     teleop     one per reading
    request.*  whoever    a person's wishes, Button; one ring per process
    event.*    anybody    a line of text; one ring per process
    camera.*   camera     one per picture
    sensor.*   whoever    one vector per reading: an object's pose, a force

One folder of /dev/shm per session. The supervisor makes it and takes it away.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from real_robot.core.ring import Record, Ring

MAX_ACTIONS = 64  # of a chunk
EVENT_BYTES = 400
SHM = Path(os.environ.get("DEFT_SHM", "/dev/shm"))

# Who decided what was sent
SOURCES = ("hold", "policy", "human", "stop")
HOLD, POLICY, HUMAN, STOP = range(4)


def state_dtype(n: int) -> np.dtype:
    """``State``; effort is NaN where the robot does not tell."""
    joints = ("<f8", (n,))
    return np.dtype([("t_robot", "<f8"), ("q", *joints), ("dq", *joints), ("effort", *joints), ("mode", "u1")])


def command_dtype(n: int) -> np.dtype:
    """What was done in a tick.

    target: asked for; sent: after safety; proposal: the policy's own wish beside a person's (NaN without one);
    source: index in SOURCES; state: of the machine; clipped: bits of ``safety.Clip``; chunk: id, or -1; index: of the
    action in it; late: ns by which the tick began late.
    """
    joints = ("<f8", (n,))
    vectors = [("target", *joints), ("sent", *joints), ("proposal", *joints)]
    return np.dtype([*vectors, ("source", "u1"), ("state", "u1"), ("clipped", "<u4"), ("chunk", "<i8"),
                     ("index", "<f4"), ("late", "<i8")])  # fmt: skip


def chunk_dtype(n: int) -> np.dtype:
    """``Chunk``, its actions padded with NaN; asked, answered: ns, when inference began and ended."""
    return np.dtype([("id", "<i8"), ("t_obs", "<i8"), ("due", "<i8"), ("dt", "<f8"), ("length", "<i4"),
                     ("asked", "<i8"), ("answered", "<i8"), ("actions", "<f8", (MAX_ACTIONS, n))])  # fmt: skip


def teleop_dtype(n: int) -> np.dtype:
    """``TeleopSample``."""
    return np.dtype([("engaged", "?"), ("target", "<f8", (n,)), ("buttons", "<u4")])


def camera_dtype(height: int, width: int, depth: bool) -> np.dtype:
    """``Frame``."""
    fields = [("seq", "<i8"), ("rgb", "u1", (height, width, 3))]
    return np.dtype([*fields, ("depth", "<f4", (height, width))] if depth else fields)


def sensor_dtype(size: int) -> np.dtype:
    """A vector."""
    return np.dtype([("value", "<f8", (size,))])


REQUEST = np.dtype([("buttons", "<u4")])
EVENT = np.dtype([("level", "u1"), ("text", f"S{EVENT_BYTES}")])
INFO, WARNING, ERROR = 20, 30, 40  # logging's levels


class Session:
    """The folder of a session's rings.

    Args:
        folder: of a running session; None makes a new one, which ``close`` takes away again.
    """

    def __init__(self, folder: str | Path | None = None):
        self._own = folder is None
        self.folder = Path(folder) if folder is not None else SHM / f"deft-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        if self._own:
            self.folder.mkdir(parents=True, mode=0o700)

    def create(self, name: str, dtype: np.dtype, slots: int) -> Ring:
        """A ring of this session, written by this process."""
        return Ring.create(self.folder / name, dtype, slots)

    def attach(self, name: str) -> Ring:
        """A ring that another process writes. Raises DataError where there is none yet."""
        return Ring.attach(self.folder / name)

    def reopen(self, name: str, dtype: np.dtype, slots: int) -> Ring:
        """For a writer that may be started anew: the ring that is there, so that numbers go on, else a new one."""
        if self.has(name) and (ring := self.attach(name)).dtype == dtype:
            return ring
        return self.create(name, dtype, slots)

    def has(self, name: str) -> bool:
        """Whether there is such a ring yet."""
        return (self.folder / name).exists()

    def stop(self) -> None:
        """Asks every process of the session to end."""
        if self.folder.exists():
            (self.folder / ".stop").touch()

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called, or the session is gone: what every process asks in its loop."""
        return not self.folder.exists() or (self.folder / ".stop").exists()

    def names(self, prefix: str = "") -> Sequence[str]:
        """Of all rings there are, sorted."""
        found = (p.name for p in self.folder.iterdir()) if self.folder.exists() else ()
        return sorted(n for n in found if n.startswith(prefix) and not n.startswith("."))

    def close(self) -> None:
        """Takes the folder away where this session made it; processes that have it open keep their memory."""
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)


def event(record: Record) -> tuple[int, str]:
    """(level, text) of a record of an ``event.*`` ring."""
    return int(record.data["level"]), record.data["text"].item().decode(errors="replace")


class Events:
    """What a process has to say: lines in a ring of its own, for the recorder and the people at the terminal.

    Args:
        session: it belongs to.
        name: of the process.
    """

    def __init__(self, session: Session, name: str):
        self._ring = session.reopen(f"event.{name}", EVENT, 256)

    def say(self, level: int, text: str, t: int | None = None) -> None:
        """One line; ``t`` is now by default."""
        encoded = text.encode()[:EVENT_BYTES].decode(errors="ignore").encode()
        self._ring.put(np.array((level, encoded), EVENT), time.monotonic_ns() if t is None else t)

    def info(self, text: str) -> None:
        """What happened."""
        self.say(INFO, text)

    def warning(self, text: str) -> None:
        """What should not go on."""
        self.say(WARNING, text)

    def error(self, text: str) -> None:
        """What ended something."""
        self.say(ERROR, text)
