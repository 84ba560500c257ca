"""Trials in simulated time: what a demonstration did, a policy that answers it does again, in every mode."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs.loader import load_config
from data.errors import ConfigError
from real_robot.env import RobotEnv
from real_robot.rehearsal import rehearse
from real_robot.remote.keys import CHUNK, RESET
from real_robot.simulators.lab import Lab
from real_robot.trials import Trials

SEEDS = [3, 4]
HORIZON, EVERY = 16, 8


@pytest.fixture(scope="module")
def demonstrations():
    """Metadata of a policy for the task, and (T, n) actions of the scripted hand by the cube's place."""
    env, found = RobotEnv(), {}
    for seed in SEEDS:
        cube, actions = tuple(env.reset(seed)["cube"][:2].round(3)), []
        for _ in range(150):
            actions.append(env.expert_action())
            if env.step(actions[-1]).terminated:
                break
        found[cube] = np.concatenate([actions, np.tile(actions[-1] * ([0] * 6 + [1]), (HORIZON, 1))])
    spec = env.spec
    metadata = {
        "task": spec.name,
        "observation": {k: {"shape": list(f.shape), "dtype": f.dtype, "kind": f.kind} for k, f in spec.obs.items()},
        "action": {"shape": list(spec.action.shape), "low": -1.0, "high": 1.0},
        "control_hz": spec.control_hz,
        "rule": spec.env_args["rule"],
        "actions": spec.env_args["actions"],
        "n_obs_steps": 2,
        "n_action_steps": EVERY,
        "execution": {"name": "sync"},
    }
    env.close()
    return metadata, found


class Repeats:
    """Answers the demonstration that began like this, from where it is in it."""

    def __init__(self, demonstrations):
        self.metadata, self._found = demonstrations
        self._at = 0

    def infer(self, obs):
        self._at = 0 if obs.get(RESET) else self._at + EVERY
        if self._at == 0:
            places = np.array(list(self._found))
            self._actions = list(self._found.values())[np.linalg.norm(places - obs["cube"][-1, :2], axis=1).argmin()]
        chunk = self._actions[self._at : self._at + HORIZON]
        chunk = chunk if len(chunk) else self._actions[-1:]
        return {"actions": chunk[:EVERY], CHUNK: chunk}

    def close(self):
        pass


def deploy(mode: str, **changes) -> dict:
    overrides = {"checkpoint": "none", "mode": mode, "trial_seconds": 12.0, "every": EVERY, **changes}
    return load_config("deploy", [f"{k}={v}" for k, v in overrides.items()])


@pytest.mark.parametrize(
    ("mode", "inject"),
    [
        ("replace", 0.15),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in (("sync", 0.0), ("replace", 0.0), ("ensemble", 0.0))),
    ],
)
def test_a_demonstration_is_done_again(demonstrations, mode, inject):
    told = []
    found = rehearse(
        deploy(mode, inject=inject), Repeats(demonstrations), SEEDS, finished=lambda *row: told.append(row)
    )
    assert [(seed, success) for seed, success, _ in found.trials] == [(seed, True) for seed in SEEDS]
    assert told == found.trials
    assert found.success_rate == 1
    for sent, (_, _, seconds) in zip(found.sent, found.trials, strict=True):
        assert len(sent) == pytest.approx(100 * seconds, abs=2)
        # of the UR5e's limits in configs/robot/mujoco.yaml, what differences of one period show
        assert (np.abs(np.diff(sent, axis=0)[:, :6]) <= 1.5 / 100 + 1e-9).all()


def test_the_same_seeds_give_the_same_trials(demonstrations):
    first, again = (rehearse(deploy("replace"), Repeats(demonstrations), SEEDS[:1]) for _ in range(2))
    assert first.trials == again.trials
    np.testing.assert_array_equal(first.sent[0], again.sent[0])


def test_the_command(demonstrations, monkeypatch, capsys):
    from real_robot.commands.deploy import main

    words = ["robot=mujoco", "mode=replace", "trials=1", "trial_seconds=12.0", "seed=3", "realtime=false"]
    address = "real_robot.agent.process.build_client"
    monkeypatch.setattr(address, lambda policy, mode: Repeats(demonstrations))
    assert main(["checkpoint=somewhere", *words]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["success_rate"], told["n_trials"], told["realtime"]) == (1.0, 1, False)
    assert told["jerk_rms"] > 0
    with pytest.raises(ConfigError, match="trials=50"):
        main(["checkpoint=x", "realtime=false"])
    with pytest.raises(ConfigError, match=r"either checkpoint=RUN_DIR, or server="):
        main(["robot=mujoco"])
    with pytest.raises(ConfigError, match=r"data: that is for whoever loads the checkpoint"):
        main(["server=ws://there:8000", "data=cube.zarr"])


def test_a_mode_that_the_policy_was_not_loaded_for(demonstrations):
    with pytest.raises(ConfigError, match="mode=rtc"):
        rehearse(deploy("rtc"), Repeats(demonstrations), SEEDS)


def test_an_arm_in_a_knot_is_put_back():
    config = deploy("replace")
    lab = Lab(config)
    done = []
    trials = Trials(
        lab.session, lab.spec, [1], seconds=0.5, ready=lambda: True, finished=lambda *row: done.append(row),
        hand=config["hand"],
    )  # fmt: skip
    knot = np.array([-1.747, 0.176, 0.018, -3.76, 1.571, -2.871])
    lab.robot.world.data.qpos[:6] = lab.robot.world.data.ctrl[:6] = knot
    lab.each.append(trials.step)
    for _ in range(60):
        lab.clock.advance(1.0)
        if done:
            break
    lab.close()
    assert [(seed, success) for seed, success, _ in done] == [(1, False)]
