"""What every driver of a robot must do, whatever the robot: run by drivers against their simulators, or on hardware.

A test hands a ``Rig`` to each of ``CHECKS``. Nothing asserts on tight timing: simulators share cores with the tests.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from real_robot.core.types import SECOND, DeviceError, Robot, State


@dataclass
class Rig:
    """A robot to be tried.

    make: a new driver of it, not connected; controller: process of what it talks to, None where that is embedded;
    settle: positions may differ from what was asked for by so much after a second; patience: s for the controller's
    answers to be older than usual on a busy machine; swing: rad that joints are moved by.
    """

    make: Callable[[], Robot]
    controller: int | None
    settle: float
    patience: float = 0.5
    swing: float = 0.2


def newest(robot: Robot, t_robot: float, patience: float) -> State:
    """The first state whose ``t_robot`` lies behind ``t_robot``."""
    end = time.monotonic() + patience
    while (state := robot.read()).t_robot <= t_robot:
        assert time.monotonic() < end, f"t_robot has stood at {state.t_robot} for {patience} s"
        time.sleep(robot.spec.dt)
    return state


def drive(robot: Robot, target: Callable[[float], np.ndarray], seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Writes ``target(t)`` at the robot's rate, reading before; returns what was asked for and where it was, (T, n)."""
    start, asked, found = time.monotonic(), [], []
    while (t := time.monotonic() - start) < seconds:
        found.append(robot.read().q)
        asked.append(target(t))
        robot.write(asked[-1])
        time.sleep(max(0.0, robot.spec.dt - (time.monotonic() - start - t)))
    return np.array(asked), np.array(found)


def stop(robot: Robot, patience: float) -> None:
    """As the control process does it: again, while it cannot be confirmed."""
    end = time.monotonic() + patience
    while True:
        try:
            return robot.stop()
        except DeviceError:
            if time.monotonic() > end:
                raise


def somewhere(robot: Robot, swing: float) -> np.ndarray:
    """A target ``swing`` away from where it is, towards the middle of its range."""
    q, middle = robot.read().q, (robot.spec.lower + robot.spec.upper) / 2
    return np.clip(q + np.where(middle >= q, swing, -swing), robot.spec.lower, robot.spec.upper)


def check_reads_are_fresh(rig: Rig) -> None:
    robot = rig.make()
    robot.connect()
    try:
        states = [newest(robot, float("-inf"), rig.patience)]
        for _ in range(20):
            states.append(newest(robot, states[-1].t_robot, rig.patience))
        for a, b in itertools.pairwise(states):
            assert b.t > a.t
        last = states[-1]
        assert abs(time.monotonic_ns() - last.t) < rig.patience * SECOND
        assert last.q.shape == last.dq.shape == (robot.spec.n,)
        assert last.q.dtype == last.dq.dtype == np.float64
        assert np.isfinite(last.q).all()
        assert np.isfinite(last.dq).all()
        took = (last.t - states[0].t) / SECOND  # both clocks count seconds
        assert 0.5 * took - 0.05 < last.t_robot - states[0].t_robot < 2 * took + 0.05
        last.q[:] = 9  # a state belongs to whoever asked for it
        assert (robot.read().q != 9).any()
    finally:
        robot.close()


def check_nothing_moves_before_write(rig: Rig) -> None:
    robot = rig.make()
    robot.connect()
    try:
        before = robot.read().q
        time.sleep(0.3)
        state = newest(robot, robot.read().t_robot, rig.patience)
        assert np.abs(state.q - before).max() < max(0.02, rig.settle)
    finally:
        robot.close()


def check_follows_a_slow_sine(rig: Rig) -> None:
    robot = rig.make()
    robot.connect()
    try:
        start = robot.read().q
        far = somewhere(robot, rig.swing)
        asked, found = drive(robot, lambda t: start + (far - start) * (1 - np.cos(np.pi * t)) / 2, 1.5)
        assert np.median(np.abs(asked - found).max(1)) < 0.5 * rig.swing
        assert np.abs(found - found[0]).max(0).min() > 0.5 * rig.swing  # every joint has moved
        drive(robot, lambda _: far, 0.7)
        assert np.abs(newest(robot, robot.read().t_robot, rig.patience).q - far).max() < rig.settle
    finally:
        robot.close()


def check_stop_stands_still(rig: Rig) -> None:
    robot = rig.make()
    robot.connect()
    try:
        start = robot.read().q
        far = somewhere(robot, 3 * rig.swing)
        drive(robot, lambda t: start + (far - start) * min(t, 1.0), 0.3)
        for _ in range(3):  # again and again does no harm
            stop(robot, rig.patience)
        time.sleep(0.5)
        q = newest(robot, robot.read().t_robot, rig.patience).q
        assert np.abs(q - start).max() < np.abs(far - start).max()
        time.sleep(0.3)
        state = newest(robot, robot.read().t_robot, rig.patience)
        assert np.abs(state.q - q).max() < max(0.01, rig.settle)
        assert np.abs(state.dq).max() < 0.1
    finally:
        robot.close()


def check_close_lets_go(rig: Rig) -> None:
    for _ in range(2):
        robot = rig.make()
        robot.connect()
        q = robot.read().q
        drive(robot, lambda _, q=q: q, 0.1)
        robot.close()
        robot.close()  # twice does no harm


def check_frozen_controller_is_not_fresh(rig: Rig) -> None:
    """Whatever a client library returns while its controller is frozen, ``t_robot`` must not go on."""
    if rig.controller is None:
        pytest.skip("the controller is embedded")
    robot = rig.make()
    robot.connect()
    try:
        q = robot.read().q
        os.kill(rig.controller, signal.SIGSTOP)
        try:
            time.sleep(0.1)
            seen = set()
            for _ in range(30):
                try:
                    seen.add(robot.read().t_robot)
                    robot.write(q)
                except DeviceError:
                    break
                time.sleep(robot.spec.dt)
            assert len(seen) <= 2, "t_robot went on"  # one state may have been on its way
        finally:
            os.kill(rig.controller, signal.SIGCONT)
        time.sleep(0.2)
        robot.recover()
        newest(robot, max(seen, default=float("-inf")), 2.0)
        drive(robot, lambda _: robot.read().q, 0.1)
    finally:
        robot.close()


def check_non_finite_is_refused(rig: Rig) -> None:
    robot = rig.make()
    robot.connect()
    try:
        q = robot.read().q
        for bad in (np.nan, np.inf, -np.inf):
            wrong = q.copy()
            wrong[0] = bad
            with pytest.raises(DeviceError, match="finite"):
                robot.write(wrong)
        with pytest.raises(DeviceError):
            robot.write(q[:-1])
        time.sleep(0.2)
        assert np.abs(newest(robot, robot.read().t_robot, rig.patience).q - q).max() < max(0.02, rig.settle)
        robot.write(q)  # and it is none the worse for it
    finally:
        robot.close()


CHECKS = [
    check_reads_are_fresh,
    check_nothing_moves_before_write,
    check_follows_a_slow_sine,
    check_stop_stands_still,
    check_close_lets_go,
    check_frozen_controller_is_not_fresh,
    check_non_finite_is_refused,
]
