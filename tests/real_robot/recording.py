"""A session whose rings are filled by formulas, so that what is recorded can be told to be right."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from real_robot.core.streams import (
    HUMAN,
    POLICY,
    REQUEST,
    Session,
    camera_dtype,
    command_dtype,
    state_dtype,
    teleop_dtype,
)
from real_robot.core.types import SECOND, Button
from real_robot.recorder.log import Log
from real_robot.recorder.pictures import Encoding
from real_robot.recorder.process import Recorder

N, H, W = 3, 24, 32
ROBOT = {"name": "toy", "joints": ["a", "b", "grip"], "lower": [-3, -2, 0], "upper": [3, 2, 1],
         "velocity": [4.0, 4.0, 5.0], "gripper": True, "control_hz": 100}  # fmt: skip
INFO = {"robot": ROBOT, "task": "wave", "cameras": {"front": {"fx": 30.0}}}


def q_at(t: np.ndarray | float) -> np.ndarray:
    """Where the robot is, t in s: (..., N)."""
    t = np.asarray(t, np.float64)
    return np.stack([np.sin(t), 0.5 * np.cos(t), 0.5 + 0.4 * np.sin(2 * t)], -1)


def picture(i: int) -> np.ndarray:
    """Grey of value i."""
    return np.full((H, W, 3), i % 256, np.uint8)


class Filled:
    """Rings of a session, filled for times that have passed already; ``t0`` is time 0 of ``q_at``.

    Args:
        seconds: that the rings hold from ``t0`` on.
    """

    def __init__(self, session: Session, *, seconds: float = 4.0, hz: int = 100, fps: int = 20, depth: bool = False):
        self.session, self.seconds = session, seconds
        self.t0 = time.monotonic_ns() - round((seconds + 1) * SECOND)
        self.state = session.create("state", state_dtype(N), 4096)
        self.command = session.create("command", command_dtype(N), 4096)
        self.teleop = session.create("teleop", teleop_dtype(N), 4096)
        self.request = session.create("request", REQUEST, 16)
        self.camera = session.create("camera.front", camera_dtype(H, W, depth), 512)
        for i in range(round(seconds * hz)):
            self.tick(i, hz)
        for i in range(round(seconds * fps)):
            self.camera.put((i, picture(i), np.full((H, W), 0.001 * i)) if depth else (i, picture(i)), self.at(i / fps))

    def at(self, seconds: float) -> int:
        return self.t0 + round(seconds * SECOND)

    def tick(self, i: int, hz: int) -> None:
        t = i / hz
        human = 1 <= t < 2
        nan = np.full(N, np.nan)
        self.state.put((t, q_at(t), np.gradient(q_at(t)), nan, 0), self.at(t))
        target, proposal = q_at(t) + 0.1, q_at(t) - 0.1 if human else nan
        source = HUMAN if human else POLICY
        self.command.put((target, q_at(t) + 0.05, proposal, source, 2, 0, i, 0.0, 0), self.at(t))
        self.teleop.put((human, q_at(t) + 0.2, 0), self.at(t))

    def press(self, button: Button, seconds: float) -> None:
        self.request.put((int(button),), self.at(seconds))


def recorder(session: Session, out: Path, **options) -> Recorder:
    options = {"preroll": 0.0, "tail": 0.1, "min_free_mb": 0.0} | options
    encoding = options.pop("encoding", Encoding(image="png"))
    return Recorder(session, out, INFO, encoding, **options)


def said(session: Session) -> str:
    """All events of the recorder."""
    records, _ = session.attach("event.recorder").since(0)
    return "\n".join(bytes(r.data["text"]).decode() for r in records)


def numbers(folder: Path, name: str) -> list[int]:
    """Of a stream's records in an episode's log, in the order of the file."""
    log = Log(folder / "log")
    return [e.n for e in log.index if log.streams[e.stream].name == name]


def contiguous(found: list[int]) -> bool:
    return found == list(range(found[0], found[0] + len(found))) if found else False
