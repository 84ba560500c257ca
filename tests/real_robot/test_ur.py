"""The UR driver through the unmodified ur-rtde, against the simulated controller in its own process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from real_robot.core.streams import Session
from real_robot.core.types import DeviceError, RobotMode, State
from real_robot.simulators.port import ask

pytest.importorskip("rtde_control", reason="ur-rtde is not installed: pip install 'deft[ur]'")

from real_robot.robots.ur import UR

HOST = f"127.0.1.{os.getpid() % 250 + 1}"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Simulator:
    def __init__(self, session: Session, *options: str):
        command = [sys.executable, "-m", "real_robot.simulators.ur", f"host={HOST}", f"session={session.folder}"]
        self.folder = session.folder
        self.process = subprocess.Popen([*command, "unlock_after=0.5", *options], stdout=subprocess.PIPE, text=True,
                                        cwd=Path(__file__).parents[2], preexec_fn=_die_with_parent)  # fmt: skip
        assert self.process.stdout is not None
        assert "UR5e at" in self.process.stdout.readline()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    s = Session()
    yield s
    s.close()


@pytest.fixture(scope="module")
def simulator(session: Session) -> Iterator[Simulator]:
    s = Simulator(session)
    yield s
    s.close()


@pytest.fixture
def robot(simulator: Simulator) -> Iterator[UR]:
    r = make()
    r.connect()
    yield r
    r.close()
    ask(simulator.folder, cable=True, emergency=False, remote=True, protective_stop=False)  # whatever a test left


def make() -> UR:
    # A machine that tests run on may be busy: the watchdog has patience
    return UR(HOST, watchdog_hz=1.0, timeout_s=1.0)


def until(robot: UR, mode: RobotMode, seconds: float = 5.0) -> State:
    end = time.monotonic() + seconds
    while True:
        state = robot.read()
        if state.mode == mode:
            return state
        assert time.monotonic() < end, f"not {mode.name} but {state.mode.name} after {seconds} s"
        time.sleep(0.008)


def rest(robot: UR, seconds: float) -> State:
    """Reads only, as a control loop does that has nothing to say."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.008)
        robot.read()
    return robot.read()


def hold(robot: UR, state: State, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        robot.read()
        robot.write(state.q)
        time.sleep(0.01)


def follow(robot: UR, seconds: float, amplitude: float = 0.1, hz: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Targets and states while it is led along a sine of one joint from where it is."""
    start, begin = robot.read().q, time.monotonic()
    targets, states = [], []
    while (t := time.monotonic() - begin) < seconds:
        q = start.copy()
        q[1] += amplitude * (1 - np.cos(2 * np.pi * hz * t))
        robot.write(q)
        targets.append(q)
        states.append(robot.read().q)
        time.sleep(0.008)
    return np.array(targets), np.array(states)


def test_it_reads_follows_and_stops(robot: UR):
    first = until(robot, RobotMode.READY)
    assert first.q.shape == (7,)
    targets, states = follow(robot, 2.5)
    assert np.ptp(states[:, 1]) > 0.15
    assert np.median(np.abs(targets - states)[:, :6]) < 0.03  # trails by the lookahead
    follow(robot, 0.5, amplitude=0.3, hz=0.8)
    moving = robot.read()
    assert abs(moving.dq[1]) > 0.1
    begin = time.monotonic()
    robot.stop()
    assert time.monotonic() - begin < 0.2
    still = rest(robot, 0.8)
    assert np.abs(still.dq[:6]).max() < 0.02
    assert still.t_robot > moving.t_robot
    assert time.monotonic_ns() - still.t < 500_000_000
    follow(robot, 0.2)  # and it can be led on
    assert robot.read().mode == RobotMode.READY


@pytest.mark.slow
def test_gripper_closes_with_hysteresis(robot: UR):
    q = robot.read().q
    seen = []
    for opening in (0.45, 0.35, 0.55, 0.65):
        for _ in range(40):
            q[-1] = opening
            robot.write(q)
            time.sleep(0.008)
            robot.read()
        seen.append(robot._is_closed())
    assert seen == [False, True, True, False]
    assert rest(robot, 0.8).q[-1] == 1.0


def test_nan_is_refused_here_and_stops_the_controller_where_it_gets_through(robot: UR):
    until(robot, RobotMode.READY)
    q = robot.read().q
    q[2] = np.nan
    with pytest.raises(DeviceError, match="finite"):
        robot.write(q)
    assert robot.read().mode == RobotMode.READY
    assert robot._control.servoJ([np.nan] * 6, 0.0, 0.0, 0.002, 0.1, 300)  # what the library makes of it
    until(robot, RobotMode.STOPPED)
    robot.recover()
    until(robot, RobotMode.READY, 20)


def test_protective_stop_and_recovery(robot: UR, simulator: Simulator):
    until(robot, RobotMode.READY)
    ask(simulator.folder, protective_stop="a test")
    state = until(robot, RobotMode.STOPPED)
    robot.write(state.q)  # has no effect
    with pytest.raises(DeviceError, match="PROTECTIVE_STOP"):
        make().connect()
    robot.recover()
    until(robot, RobotMode.READY, 20)
    _, states = follow(robot, 1.0)
    assert np.ptp(states[:, 1]) > 0.05


@pytest.mark.slow
def test_emergency_stop_needs_a_person(robot: UR, simulator: Simulator):
    ask(simulator.folder, emergency=True)
    until(robot, RobotMode.FAULT)
    with pytest.raises(DeviceError, match="release the button"):
        robot.recover()
    with pytest.raises(DeviceError, match="EMERGENCY"):
        make().connect()
    ask(simulator.folder, emergency=False)
    until(robot, RobotMode.STOPPED)
    robot.recover()
    until(robot, RobotMode.READY, 20)


@pytest.mark.slow
def test_watchdog_stops_a_robot_whose_host_is_gone(robot: UR, simulator: Simulator):
    until(robot, RobotMode.READY)
    follow(robot, 0.2)
    assert rest(robot, 1.0).mode == RobotMode.READY  # reading alone keeps it content
    time.sleep(1.5)  # as a frozen control process
    assert until(robot, RobotMode.STOPPED).mode == RobotMode.STOPPED
    robot.recover()
    until(robot, RobotMode.READY, 20)


@pytest.mark.parametrize("fault", ["frozen", pytest.param("cable", marks=pytest.mark.slow)])
def test_a_controller_that_is_not_heard_from(robot: UR, simulator: Simulator, fault: str):
    until(robot, RobotMode.READY)
    if fault == "frozen":
        simulator.send(signal.SIGSTOP)
    else:
        ask(simulator.folder, cable=False)
    try:
        time.sleep(0.05)
        first = robot.read()
        begin = time.monotonic()
        time.sleep(0.1)
        second = robot.read()
        assert second.t_robot == first.t_robot
        assert second.t == first.t
        assert robot._receive.isConnected()  # so the library would have it
        with pytest.raises(DeviceError, match="not been heard from"):
            hold(robot, first, 5.0)
        begin = time.monotonic()
        robot.stop()
        assert time.monotonic() - begin < 0.3
    finally:
        simulator.send(signal.SIGCONT)
        ask(simulator.folder, cable=True)
    time.sleep(0.3)
    robot.recover()
    until(robot, RobotMode.READY, 20)


def test_not_in_remote_control_and_not_there(simulator: Simulator):
    ask(simulator.folder, remote=False)
    time.sleep(0.1)
    with pytest.raises(DeviceError, match="remote control"):
        make().connect()
    ask(simulator.folder, remote=True)
    with pytest.raises(DeviceError, match="nothing answers"):
        UR("127.0.2.1").connect()


@pytest.mark.slow
def test_a_controller_that_died_and_came_back(session: Session, simulator: Simulator):
    robot = make()
    robot.connect()
    first = until(robot, RobotMode.READY)
    simulator.send(signal.SIGKILL)
    simulator.process.wait()
    with pytest.raises(DeviceError, match=r"heard from|connection lost"):
        hold(robot, first, 5.0)
    robot.recover()
    with pytest.raises(DeviceError, match="nothing answers"):
        rest(robot, 5.0)
    fresh = Simulator(session)
    simulator.process = fresh.process
    robot.recover()
    until(robot, RobotMode.READY, 40)  # the library's old connection interferes
    robot.close()
