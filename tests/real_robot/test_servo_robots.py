"""SO-101 and Dynamixel arms, through the makers' SDKs, over pseudo-terminals: what all robots must do, and faults."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from real_robot.core.kinematics import Kinematics
from real_robot.core.ring import Ring
from real_robot.core.types import DeviceError, RobotMode
from real_robot.robots.dynamixel import Dynamixel
from real_robot.robots.dynamixel import LeaderArm as DynamixelLeaderArm
from real_robot.robots.dynamixel import last_gasp as dynamixel_last_gasp
from real_robot.robots.servo_calibration import TICK
from real_robot.robots.so101 import SO101, LeaderArm, last_gasp
from tests.real_robot.buses import ROOT, Simulated, bus
from tests.real_robot.robot_contract import CHECKS, Rig, drive, newest, somewhere

pytest.importorskip("scservo_sdk", reason="pip install 'deft[so101]'")
pytest.importorskip("dynamixel_sdk", reason="pip install 'deft[dynamixel]'")
CLASSES = {"feetech": SO101, "dynamixel": Dynamixel}
# A busy machine gives a simulator its turn late: these tests are about what arrives, not about when.
CALM = {"read_timeout": 0.05, "control_hz": 19.0, "max_misses": 30}
DYNAMIXEL = {"watchdog": 2.0}
BOTH = pytest.mark.parametrize("kind", ["feetech", pytest.param("dynamixel", marks=pytest.mark.slow)])


@pytest.fixture(scope="module", params=["feetech", "dynamixel"])
def simulated(request, tmp_path_factory) -> Iterator[tuple[str, Simulated]]:
    with bus(request.param, tmp_path_factory.mktemp(request.param), "assembly=4") as s:
        yield request.param, s


def make(kind: str, s: Simulated, **options) -> SO101 | Dynamixel:
    extra = DYNAMIXEL if kind == "dynamixel" else {}
    return CLASSES[kind](s.port, s.calibration, **{**CALM, **extra, **options})


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_contract(simulated, check):
    kind, s = simulated
    check(Rig(lambda: make(kind, s), s.process.pid, settle=2.5 * TICK, patience=3.0))


def test_round_trip_within_ticks_and_never_beyond_the_range(simulated):
    kind, s = simulated
    robot = make(kind, s)
    robot.connect()
    try:
        spec = robot.spec
        for target in (spec.home, spec.lower + 0.3 * (spec.upper - spec.lower)):
            drive(robot, lambda _, target=target: target, 1.2)
            assert (np.abs(robot.read().q - target) <= 1.5 * np.abs(robot.calibration.scale) + 1e-9).all()
        robot.write(spec.upper + 100)
        goals = robot.bus.goals(robot.ids)
        shown = np.array([goals[id] for id in robot.ids]) + robot._turns
        assert (robot.calibration.position(shown) <= spec.upper + 1e-9).all()
        robot.stop()
    finally:
        robot.close()


def test_repeated_stops_ask_for_one_place(simulated):
    kind, s = simulated
    robot = make(kind, s)
    robot.connect()
    try:
        robot.stop()
        first = robot.bus.goals(robot.ids)
        time.sleep(0.2)
        robot.stop()
        assert robot.bus.goals(robot.ids) == first
    finally:
        robot.close()


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("feetech", "corrupt"),
        pytest.param("feetech", "drop", marks=pytest.mark.slow),
        pytest.param("dynamixel", "corrupt", marks=pytest.mark.slow),
        pytest.param("dynamixel", "drop", marks=pytest.mark.slow),
    ],
)
def test_lost_and_damaged_packets_cost_a_period_each(kind, fault, tmp_path):
    with bus(kind, tmp_path, f"{fault}=0.05") as s:
        robot = make(kind, s, read_timeout=0.02, control_hz=40.0)
        robot.connect()
        try:
            states = [robot.read() for _ in range(120)]
            assert robot.lost > 5  # of six packets a reading, 5 % each: a quarter of all readings
            old = sum(a is b for a, b in itertools.pairwise(states))
            assert old >= robot.lost - 1
            assert np.abs(np.array([x.q for x in states]) - states[0].q).max() < 0.02  # nothing damaged got through
            newest(robot, states[-1].t_robot, 2.0)
            far = somewhere(robot, 0.2)
            drive(robot, lambda _: far, 1.0)
            assert np.abs(robot.read().q - far).max() < 0.01
            robot.stop()
        finally:
            robot.close()


@BOTH
def test_a_dead_servo_is_named(kind, tmp_path):
    with bus(kind, tmp_path, "dead=4") as s:
        with pytest.raises(DeviceError, match=r"no answer from servos \[4\]. Answered: \[1, 2, 3, 5, 6\]"):
            make(kind, s).connect()
        with pytest.raises(DeviceError, match=r"servos \[4\] have not confirmed"):  # the others stand still
            (last_gasp if kind == "feetech" else dynamixel_last_gasp)(s.port, (1, 2, 3, 4, 5, 6))


@BOTH
def test_frozen_then_gone(kind, tmp_path):
    with bus(kind, tmp_path) as s:
        robot = make(kind, s, max_misses=15, read_timeout=0.01, control_hz=50.0)
        robot.connect()
        before = newest(robot, 0.0, 1.0)
        s.process.send_signal(signal.SIGSTOP)
        took, states = [], []
        with pytest.raises(DeviceError, match=r"16 reads in a row failed; no answer from shoulder_pan, .*, gripper"):  # noqa: PT012
            for _ in range(100):
                start = time.perf_counter()
                states.append(robot.read())
                took.append(time.perf_counter() - start)
                robot.write(before.q)
        assert len(states) >= 6
        assert states[-1] is states[-6]
        assert np.median(took) < 0.03  # not the SDK's 34 ms and more
        with pytest.raises(DeviceError, match="have not confirmed"):
            robot.stop()
        s.process.send_signal(signal.SIGCONT)
        robot.recover()
        assert newest(robot, states[-1].t_robot, 2.0).mode == RobotMode.READY
        s.process.kill()
        s.process.wait()
        with pytest.raises(DeviceError, match=r"is gone.*cable"):
            robot.read()
        with pytest.raises(DeviceError):
            robot.write(before.q)
        robot.close()


def test_answers_that_come_too_late_are_not_taken_for_new_ones(tmp_path):
    with bus("feetech", tmp_path, "latency=0.025") as s:
        robot = make("feetech", s, read_timeout=0.01, control_hz=50.0, max_misses=15)
        robot.connect()  # patient
        t = robot.read().t_robot
        for _ in range(10):
            assert robot.read().t_robot == t
            time.sleep(0.005)
        assert robot.lost == 11
        robot.bus.close()


def test_ports_missing_busy_silent(simulated, tmp_path):
    kind, s = simulated
    with pytest.raises(DeviceError, match=r"There is no port .*nowhere"):
        CLASSES[kind](str(tmp_path / "nowhere"), s.calibration).connect()
    first = make(kind, s)
    first.connect()
    with pytest.raises(DeviceError, match="in use by another program"):
        make(kind, s).connect()
    first.close()
    master, slave = os.openpty()
    with pytest.raises(DeviceError, match=r"no answer from servos \[1, 2, 3, 4, 5, 6\]. None answered. .*power"):
        CLASSES[kind](os.ttyname(slave), s.calibration).connect()
    os.close(master)
    os.close(slave)


RUNAWAY = """
import sys, time
import numpy as np
from real_robot.robots.{module} import {name}
robot = {name}(sys.argv[1], sys.argv[2], {options})
robot.connect()
q = robot.read().q
q[0] += 1.5
robot.write(q)
print("written", flush=True)
while {alive}:
    robot.read()
    time.sleep(0.02)
time.sleep(60)
"""


def runaway(kind: str, s: Simulated, options: str = "", alive: bool = False) -> subprocess.Popen:
    """A control process that asks for a long way and is killed at once."""
    module = {"feetech": "so101", "dynamixel": "dynamixel"}[kind]
    code = RUNAWAY.format(module=module, name=CLASSES[kind].__name__, options=options, alive=alive)
    process = subprocess.Popen(
        [sys.executable, "-c", code, s.port, s.calibration], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def weak(folder: Path) -> str:
    """The arm with a pan so sluggish that a process can be killed on its way."""
    text = (ROOT / "real_robot" / "models" / "so101.xml").read_text()
    old = '<joint name="shoulder_pan"'
    assert old in text
    (folder / "weak.xml").write_text(text.replace(old, old + ' damping="25"').replace('kv="20"', 'kv="0"'))
    return f"model={folder / 'weak.xml'}"


def pan(world: Ring) -> float:
    """Where the arm really is."""
    record = world.latest()
    assert record is not None
    return float(record.data["qpos"][0])


@BOTH
def test_last_gasp_of_a_dead_process(kind, tmp_path):
    with bus(kind, tmp_path, weak(tmp_path), f"world={tmp_path / 'world'}") as s:
        process = runaway(kind, s, "" if kind == "feetech" else "watchdog=0")
        with pytest.raises(DeviceError, match="in use"):
            last_gasp(s.port, patience=0.0)
        process.kill()
        process.communicate()
        world = Ring.attach(tmp_path / "world")
        killed = pan(world)
        time.sleep(0.2)
        assert pan(world) > killed + 0.005  # servos go on
        (last_gasp if kind == "feetech" else dynamixel_last_gasp)(s.port, (1, 2, 3, 4, 5, 6))
        time.sleep(0.1)
        stopped = pan(world)
        time.sleep(0.4)
        assert abs(pan(world) - stopped) < 0.01
        assert stopped < 1.3


@pytest.mark.slow
def test_the_watchdog_stops_dynamixels_by_itself(tmp_path):
    with bus("dynamixel", tmp_path, weak(tmp_path), f"world={tmp_path / 'world'}") as s:
        process = runaway("dynamixel", s, "watchdog=0.2", alive=True)
        world = Ring.attach(tmp_path / "world")
        process.kill()
        process.communicate()
        time.sleep(0.5)
        stopped = pan(world)
        time.sleep(0.4)
        assert abs(pan(world) - stopped) < 0.01
        assert stopped < 1.3
        dynamixel_last_gasp(s.port, (1, 2, 3, 4, 5, 6))
        robot = make("dynamixel", s, watchdog=0.12)
        robot.connect()
        far = somewhere(robot, 0.2)
        robot.write(far)
        time.sleep(0.4)
        assert robot.read().mode == RobotMode.STOPPED
        robot.recover()
        assert robot.read().mode == RobotMode.READY
        robot.close()


@BOTH
def test_leader_arm_is_limp_and_follows_a_hand(kind, tmp_path):
    hand = Ring.create(tmp_path / "hand", np.dtype(("<f8", (6,))), 16)
    with bus(kind, tmp_path, f"hand={hand.path}", "assembly=2") as s:
        leader = (LeaderArm if kind == "feetech" else DynamixelLeaderArm)(s.port, s.calibration, read_timeout=0.05)
        leader.connect()
        for want in (np.array([0.5, -0.4, 0.3, -0.2, 1.0, 1.745]), np.array([-0.5, 0.4, 0, 0, 0, -0.1745])):
            hand.put(want, time.monotonic_ns())
            shown, end = np.append(want[:5], 1.0 if want[5] > 0 else 0.0), time.monotonic() + 15
            while np.abs(leader.read_joints() - shown).max() > 1.5 * TICK:
                assert time.monotonic() < end
                time.sleep(0.05)
        leader.close()


@pytest.mark.slow
def test_another_arms_calibration_is_refused(tmp_path):
    with bus("feetech", tmp_path, "assembly=5") as s:
        text = Path(s.calibration).read_text()
        with bus("feetech", tmp_path, "assembly=6") as other:
            Path(other.calibration).write_text(text)
            with pytest.raises(DeviceError, match="another arm's file"):
                make("feetech", other).connect()


def test_the_model_has_the_arms_joints(tmp_path):
    with bus("feetech", tmp_path) as s:
        spec = make("feetech", s).spec
    arm = Kinematics(spec)
    assert arm.position(np.zeros(6)) == pytest.approx([0.391, 0, 0.228], abs=0.005)
    assert arm.position(spec.home)[2] > 0.03
    assert spec.on_host_death == "continues_to_goal"
