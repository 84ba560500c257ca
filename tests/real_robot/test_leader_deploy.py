"""A policy deployed on one arm, and a person who takes over with another: two buses, the maker's SDK, end to end."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import zarr

from configs.loader import load_config
from real_robot.core.ring import Ring
from real_robot.core.streams import HUMAN, POLICY
from real_robot.parts import spec_of
from real_robot.recorder.episode import Episode
from real_robot.remote.keys import CHUNK
from tests.real_robot import faulty
from tests.real_robot.buses import ENVIRONMENT, ROOT, bus
from tests.real_robot.command import Command
from tests.real_robot.test_leader import PATIENT, until
from tests.real_robot.trivial_server import serving

pytest.importorskip("scservo_sdk", reason="pip install 'deft[so101]'")
pytestmark = pytest.mark.slow


class Sways:
    """A policy that turns the first joint slowly to and fro, wherever the others are, and opens the gripper."""

    def __init__(self, spec):
        self.metadata = {**faulty.contract(spec, False), "n_action_steps": 6}
        self.share = 0.15 / spec.velocity[0]  # rad/s

    def episode(self) -> None:
        return None

    def infer(self, request, episode) -> dict:
        t = time.monotonic() + np.arange(16) / faulty.HZ
        chunk = np.zeros((16, 6), np.float32)
        chunk[:, 0], chunk[:, -1] = self.share * np.sign(np.cos(t)), 1.0
        return {"actions": chunk, CHUNK: chunk}


class Person:
    """Whose hand is on the leader: it goes with the robot, is put somewhere, or stays."""

    def __init__(self, ring: Ring, joints):
        self.ring, self.joints, self.put, self.done = ring, joints, None, threading.Event()
        self.thread = threading.Thread(target=self._hold)
        self.thread.start()

    def _hold(self) -> None:
        while not self.done.wait(0.02):
            self.ring.put(self.joints() if self.put is None else self.put, time.monotonic_ns())

    def leaves(self) -> None:
        self.done.set()
        self.thread.join()


def test_a_person_takes_over_with_the_leader_and_hands_back(tmp_path):
    for name in ("leader", "follower"):
        (tmp_path / name).mkdir()
    keyboard, terminal = pty.openpty()
    hand = Ring.create(tmp_path / "hand", np.dtype(("<f8", (6,))), 64)
    out = tmp_path / "out"
    with (
        bus("feetech", tmp_path / "leader", f"hand={hand.path}", "assembly=2") as leader,
        bus("feetech", tmp_path / "follower", f"world={tmp_path / 'world'}", "assembly=3") as follower,
    ):
        robot = ["robot=so101", f"robot.port={follower.port}", f"robot.calibration={follower.calibration}"]
        world = Ring.attach(tmp_path / "world")

        def joints() -> np.ndarray:
            record = world.latest()
            assert record is not None
            return record.data["qpos"][:6].copy()

        until(lambda: world.latest() is not None)
        spec = spec_of(load_config("deploy", ["checkpoint=x", *robot]))
        person = Person(hand, joints)
        person.put = joints() + np.array([0.9, 0.0, 0.0, 0.0, 0.0, 0.0])
        with serving(Sways(spec)) as server:
            command = Command(
                "real_robot.deploy", f"server={server}", "mode=replace", *robot, "policy.timeout_s=5.0",
                "teleop=leader", f"teleop.port={leader.port}", f"teleop.calibration={leader.calibration}",
                f"teleop.tty={os.ttyname(terminal)}", f"out={out}", *PATIENT,
            )  # fmt: skip
            try:
                command.says("c takes hold")
                command.says("policy ready")
                start = joints()
                os.write(keyboard, b"e\n")
                command.says("recording episode_0000")
                until(lambda: abs(joints()[0] - start[0]) > 0.05)  # the policy leads
                os.write(keyboard, b"c")
                command.says("must stand as the robot does")  # not from where it hangs
                assert not any("a person takes over" in line for line in command.said)
                person.put = None  # goes along with the robot
                time.sleep(0.5)
                os.write(keyboard, b"c")
                command.says("a person takes over")
                there = joints() + np.array([0.0, -0.3, 0.25, 0.1, -0.3, -0.3])
                person.put = there
                until(lambda: np.abs(joints() - there)[:5].max() < 0.06)
                time.sleep(0.5)
                os.write(keyboard, b"c")
                command.says("the person lets go")
                until(lambda: abs(joints()[0] - there[0]) > 0.05)  # the policy leads again, from there
                os.write(keyboard, b"\x7f1")
                command.says("episode_0000:")
                assert np.abs(joints() - there)[1:5].max() < 0.08
                assert command.ends() == 0
            finally:
                command.kill()
                person.leaves()
                os.close(keyboard)
                os.close(terminal)
    told = json.loads(command.said[-1])["led"]
    assert min(told["human"], told["policy"]) > 10
    check_recording(Episode(out / "episode_0000"), spec, there)
    check_export(out, tmp_path / "out.zarr")


def check_recording(episode: Episode, spec, there: np.ndarray) -> None:
    """Who led, what the policy would have done meanwhile, and no jump from one to the other."""
    _, rows = episode.table("command")
    leaders = [int(s) for s in rows["source"] if s in (POLICY, HUMAN)]
    turns = [a for i, a in enumerate(leaders) if i == 0 or a != leaders[i - 1]]
    assert turns == [POLICY, HUMAN, POLICY]
    human = rows[rows["source"] == HUMAN]
    assert np.abs(human["sent"][-1] - there)[:5].max() < 0.05
    proposed = np.isfinite(human["proposal"]).all(1)
    assert proposed.mean() > 0.5
    assert np.abs(human["proposal"] - human["target"])[proposed].max() > 0.05  # its own, not the hand's
    assert (np.abs(np.diff(rows["sent"], axis=0)) <= spec.velocity / 19.0 * (1 + 1e-6)).all()  # robot.control_hz
    _, teleop = episode.table("teleop")
    engaged = teleop["engaged"]
    assert engaged.any()
    assert not engaged[0]
    assert not engaged[-1]
    words = [text for _, process, _, text in episode.events() if process == "teleop"]
    assert [w for w in words if "person" in w] == ["a person takes over", "the person lets go"]


def check_export(out, store) -> None:
    """The flag and the proposal are in the data set, per step."""
    command = [sys.executable, "-m", "real_robot.episodes", "export", str(out), f"out={store}", "hz=10"]
    subprocess.run([*command, "max_gap=1.0"], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    data = zarr.open(str(store), mode="r")["data"]
    source, proposal, proposed = (np.asarray(data[k]) for k in ("source", "proposal", "proposed"))
    assert {POLICY, HUMAN} <= set(source.tolist())
    human = source == HUMAN
    assert proposed[human].mean() > 0.5
    assert np.isfinite(proposal).all()
    assert np.abs(proposal - np.asarray(data["action"]))[human & proposed].max() > 0.05
