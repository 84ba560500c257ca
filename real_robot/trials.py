"""Trials in a simulated world: what a person does between episodes at a real table.

A trial: the robot is led home, the world is reset to the trial's seed, START, the hand lets go and the policy leads;
then success, or the time is over, and STOP with the label. On a real robot a person does all that, by the keys of the
teleoperation device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from real_robot.control.machine import Machine
from real_robot.core.streams import REQUEST, Session, teleop_dtype
from real_robot.core.types import SECOND, Button, RobotSpec
from real_robot.simulators.hand import Pick
from real_robot.simulators.port import ask

AT_HOME = 0.03  # rad, from home, that counts as there
LOST = 20 * SECOND  # ns, after which an arm is not led home any more
SETTLE = SECOND // 2  # ns that the world is given to come to rest


class Trials:
    """Steps through trials; call ``step`` at 20 Hz or more.

    Args:
        session: of the robot, with ring ``world``, and without a teleoperation device.
        spec: of the robot, with model, tcp and home, where it starts from.
        seeds: one per trial.
        seconds: that a trial may take.
        ready: whether what is to be tried is there.
        finished: called with (seed, success, seconds) after each.
        hand: options of ``Pick``, by which the robot is led home.

    Attributes:
        results: (seed, success, seconds) of the trials that are over.
    """

    def __init__(
        self,
        session: Session,
        spec: RobotSpec,
        seeds: list[int],
        *,
        seconds: float,
        ready: Callable[[], bool],
        finished: Callable[[int, bool, float], None],
        hand: Mapping[str, Any] | None = None,
    ):
        self.session, self.spec, self.seeds, self.seconds = session, spec, seeds, seconds
        self.ready, self.finished = ready, finished
        self.results: list[tuple[int, bool, float]] = []
        self._request = session.create("request.trials", REQUEST, 256)
        self._hand = session.create("teleop", teleop_dtype(spec.n), 256)
        assert spec.home is not None
        self._way, self._home = Pick(spec, **(hand or {})), spec.home
        self._target = self._home
        self._on_way, self._now = False, 0
        self._stage = self._wait
        self._since = self._until = 0

    @property
    def done(self) -> bool:
        """Whether all are over."""
        return len(self.results) == len(self.seeds)

    def step(self, now: int) -> None:
        """What there is to do at ``now``."""
        if not self.done:
            self._stage(now)

    def _press(self, buttons: Button, now: int) -> None:
        self._request.put(np.array((int(buttons),), REQUEST), now)

    def _lead(self, now: int, engaged: bool = True) -> None:
        self._hand.put(np.array((engaged, self._target, 0), self._hand.dtype), now)

    def _record(self, name: str) -> Any:
        record = self.session.attach(name).latest() if self.session.has(name) else None
        return None if record is None else record.data

    def _wait(self, now: int) -> None:
        self._lead(now, engaged=False)
        if self.ready() and self._record("world") is not None and self._record("state") is not None:
            self._press(Button.ENABLE, now)
            self._since, self._stage = now, self._go_home

    def _go_home(self, now: int) -> None:
        command = self._record("command")
        if command is not None and int(command["state"]) in (Machine.FAULT, Machine.READY):  # the trial has ended so
            self._lead(now, engaged=False)
            self._press(Button.RECOVER if int(command["state"]) == Machine.FAULT else Button.ENABLE, now)
            self._on_way = False
            return
        q = self._record("state")["q"]
        if now - self._since > LOST:  # an arm that has tied itself into a knot is put back, as only here it can be
            ask(self.session.folder, reset=None, robot=True)
            self._since, self._on_way = now, False
            return
        if not self._on_way and command is not None:  # up first: the straight way may lead through the table
            self._way.go_home(command["sent"].copy())
            self._on_way, self._now = True, now
        self._target = self._way.move(q, (now - self._now) / SECOND).copy() if not self._way.done else self._home
        self._now = now
        self._lead(now)
        if self._way.done and np.abs(q - self._home).max() < AT_HOME:
            self._on_way = False
            ask(self.session.folder, reset=self.seeds[len(self.results)])
            self._until, self._stage = now + SETTLE, self._begin

    def _begin(self, now: int) -> None:
        self._lead(now)
        if now >= self._until and int(self._record("world")["seed"]) == self.seeds[len(self.results)]:
            self._lead(now, engaged=False)
            self._press(Button.START, now)
            self._since, self._stage = now, self._run

    def _run(self, now: int) -> None:
        success, seconds = bool(self._record("world")["success"]), (now - self._since) / SECOND
        if success or seconds > self.seconds:
            self._press(Button.STOP | (Button.SUCCESS if success else Button.FAILURE), now)
            self.results.append((self.seeds[len(self.results)], success, round(seconds, 2)))
            self.finished(*self.results[-1])
            self._since, self._stage = now, self._go_home
