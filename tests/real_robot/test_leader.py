"""A leader arm in the commands: two simulated buses, the maker's SDK, a hand that moves the limp one."""

from __future__ import annotations

import json
import os
import pty
import time

import numpy as np
import pytest

from configs.loader import load_config
from data.errors import ConfigError
from real_robot.core.ring import Ring
from real_robot.parts import parts_of, spec_of
from real_robot.recorder.episode import Episode
from tests.real_robot.buses import bus
from tests.real_robot.command import Command

pytest.importorskip("scservo_sdk", reason="pip install 'deft[so101]'")
# A busy machine gives a simulator its turn late
PATIENT = [
    "priority=null", "robot.read_timeout=0.05", "robot.control_hz=19.0", "robot.max_misses=30",
    "safety.watch.robot=2.0", "safety.watch.late=5.0", "safety.watch.overruns=400", "safety.watch.teleop=2.0",
    "teleop.read_timeout=0.05", "teleop.max_misses=30",
]  # fmt: skip


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_limp_leader_leads_a_follower_that_is_recorded(tmp_path):
    for name in ("leader", "follower"):
        (tmp_path / name).mkdir()
    keyboard, terminal = pty.openpty()
    hand = Ring.create(tmp_path / "hand", np.dtype(("<f8", (6,))), 64)
    away = np.array([0.6, 0.0, 0.0, 0.0, 0.0, 0.8])
    hand.put(away, time.monotonic_ns())
    with (
        bus("feetech", tmp_path / "leader", f"hand={hand.path}", "assembly=2") as leader,
        bus("feetech", tmp_path / "follower", f"world={tmp_path / 'world'}", "assembly=3") as follower,
    ):
        world = Ring.attach(tmp_path / "world")

        def joints() -> np.ndarray:
            record = world.latest()
            assert record is not None
            return record.data["qpos"][:6].copy()

        command = Command(
            "real_robot.record", "robot=so101", f"robot.port={follower.port}",
            f"robot.calibration={follower.calibration}",
            "teleop=leader", f"teleop.port={leader.port}", f"teleop.calibration={leader.calibration}",
            f"teleop.tty={os.ttyname(terminal)}", f"out={tmp_path / 'out'}", *PATIENT,
        )  # fmt: skip
        try:
            command.says("c takes hold")
            until(lambda: world.latest() is not None)
            start = joints()
            os.write(keyboard, b"e")
            command.says("READY -> PAUSE: enabled")
            os.write(keyboard, b"c")
            assert "shoulder_pan +0.6" in command.says("must stand as the robot does")
            time.sleep(0.3)
            assert np.abs(joints() - start).max() < 0.02  # nothing moves before they are aligned
            hand.put(start, time.monotonic_ns())
            time.sleep(0.3)
            os.write(keyboard, b"c")
            command.says("a person takes over")
            os.write(keyboard, b"\n")
            there = start + np.array([0.4, -0.3, 0.2, 0.1, -0.3, 0.5])
            hand.put(there, time.monotonic_ns())
            until(lambda: np.abs(joints() - there)[:5].max() < 0.06 and abs(joints()[5] - there[5]) < 0.1)
            os.write(keyboard, b"c")
            command.says("the person lets go")
            hand.put(away, time.monotonic_ns())
            os.write(keyboard, b"\x7f1")
            time.sleep(0.5)
            assert np.abs(joints() - there)[:5].max() < 0.06  # let go: stays
            assert command.ends() == 0
        finally:
            command.kill()
            os.close(keyboard)
            os.close(terminal)
    episode = Episode(tmp_path / "out" / "episode_0000")
    sent = episode.table("command")[1]["sent"]
    assert np.ptp(sent[:, 0]) > 0.3
    assert json.loads(command.said[-1])["led"]["human"] > 5


@pytest.fixture
def arm(tmp_path):
    with bus("feetech", tmp_path) as s:
        yield [f"robot.port={s.port}", f"robot.calibration={s.calibration}"], s


def test_what_is_missing_or_unknown_is_named_before_anything_starts(arm):
    given, s = arm
    leader = ["checkpoint=x", "robot=so101", *given, "teleop=leader", f"teleop.calibration={s.calibration}"]
    with pytest.raises(ConfigError, match=r"teleop\.port has no default: give teleop\.port="):
        load_config("deploy", leader)
    config = load_config("deploy", [*leader, "teleop.port=/dev/ttyACM9", "teleop.sign=[1,1,1,1,-1,1]"])

    def parts(**options) -> list[str]:
        changed = {**config, "teleop": {**config["teleop"], **options}}
        return [p.name for p in parts_of(changed, spec_of(changed))]

    assert parts() == parts(arm="dynamixel") == ["control", "teleop", "policy"]
    for options, words in (
        ({"port": s.port}, "the robot's own"),
        ({"arm": "so100"}, r"teleop\.arm=so100 is not known.*so101"),
        ({"tolerence": 0.2}, r"no option 'tolerence'.*tolerance"),
        ({"sign": [1, -1]}, r"teleop\.sign: expected 6 numbers"),
        ({"calibration": "/nowhere.json"}, "There is no calibration"),
    ):
        with pytest.raises(ConfigError, match=words):
            parts(**options)
