"""A first day at the terminal: ids and calibration, with a simulated hand and somebody who presses Enter."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from real_robot.core.ring import Ring
from real_robot.robots.servo_calibration import TICK, Calibration
from real_robot.robots.so101 import SO101
from tests.real_robot.buses import ENVIRONMENT, ROOT, bus

pytest.importorskip("scservo_sdk", reason="pip install 'deft[so101]'")
pytest.importorskip("dynamixel_sdk", reason="pip install 'deft[dynamixel]'")
MIDDLE = np.array([0.1, -0.1, 0.2, 0.0, 0.3, 0.8])
LOW = np.array([-1.92, -1.745, -1.69, -1.658, -2.744, -0.1745])
HIGH = np.array([1.92, 1.745, 1.69, 1.658, 2.841, 1.745])


def bring(hand: Ring, world: Path, where: np.ndarray) -> None:
    """Moves the limp arm, and stays there for a while."""
    hand.put(where, time.monotonic_ns())
    ring, end = Ring.attach(world), time.monotonic() + 20
    while (r := ring.latest()) is None or np.abs(r.data["qpos"][: len(where)] - where).max() > 0.002:
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.3)


class Person:
    """Somebody at a terminal."""

    def __init__(self, module: str, *arguments: str):
        command = [sys.executable, "-u", "-m", f"real_robot.robots.{module}", *arguments]
        pipe = subprocess.PIPE
        self.program = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=ENVIRONMENT
        )

    def reads(self, words: str) -> str:
        """Waits for a line with ``words``."""
        assert self.program.stdout is not None
        seen = ""
        for line in self.program.stdout:
            seen += line
            if words in line:
                return line
        raise AssertionError(f"'{words}' never came: {seen}")

    def enters(self) -> None:
        """Presses Enter."""
        assert self.program.stdin is not None
        self.program.stdin.write("\n")
        self.program.stdin.flush()

    def ends(self) -> int:
        """Waits for the program's end; returns its exit status."""
        self.program.communicate()
        return self.program.returncode


@pytest.mark.parametrize("kind", ["feetech", pytest.param("dynamixel", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_calibration_by_hand_finds_zeros_and_ranges(kind, tmp_path):
    hand = Ring.create(tmp_path / "hand", np.dtype(("<f8", (6,))), 16)
    world = tmp_path / "world"
    module = "so101" if kind == "feetech" else kind
    more = () if kind == "feetech" else (
        "joints=shoulder_pan,shoulder_lift,elbow_flex,wrist_flex,wrist_roll,gripper",
        "ids=1,2,3,4,5,6",
        f"model={ROOT / 'real_robot' / 'models' / 'so101.xml'}",
    )  # fmt: skip
    out = tmp_path / "arm.json"
    with bus(kind, tmp_path, f"hand={hand.path}", "assembly=11", f"world={world}", calibrated=False) as s:
        person = Person(module, "calibrate", f"port={s.port}", f"out={out}", *more)
        person.reads("goes limp")
        person.enters()
        person.reads("middle of its range")
        bring(hand, world, MIDDLE)
        person.enters()
        person.reads("both of its ends")
        bring(hand, world, LOW)
        person.enters()
        assert "shoulder_pan" in person.reads("Too little")
        bring(hand, world, HIGH)
        person.enters()
        person.reads("Written to")
        assert person.ends() == 0
        found = Calibration.load(out)
        lower, upper = found.limits
        assert lower[:5] == pytest.approx(LOW[:5], abs=3 * TICK)
        assert upper[:5] == pytest.approx(HIGH[:5], abs=3 * TICK)
        if kind == "feetech":
            bring(hand, world, MIDDLE)
            robot = SO101(s.port, out, read_timeout=0.05, control_hz=19)
            robot.connect()
            q = robot.read().q
            robot.close()
            record = Ring.attach(world).latest()
            assert record is not None
            assert q[:5] == pytest.approx(record.data["qpos"][:5], abs=4 * TICK)
            assert q[5] == pytest.approx((MIDDLE[5] - LOW[5]) / (HIGH[5] - LOW[5]), abs=0.01)


@pytest.mark.slow
def test_new_servos_get_their_ids(tmp_path):
    with bus("feetech", tmp_path, "ids=1", "joints=gripper", calibrated=False) as s:
        person = Person("so101", "ids", f"port={s.port}", "joints=gripper", "ids=6")
        person.reads("Connect the servo of gripper")
        person.enters()
        assert "gripper has id 6 (was 1)" in person.reads("has id")
        assert person.ends() == 0


def test_mistakes_at_the_terminal_are_told():
    for arguments, words in (
        (["calibrate", "port=/dev/nowhere"], "out="),
        (["hold", "prot=/dev/nowhere"], "Did you mean 'port'"),
    ):
        person = Person("so101", *arguments)
        person.reads(words)
        assert person.ends() == 1
