"""The control process: the only one that talks to the robot."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.construct import construct
from data.errors import DeftError
from real_robot.control.controller import Controller, Watch
from real_robot.control.executor import Executor
from real_robot.control.follower import Follower
from real_robot.control.realtime import ask_for_priority
from real_robot.control.tank import Tank
from real_robot.control.workspace import Workspace
from real_robot.core.clock import MonotonicClock
from real_robot.core.kinematics import Kinematics
from real_robot.core.streams import Events, Session
from real_robot.core.types import Clock, Joints, Robot, RobotSpec, State
from real_robot.robots.build import build_robot
from real_robot.robots.spec import servo_gains


class DryRun:
    """A robot that is read and never written to: it seems to be where it would have been sent."""

    def __init__(self, robot: Robot):
        self.robot, self.spec = robot, robot.spec
        self._sent: Joints | None = None

    def connect(self) -> None:
        """The robot's."""
        self.robot.connect()

    def read(self) -> State:
        """The robot's clock and mode; the joints that were written last."""
        state = self.robot.read()
        return state if self._sent is None else replace(state, q=self._sent.copy())

    def write(self, q: Joints) -> None:
        """Remembered."""
        self._sent = q.copy()

    def stop(self) -> None:
        """Nothing moves."""

    def recover(self) -> None:
        """Nothing was stopped."""

    def close(self) -> None:
        """Nothing was written: lets go of the device alone."""
        self.robot.close()


def workspace(spec: RobotSpec, limits: Mapping[str, Any]) -> Workspace | None:
    """Of the limits box, planes, spheres, margin; None where none of them is given."""
    given = {k: v for k, v in limits.items() if v}
    if not {"box", "planes", "spheres"} & set(given):
        return None
    return construct(Workspace, given, "safety.workspace", kinematics=Kinematics(spec))


def tank(spec: RobotSpec, given: Mapping[str, Any]) -> Tank | None:
    """Of the options of ``Tank``; gains not given are those of the model's actuators. None without energy."""
    options = {k: v for k, v in given.items() if v is not None}
    if "energy" not in options:
        return None
    if "stiffness" not in options:
        stiffness, damping = servo_gains(spec)
        options = {"stiffness": stiffness, "damping": damping, **options}
    return construct(Tank, options, "safety.tank", spec=spec)


def build_controller(
    robot: Robot, session: Session, clock: Clock, safety: Mapping[str, Any], mode: str = "replace"
) -> Controller:
    """Around a connected robot. ``safety`` and ``mode`` as in ``run``. Raises ConfigError."""
    zone = workspace(robot.spec, safety.get("workspace") or {})
    given = {k: safety[k] for k in ("max_age", "action_latency") if safety.get(k) is not None}
    executor = construct(Executor, given, "safety", spec=robot.spec, mode=mode)
    watch = construct(Watch, dict(safety.get("watch") or {}), "safety.watch")
    energy = tank(robot.spec, safety.get("tank") or {})
    follower = Follower(robot.spec, zone.outside if zone is not None else None, tank=energy)
    return Controller(robot, session, clock, follower, executor, watch)


def run(
    folder: str,
    *,
    robot: Mapping[str, Any],
    safety: Mapping[str, Any],
    mode: str = "replace",
    priority: int | None = 60,
    dry_run: bool = False,
) -> None:
    """Connects, ticks until the session ends, stops.

    Args:
        folder: of the session.
        robot: options of ``build_robot``.
        safety: ``limits`` (tighter than the robot's), ``watch`` (Watch), ``workspace`` (Workspace), ``tank`` (Tank),
            ``max_age`` and ``action_latency`` (Executor).
        mode: of the executor.
        priority: of SCHED_FIFO; None does not ask for it.
        dry_run: nothing is written to the robot, see ``DryRun``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    session = Session(folder)
    events = Events(session, "control")
    device: Robot | None = None
    try:
        device = build_robot(robot, session)
        if dry_run:
            device = DryRun(device)
        device.spec = device.spec.with_limits(safety.get("limits") or {})
        device.connect()
        controller = build_controller(device, session, MonotonicClock(), safety, mode)
    except DeftError as e:
        events.error(str(e))
        if device is not None:
            device.close()
        raise SystemExit(2) from None
    for refused in ask_for_priority(priority) if priority is not None else []:
        events.warning(refused)
    controller.run()
