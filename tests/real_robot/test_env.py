"""A simulated robot as an environment, and the lab it lives in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.errors import ConfigError
from envs.base import ScriptedEnv
from envs.chunk_env import ChunkEnv
from envs.make import make_env
from real_robot.control.machine import Machine
from real_robot.core.kinematics import Kinematics
from real_robot.core.types import SECOND
from real_robot.env import RobotEnv
from real_robot.simulators.lab import LabClock
from tests.real_robot.arms import check_limits


@pytest.fixture(scope="module")
def env():
    env = RobotEnv()
    yield env
    env.close()


def expert(env, seed: int, steps: int = 150) -> tuple[list, list]:
    env.reset(seed)
    frames, results = [], []
    for _ in range(steps):
        results.append(env.step(env.expert_action()))
        frames.append(env.observe())
        if results[-1].terminated or results[-1].truncated:
            break
    return frames, results


def test_the_hand_solves_it(env):
    assert isinstance(env, ScriptedEnv)
    for seed in range(3):
        frames, results = expert(env, seed)
        assert [r.reward for r in results] == [0.0] * (len(results) - 1) + [1.0]
        assert results[-1].terminated
        assert not results[-1].truncated
        assert np.linalg.norm(frames[-1]["cube"][:2] - [0.46, 0.16]) < 0.05


def test_an_episode_is_its_seed_whatever_ran_before(env):
    first = expert(env, 5, 25)[0]
    expert(env, 6, 13)
    again = expert(env, 5, 25)[0]
    assert all((a[k] == b[k]).all() for a, b in zip(first, again, strict=True) for k in a)
    assert not np.allclose(first[-1]["cube"], expert(env, 6, 25)[0][-1]["cube"])


def test_the_safety_layer_stands_between(env):
    """Whatever the actions: no limit is passed, and the table is not touched by the tool."""
    env.reset(0)
    lab, sent = env._lab, []
    lab.each.append(lambda now: sent.append(lab.controller.follower.q.copy()))
    rng, start = np.random.default_rng(0), lab.controller.follower.q.copy()
    faults = []
    lab.each.append(lambda now: faults.append(lab.controller.machine.state == Machine.FAULT))
    height = []
    tool = Kinematics(lab.spec)
    low = tool.forward(start)
    low[2, 3] = -0.1  # under the table
    down = tool.inverse(low, start)
    for k in range(60):
        q = lab.controller.follower.q
        env.step(rng.uniform(-0.2, 0.2, 7) if k < 30 else np.clip((down - q) / 0.15, -1, 1))
        height.append(lab.robot.world.data.site("tcp").xpos[2])
    lab.each.clear()
    assert not any(faults)
    assert height[29] - min(height) > 0.05
    assert min(height) > 0
    check_limits(lab.spec, np.array(sent), start)


def test_a_chunk_env_of_it_ends_and_begins_anew():
    options = {"suite": "real_robot.env:RobotEnv", "episode_length": 5, "obs": ["cube"]}
    with ChunkEnv(options, n_envs=2, n_obs_steps=2) as chunks:
        obs = chunks.reset()
        assert obs["cube"].shape == (2, 2, 3)
        step = chunks.step(torch.zeros(2, 8, 7))
        assert step.truncated.all()
        assert (step.n_steps == 5).all()


def test_its_contract_rebuilds_it(env):
    again = make_env(env.spec.env_args)
    assert again.spec == env.spec
    again.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"robot": "ur_sim"}, "cannot be simulated in place"),
        ({"obs": ["cubes"]}, "Did you mean 'cube'"),
        ({"reward": "dense"}, "sparse"),
        ({"space": "relative"}, "delta or absolute"),
        ({"rule": {"hz": 3.0}}, "does not fit"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        RobotEnv(**options)


def test_absolute_actions_lead_there_too():
    env = RobotEnv(space="absolute")
    assert expert(env, 1)[1][-1].terminated
    env.close()


def test_a_fault_is_recovered_from(env):
    env.reset(0)
    env._lab.robot.world.data.qpos[0] += 0.5  # pushed: far from what it was told
    env.step(np.zeros(7))
    assert env._lab.controller.machine.state in (Machine.RUN, Machine.PAUSE)
    env.step(np.zeros(7))


def test_a_picture(env):
    env.reset(0)
    picture = env.render(48, 64)
    assert picture.shape == (48, 64, 3)
    assert picture.std() > 10


def test_the_clock_ticks_at_every_period_and_never_within_a_tick():
    clock, ticks = LabClock(), []
    clock.period, clock.due = 10, SECOND

    def tick(due):
        ticks.append(due - SECOND)
        clock.sleep_until(due + 1000)

    clock.tick = tick
    clock.sleep_until(SECOND + 35)
    assert ticks == [0, 10, 20, 30]
    assert clock.now() == SECOND + 35
    clock.sleep_until(SECOND + 35)
    assert len(ticks) == 4
