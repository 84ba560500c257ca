"""A new robot's first motions: robots that do as they should, and robots that do not, which must be found."""

from __future__ import annotations

import json
import os
import pty
import re
import time
from pathlib import Path

import numpy as np
import pytest

from data.errors import ConfigError
from real_robot.checks.expected import expected
from real_robot.checks.lead import Trace
from real_robot.checks.measure import Expect, followed, stopped
from real_robot.checks.person import Person
from real_robot.commands.first_run import main
from real_robot.control.follower import Clip
from real_robot.core.ring import Ring
from real_robot.robots.mujoco_arm import MujocoArm
from real_robot.robots.servo_calibration import nominal_calibration
from real_robot.robots.so101 import IDS, JOINTS, spec_of
from tests.real_robot.arms import small_spec
from tests.real_robot.buses import ROOT, bus
from tests.real_robot.command import Command

# A busy machine gives a simulator its turn late
PATIENT = ["priority=null", "safety.watch.robot=2.0", "safety.watch.late=5.0", "safety.watch.overruns=400",
           "safety.watch.teleop=2.0", "expect.rate=0.2", "expect.lag=2.0", "expect.stop=3.0"]  # fmt: skip
SERVOS = ["robot.read_timeout=0.05", "robot.control_hz=19.0", "robot.max_misses=30"]


@pytest.fixture
def spec():
    return small_spec()


def motion(spec, moved: np.ndarray, lag: float = 0.1, clipped=Clip.NONE) -> Trace:
    """Joint 1 is sent by 0.05 and back; all joints move by (n,) ``moved`` of that, ``lag`` s late."""
    t = np.arange(0, 4, 0.01)

    def there(at: np.ndarray) -> np.ndarray:
        return 0.05 * np.clip((at - 0.8) / 0.5, 0, 1) - 0.05 * np.clip((at - 2.2) / 0.5, 0, 1)

    sent = np.zeros((len(t), spec.n))
    sent[:, 1] = there(t)
    return Trace(t, sent, t, np.outer(there(t - lag), moved), [0.7, 2.1, 3.6], clipped)


def test_a_joint_that_follows_passes(spec):
    values, wrong = followed(motion(spec, np.array([0, 0.9, 0])), 1, 0.05, spec, Expect())
    assert not wrong
    assert values["share"] == pytest.approx(0.9, abs=0.01)
    assert values["lag_s"] == pytest.approx(0.1, abs=0.02)
    assert values["back"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("moved", "options", "words"),
    [
        ([0, 0.0, 0], {}, "does not move"),
        ([0, -1.0, 0], {}, "wrong way"),
        ([0, 0.3, 0], {}, "too little"),
        ([0, 2.0, 0], {}, "too much"),
        ([0, 0.0, 1.0], {}, "three moved .* ids exchanged"),
        ([0, 1.0, 0], {"lag": 0.45}, "too late"),
        ([0, 0.2, 0], {"clipped": Clip.WORKSPACE}, "WORKSPACE.*safety"),
    ],
)
def test_one_that_does_not_is_found(spec, moved, options, words):
    _, wrong = followed(motion(spec, np.array(moved), **options), 1, 0.05, spec, Expect())
    assert re.search(words, wrong)


@pytest.mark.parametrize(("expect", "words"), [(1.0, ""), (0.1, "too late")])
def test_how_long_a_stop_takes(spec, expect, words):
    t = np.arange(0, 4, 0.01)
    q = np.zeros((len(t), 3))
    q[:, 2] = np.minimum(t, 2.3) * 0.2  # pressed at 2 s, moves on for 0.3 s
    values, wrong = stopped(Trace(t, q, t, q, [], Clip.NONE), 2.02, 2, 2.0, Expect(stop=expect))
    assert values["heard_s"] == pytest.approx(0.02)
    assert values["still_s"] == pytest.approx(0.28, abs=0.02)  # what is less than noise is not seen
    assert values["way"] == pytest.approx(0.06)
    assert words in wrong
    assert bool(wrong) == bool(words)


def test_what_should_be_seen():
    ur = MujocoArm().spec
    assert ur.home is not None
    assert expected(ur, ur.home, 0, 0.05) == "the tool moves 2.2 cm to the left"
    assert expected(ur, ur.home, 0, -0.05) == "the tool moves 2.2 cm to the right"
    assert expected(ur, ur.home, 6, -0.1) == "the gripper closes"
    assert "turns in place by 3 degrees" in expected(ur, ur.home, 5, 0.05)
    made = nominal_calibration(
        "so101", JOINTS, list(IDS), np.array([[-1.6, 1.6]] * 6), [2048] * 6, [0] * 6, gripper=True
    )
    so101 = spec_of(made, 100.0, [0.0, -0.6, 0.5, 1.0, 0.0, 0.5])
    assert so101.home is not None
    for joint, words in enumerate(("to the right", "down", "down", "down", "against the clock")):
        assert words in expected(so101, so101.home, joint, 0.05)
    assert "positive side" in expected(small_spec(), np.zeros(3), 1, 0.05)


def test_a_person_answers_and_stops():
    keyboard, terminal = pty.openpty()
    person = Person(yes=False, stdin=terminal)
    looks = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 2:
            os.write(keyboard, b"what?\n")
        if len(looks) == 4:
            os.write(keyboard, b"No\n")

    assert person.ask("May it?", look) == "n"
    assert len(looks) >= 4
    with person.at_the_stop():
        assert not person.pressed()
        os.write(keyboard, b" ")  # no Enter
        end = time.monotonic() + 5
        while not person.pressed():
            assert time.monotonic() < end
    os.close(keyboard)
    os.close(terminal)
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(ConfigError, match=r"Nobody can answer.*yes=true"):
        Person(yes=False, stdin=read).ask("May it?", lambda: None)
    os.close(read)
    assert Person(yes=True).ask("May it?", lambda: None) == "y"
    with pytest.raises(ConfigError, match="simulated robots"):
        main(["robot=ur", "robot.host=10.0.0.9", "yes=true"])


@pytest.mark.slow
def test_a_joint_outside_its_limits_is_named_and_nothing_moves(tmp_path):
    out = tmp_path / "first.json"
    command = Command("real_robot.first_run", "robot=mujoco", "yes=true", f"out={out}", *PATIENT,
                      "safety.limits.upper=[0.2,3,3,3,3,3,1]")  # fmt: skip
    assert command.finishes(60) == 1
    found = json.loads(out.read_text())
    assert not found["passed"]
    assert [s["name"] for s in found["steps"]] == ["connect"]
    assert "shoulder_pan_joint at 0.30" in found["steps"][0]["found"]
    assert "-6.283 to  0.200 rad" in next(line for line in command.said if "shoulder_pan_joint" in line)


@pytest.mark.slow
def test_a_good_robot_passes(tmp_path):
    out = tmp_path / "first.json"
    command = Command("real_robot.first_run", "robot=mujoco", "yes=true", f"out={out}", *PATIENT)
    assert command.finishes(120) == 0, "".join(command.said)
    found = json.loads(out.read_text())
    assert [s["passed"] for s in found["steps"]] == [True] * 11
    joint = found["steps"][2]
    assert joint["share"] == pytest.approx(1, abs=0.1)
    stop = found["steps"][-2]
    assert 0 < stop["way"] < 0.15
    assert json.loads(command.said[-1]) == found


class Onlooker:
    """Somebody who answers at the keyboard after what the arm really does."""

    def __init__(self, command: Command, world: Path):
        self.command = command
        self.world = Ring.attach(world)
        self.heard = self.seen = 0
        self.joint, self.by, self.low, self.high = 0, 0.0, np.zeros(6), np.zeros(6)
        self.press_at = float("inf")

    def look(self) -> None:
        """At the arm, and at the terminal."""
        records, missed = self.world.since(self.seen)
        self.seen += len(records) + missed
        for r in records:
            q = r.data["qpos"][:6]
            self.low, self.high = np.minimum(self.low, q), np.maximum(self.high, q)
        if time.monotonic() > self.press_at:
            self.press_at = float("inf")
            self.command.types("\n")
        for line in self.command.said[self.heard :]:
            self.heard += 1
            if match := re.match(r"(\w+) by ([+-][\d.]+) \w+ and back", line):
                self.joint, self.by = JOINTS.index(match[1]), float(match[2])
                self.begin = self.world.latest().data["qpos"][:6].copy()  # type: ignore[union-attr]
                self.low, self.high = self.begin.copy(), self.begin.copy()
            if "Did you see it" in line:
                up, down = (self.high - self.begin)[self.joint], (self.begin - self.low)[self.joint]
                self.command.types("y\n" if (up > down) == (self.by > 0) else "n\n")
            elif "[y/n]" in line:
                self.command.types("y\n")
                if "swings" in line:
                    self.press_at = time.monotonic() + 2.0

    def until_it_ends(self) -> int:
        """Its status."""
        end = time.monotonic() + 150
        while self.command.process.poll() is None:
            assert time.monotonic() < end, "".join(self.command.said)
            self.look()
            time.sleep(0.02)
        return self.command.finishes()


def first_run_of_servos(tmp_path: Path, model: str = "", flipped: str = "") -> tuple[int, dict[str, dict]]:
    """With somebody beside the arm; returns the status, and the steps by name."""
    with bus("feetech", tmp_path, f"world={tmp_path / 'world'}", "assembly=3", *([model] if model else [])) as s:
        if flipped:
            made = json.loads(Path(s.calibration).read_text())
            made["joints"][flipped]["sign"] *= -1
            Path(s.calibration).write_text(json.dumps(made))
        out = tmp_path / "first.json"
        robot = ["robot=so101", f"robot.port={s.port}", f"robot.calibration={s.calibration}"]
        command = Command("real_robot.first_run", *robot, f"out={out}", *PATIENT, *SERVOS)
        try:
            status = Onlooker(command, tmp_path / "world").until_it_ends()
        finally:
            command.kill()
    return status, {step["name"]: step for step in json.loads(out.read_text())["steps"]}


@pytest.mark.slow
def test_a_servo_arm_with_somebody_beside_it(tmp_path):
    pytest.importorskip("scservo_sdk", reason="pip install 'deft[so101]'")
    status, steps = first_run_of_servos(tmp_path)
    assert status == 0, steps
    assert list(steps) == ["connect", "dry", *JOINTS, "emergency stop", "home"]
    assert all(step["passed"] for step in steps.values())


@pytest.mark.slow
def test_a_stuck_joint_and_a_wrong_sign_are_found(tmp_path):
    pytest.importorskip("scservo_sdk", reason="pip install 'deft[so101]'")
    text = (ROOT / "real_robot" / "models" / "so101.xml").read_text()
    old = '<joint name="elbow_flex"'
    assert old in text
    (tmp_path / "stuck.xml").write_text(text.replace(old, old + ' damping="100000"'))
    status, steps = first_run_of_servos(tmp_path, f"model={tmp_path / 'stuck.xml'}", flipped="wrist_roll")
    assert status == 1
    assert "does not move" in steps["elbow_flex"]["found"]
    assert "sign in the calibration" in steps["wrist_roll"]["found"]
    wrong = {"elbow_flex", "wrist_roll"}
    assert {name for name, step in steps.items() if not step["passed"]} == wrong
    assert "emergency stop" not in steps  # nothing bigger is tried with such an arm
