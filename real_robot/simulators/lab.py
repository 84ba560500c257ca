"""A simulated robot in one process, on a clock of its own: the control loop as it is, as fast as it can be computed.

What sleeps on the lab's clock lets the robot go on meanwhile: physics, control, sensors, in the order of their times.
So the same seeds give the same run on every machine, however busy it is, and a policy that is made to take 200 ms to
answer takes exactly that. What is not here: processes, wires, and the time that anything really takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data.errors import ConfigError
from real_robot.control.machine import Machine
from real_robot.control.process import build_controller
from real_robot.core.clock import VirtualClock
from real_robot.core.streams import REQUEST, Session
from real_robot.core.types import SECOND, Button, DeviceError
from real_robot.robots.build import build_robot
from real_robot.robots.mujoco_arm import MujocoArm
from real_robot.sensors.tracker import Tracker


class LabClock(VirtualClock):
    """Calls ``tick`` at every ``period`` (ns) that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.period, self.due = SECOND, self.t
        self.tick: Callable[[int], None] = lambda due: None
        self._ticking = False

    def sleep_until(self, t: int) -> None:
        """Until then the robot goes on."""
        if self._ticking:  # what is called in a tick takes no time
            return
        self._ticking = True
        try:
            while self.due <= t:
                self.t = max(self.t, self.due)
                self.due += self.period
                self.tick(self.t)
            self.t = max(self.t, t)
        finally:
            self._ticking = False

    def advance(self, seconds: float) -> None:
        """Time passes, and the robot goes on."""
        self.sleep_until(self.t + round(seconds * SECOND))


class Lab:
    """A robot that ``robot.type=mujoco`` simulates, under control; nobody leads it yet.

    Args:
        config: ``robot``, ``safety`` and ``sensors`` as configs/deploy.yaml has them.
        mode: of the executor.

    Attributes:
        session, clock, robot, controller: as a control process has them; ``clock`` moves the world.
        each: called with now after every tick.

    Raises:
        ConfigError: another robot.
    """

    def __init__(self, config: Mapping[str, Any], mode: str = "replace"):
        self.session, self.clock = Session(), LabClock()
        try:
            robot = build_robot(config["robot"], self.session, self.clock)
            if not isinstance(robot, MujocoArm):
                raise ConfigError(f"robot.type={config['robot']['type']} cannot be simulated in place; mujoco can.")
            safety = config["safety"]
            robot.spec = robot.spec.with_limits(safety.get("limits") or {})
            robot.connect()
            self.robot, self.spec = robot, robot.spec
            self.clock.period = round(self.spec.dt * SECOND)
            self.controller = build_controller(robot, self.session, self.clock, safety, mode)
            sensors = config.get("sensors") or {}
            self._trackers = [Tracker(self.session, name, **options) for name, options in sensors.items()]
        except BaseException:
            self.session.close()
            raise
        self._request = self.session.create("request.lab", REQUEST, 64)
        self.each: list[Callable[[int], object]] = []
        self.clock.tick = self._tick

    def _tick(self, due: int) -> None:
        self.controller.tick(due)
        for tracker in self._trackers:
            tracker.look()
        for call in self.each:
            call(due)

    def enable(self) -> None:
        """Until the policy, or a hand, may lead. Raises DeviceError where the robot cannot be enabled."""
        for _ in range(100):
            if self.controller.machine.state in (Machine.RUN, Machine.PAUSE):
                return
            fault = self.controller.machine.state == Machine.FAULT
            self.press(Button.RECOVER if fault else Button.ENABLE)
            self.clock.advance(0.05)
        raise DeviceError(f"The simulated robot cannot be enabled: {self.controller.machine.reason}.")

    def press(self, buttons: Button) -> None:
        """As a person does."""
        self._request.put(np.array((int(buttons),), REQUEST), self.clock.now())

    def close(self) -> None:
        """Takes the session away."""
        self.robot.close()
        self.session.close()
