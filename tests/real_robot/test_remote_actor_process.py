"""The acting half on the robot's machine and its learner, each in a process of its own, over a network that fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from real_robot.core.actions import ActionSpace
from real_robot.simulators.network import Network
from tests.real_robot.buses import ENVIRONMENT, ROOT
from tests.real_robot.command import PATIENT, Command, brief_base
from tests.real_robot.decisions import Decisions


class Learner:
    """``train.py`` in a process of its own."""

    def __init__(self, run, *words):
        self.run = run
        command = [sys.executable, "train.py", *words]
        self.process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)  # fmt: skip

    def saved(self, steps, seconds=60):
        """Waits until so many steps are."""
        end = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, self.process.communicate()[0][-3000:]
            assert time.monotonic() < end
            if (self.run / "state.pt").exists() and state_of(self.run)["step"] >= steps:
                return
            time.sleep(0.2)

    def finishes(self, seconds):
        told = self.process.communicate(timeout=seconds)[0]
        assert self.process.returncode == 0, told[-3000:]


def state_of(run):
    return torch.load(run / "state.pt", weights_only=False)


@pytest.mark.slow
def test_over_two_processes_a_bad_network_and_a_killed_learner(tmp_path, monkeypatch):
    """In real time: what the robot was told to do is what is stored, one for one, and it never waited for that."""
    run, shm = tmp_path / "run", tmp_path / "shm"
    base = brief_base(tmp_path)
    shm.mkdir()
    monkeypatch.setitem(ENVIRONMENT, "DEFT_SHM", str(shm))
    robot, network, watch, learner = Command("real_robot.live", "robot=mujoco", "port=0", *PATIENT), None, None, None
    try:
        network = Network(robot.says("listening on").split()[-1], delay=0.02)
        robot.says("INIT -> READY", 60)
        watch = Decisions(next(shm.glob("deft-*")), 8)
        learner = Learner(
            run, "algo=residual", f"base={base}", "task=live", f"task.server={network.address}", "task.actor=robot",
            "task.episode_length=80", "algo.env_steps=640", "algo.learning_starts=16", "algo.warmup_steps=80",
            "algo.save_every=40", "eval.n_episodes=0", "eval.every_n_episodes=0", "algo.demos=false", f"run_dir={run}",
        )  # fmt: skip
        learner.saved(40)
        while len(watch.seen) % 10 not in (2, 3):  # in mid-episode
            time.sleep(0.05)
        network.cut()
        cut = time.monotonic()
        time.sleep(5)
        stored = state_of(run)
        assert stored["actor"]["stored"] <= sum(t <= cut for t, _ in watch.seen)  # nothing arrives ...
        network.mend()
        during = [t for t, _ in watch.seen if cut < t < cut + 5]
        assert len(during) >= 4  # ... and the robot goes on, one decision after the other
        assert sorted(np.diff(during))[len(during) // 2 - 1] < 1.2
        learner.saved(stored["step"] + 80)
        learner.process.send_signal(signal.SIGKILL)
        learner.process.communicate()
        killed = state_of(run)["step"]
        learner = Learner(run, f"resume={run}")
        learner.finishes(200)
    finally:
        for end in (watch, network):
            if end is not None:
                end.close()
        if learner is not None and learner.process.poll() is None:
            learner.process.kill()
        robot.kill() if robot.process.poll() is not None else robot.ends()
    assert killed < 640
    state = state_of(run)
    rows = state["algo"]["core"]["replay"]["rows"]
    acted = rows["action"]["kept"][:, 0].numpy()  # unit actions, which are those of the environment here
    assert len(acted) == state["actor"]["stored"]
    document = json.loads((run / "checkpoint" / "config.json").read_text())
    space = ActionSpace.from_dict(document["task"]["env_args"]["actions"])
    told = np.stack([space.encode(points[1:], points[:-1]) for _, points in watch.seen[: len(acted)]])
    assert len(watch.seen) >= len(acted) >= 80
    np.testing.assert_allclose(acted[..., :6], told[..., :6], atol=2e-3)
    assert len(np.unique(acted.reshape(len(acted), -1).round(5), axis=0)) == len(acted)
    assert state["algo"]["core"]["counters"][1] > 500  # updates
