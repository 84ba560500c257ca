"""A hand that moves a robot a little way, as a teleoperation device does: through control, within its limits.

The robot is enabled only while it is moved. Meanwhile the session is watched, and any key is the emergency stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import DeftError
from launch.terminal import console
from real_robot.checks.person import Person, pause
from real_robot.control.follower import Clip
from real_robot.control.machine import Machine
from real_robot.core.ring import Record
from real_robot.core.streams import ERROR, REQUEST, WARNING, teleop_dtype
from real_robot.core.supervisor import Supervisor
from real_robot.core.types import SECOND, Button, Joints, RobotSpec

BEFORE = 0.6  # s of standing that a trace begins with
SETTLE = 0.5  # s of standing at each place
ARRIVED = 1e-3  # rad or m, of what was sent
PATIENCE = 10.0  # s for a state of control's, and beyond what a way should take


class CheckError(DeftError):
    """A step cannot go on: the text says why, and what to look at."""


@dataclass
class Trace:
    """What was sent and measured during a motion.

    Attributes:
        t_sent, t: (m,), (k,) s, one clock.
        sent, q: (m, n), (k, n).
        stops: s at which it had settled: before it moved, and at each place.
        clipped: what kept it from where it was asked to go.
    """

    t_sent: np.ndarray
    sent: np.ndarray
    t: np.ndarray
    q: np.ndarray
    stops: list[float]
    clipped: Clip

    def at(self, stop: int) -> Joints:
        """(n,) measured in the 0.2 s before a stop's end, their median."""
        end = self.stops[stop]
        near = (self.t <= end) & (self.t > end - 0.2)
        return np.median(self.q[near] if near.any() else self.q[self.t <= end][-1:], axis=0)


class Lead:
    """Of one session.

    Args:
        supervisor: of the session; not entered yet.
        spec: of the robot, under the limits of this session.
        person: beside it.
        check: called all the time; raises to end everything.
    """

    def __init__(self, supervisor: Supervisor, spec: RobotSpec, person: Person, check: Callable[[], None]):
        self.supervisor, self.session, self.spec, self.person = supervisor, supervisor.session, spec, person
        self._check = check
        self._hand = self.session.create("teleop", teleop_dtype(spec.n), 256)
        self._request = self.session.create("request.first_run", REQUEST, 64)
        self.trouble = ""  # what was said last that was an error

    # ------------------------------------------------------------------ watching

    def look(self) -> None:
        """After the session; raises CheckError where it has ended."""
        self._check()
        alive = self.supervisor.watch()
        for name, level, text in self.supervisor.news():
            if level >= WARNING:
                console.print(f"{name}: {text}", style="red" if level >= ERROR else "yellow")
            if level >= ERROR and name == "control":
                self.trouble = text
        if not alive:
            raise CheckError(self.trouble or self.supervisor.failed or "the session was ended")

    def newest(self, name: str) -> Record | None:
        """Of ring ``name``; None where there is none yet."""
        return self.session.attach(name).latest() if self.session.has(name) else None

    def since(self, name: str, t: int) -> list[Record]:
        """Records from ``t`` (ns) on."""
        return [r for r in self.session.attach(name).since(0)[0] if r.t >= t]

    @property
    def state(self) -> Machine:
        """Of control."""
        record = self.newest("command")
        return Machine.INIT if record is None else Machine(int(record.data["state"]))

    @property
    def sent(self) -> Joints:
        """(n,) where control has the robot stand."""
        record = self.newest("command")
        if record is None:
            raise CheckError("control has sent nothing yet")
        return np.asarray(record.data["sent"], np.float64).copy()

    def until(self, *states: Machine, seconds: float = PATIENCE) -> Machine:
        """Waits for one of ``states``. Raises CheckError."""
        end = time.monotonic() + seconds
        while (state := self.state) not in states:
            self.look()
            if time.monotonic() > end:
                raise CheckError(self.trouble or f"control stays in {state.name}")
            time.sleep(0.02)
        return state

    # ------------------------------------------------------------------ moving

    def press(self, button: Button) -> int:
        """Says it to control; returns when."""
        now = time.monotonic_ns()
        self._request.put(np.array((int(button),), REQUEST), now)
        return now

    def say(self, target: Joints, engaged: bool = True) -> None:
        """Where the hand is; repeats ENABLE, for a control that wants to hear it held."""
        buttons = int(Button.ENABLE) if engaged else 0
        self._hand.put(np.array((engaged, target, buttons), self._hand.dtype), time.monotonic_ns())

    def enable(self) -> None:
        """The robot may move. Raises CheckError where control does not let it."""
        self.say(self.sent, engaged=False)
        self.press(Button.ENABLE)
        self.until(Machine.PAUSE, Machine.RUN)

    def let_go(self) -> None:
        """It stands, and may not move."""
        if not self.session.has("command"):  # it is over
            return
        self.say(self.sent, engaged=False)
        self.press(Button.DISABLE)

    def lead(self, target: Joints) -> None:
        """One look while the robot is led to ``target``; raises CheckError where it must not go on."""
        self.say(target)
        if self.person.pressed():
            self.press(Button.ESTOP)
            self.until(Machine.FAULT)
            raise CheckError("you stopped it")
        self.look()
        if self.state == Machine.FAULT:
            self.look()  # why
            raise CheckError(self.trouble or "control is in FAULT")
        time.sleep(0.02)

    def go(self, places: Sequence[Joints]) -> Trace:
        """To each place (n,) in turn, standing a while at each."""
        begin = time.monotonic_ns() - round(BEFORE * SECOND)
        stops = []
        with self.person.at_the_stop():
            try:
                self.enable()
                pause(BEFORE, self.look)
                stops.append(time.monotonic_ns() / SECOND)
                for place in places:
                    way = float((np.abs(place - self.sent) / self.spec.velocity).max())
                    end = time.monotonic() + 1.5 * way + PATIENCE
                    while np.abs(self.sent - place).max() > ARRIVED and time.monotonic() < end:
                        self.lead(place)
                    settled = time.monotonic() + SETTLE
                    while time.monotonic() < settled:
                        self.lead(place)
                    stops.append(time.monotonic_ns() / SECOND)
            finally:
                self.let_go()
        return self.trace(begin, stops)

    def trace(self, begin: int, stops: list[float]) -> Trace:
        """Everything since ``begin`` (ns)."""
        commands, states = self.since("command", begin), self.since("state", begin)
        clipped = Clip.NONE
        for r in commands:
            clipped |= Clip(int(r.data["clipped"]))
        return Trace(
            *_columns(commands, "sent"), *_columns(states, "q"), stops=stops, clipped=clipped & ~Clip.RATE
        )  # fmt: skip


def _columns(records: list[Record], key: str) -> tuple[Any, Any]:
    return np.array([r.t / SECOND for r in records]), np.array([r.data[key] for r in records], np.float64)
