"""All 50 tasks: seeds are everything, experts succeed, observations are what the spec says."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from data.errors import ConfigError, ContractError
from data.spec import TaskSpec
from envs.make import make_env
from envs.metaworld import metaworld_expert, task_names
from envs.seeds import demo_seed, rollout_seed


def env_of(name, **options):
    return make_env({"suite": "metaworld", "name": name, "obs": ["state", "agent_pos"], **options})


def trace(env, seed, steps):
    """Everything of an episode under the expert, bit by bit."""
    out = [env.reset(seed)["state"].tobytes()]
    for _ in range(steps):
        action = env.expert_action()
        result = env.step(action)
        frame = env.observe()
        out.append((action.tobytes(), result, frame["state"].tobytes(), frame["agent_pos"].tobytes()))
    return out


def test_there_are_fifty_tasks():
    assert len(task_names()) == 50


@pytest.mark.parametrize("name", task_names())
def test_an_episode_is_a_function_of_its_seed(name):
    env = env_of(name, reward="dense", terminate_on_success=False)
    fresh = trace(env, 11, 6)
    other = trace(env, 12, 25)
    assert fresh[0] != other[0]
    assert trace(env, 11, 6) == fresh


def test_two_objects_agree_and_numpys_global_generator_does_not_matter():
    first, second = env_of("box-close-v3"), env_of("box-close-v3")
    np.random.seed(0)  # noqa: NPY002
    a = trace(first, 5, 10)
    np.random.seed(1)  # noqa: NPY002
    assert trace(second, 5, 10) == a


@pytest.mark.parametrize("name", ["lever-pull-v3", "drawer-open-v3", "window-close-v3", "pick-place-v3"])
def test_the_first_state_is_that_of_the_scene(name):
    env = env_of(name)
    for seed in (4, 5):  # Meta-World's own reset tells of some tasks where things were the episode before
        first = env.reset(seed)["state"]
        mujoco.mj_forward(env.model, env.data)
        assert np.allclose(first[:18], env._sim._get_obs()[:18], atol=1e-6)


def test_initial_conditions_are_many():
    env = env_of("door-open-v3")
    starts = {env.reset(seed)["state"][4:7].tobytes() for seed in range(60)}
    assert len(starts) == 60  # gym.make would give at most 50


# Everyday tasks, and ones whose reset is unusual: a lid, a peg, a lock, a hole, a wall.
EXPERTS = (
    "door-open-v3", "window-close-v3", "drawer-open-v3", "pick-place-v3", "peg-insert-side-v3",
    "assembly-v3", "pick-out-of-hole-v3", "door-unlock-v3", "reach-wall-v3",
)  # fmt: skip


@pytest.mark.parametrize("name", EXPERTS)
def test_the_expert_succeeds(name):
    env = make_env({"suite": "metaworld", "name": name, "obs": []})
    successes = 0
    for seed in range(3):
        env.reset(seed)
        total = 0.0
        while True:
            result = env.step(env.expert_action())
            total += result.reward
            if result.terminated or result.truncated:
                break
        successes += result.terminated
        assert total == float(result.terminated)
    assert successes >= 2


def test_time_out_and_going_on_after_success():
    env = env_of("reach-v3", episode_length=100, terminate_on_success=False)
    env.reset(0)
    results = [env.step(env.expert_action()) for _ in range(100)]
    assert results[-1].truncated
    assert not any(r.terminated for r in results)
    assert not any(r.truncated for r in results[:-1])
    assert sum(r.success for r in results) > 1
    assert sum(r.reward for r in results) == 1.0


def test_spec_describes_the_frames_and_rebuilds_the_environment(monkeypatch):
    monkeypatch.setenv("DEFT_RENDER", "raycast")
    keys = ["state", "agent_pos", "goal", "pointcloud", "rgb_corner", "depth_corner2"]
    env = make_env({"suite": "metaworld", "name": "drawer-close-v3", "obs": keys, "n_points": 64, "image_size": 32})
    spec = env.spec
    assert abs(spec.control_hz - 80.0) < 1e-9
    assert set(spec.versions) == {"mujoco", "metaworld", "renderer"}
    frame = env.reset(0)
    assert list(frame) == keys
    for key, field in spec.obs.items():
        assert frame[key].shape == field.shape
        assert frame[key].dtype == field.dtype
    again = make_env(TaskSpec.from_dict(spec.to_dict()).env_args)
    assert again.spec == spec
    repeated = again.reset(0)
    assert all(np.array_equal(repeated[key], frame[key]) for key in keys)


def test_goal_is_hidden_from_the_robot_state():
    env = make_env({"suite": "metaworld", "name": "reach-v3", "obs": ["agent_pos"], "goal": True})
    assert list(env.spec.obs) == ["agent_pos", "goal"]
    frames = [env.reset(seed) for seed in (0, 1)]
    assert np.ptp([f["goal"] for f in frames], axis=0).max() > 0.01
    state = env_of("reach-v3").reset(0)["state"]
    np.testing.assert_array_equal(state[36:39], frames[0]["goal"])


def test_a_captured_moment_is_observed_as_it_was(monkeypatch):
    monkeypatch.setenv("DEFT_RENDER", "raycast")
    keys = ["state", "agent_pos", "pointcloud", "depth_corner", "rgb_gripperPOV"]
    env = make_env({"suite": "metaworld", "name": "drawer-open-v3", "obs": keys, "image_size": 24})
    env.reset(0)
    moments, frames = [], []
    for _ in range(12):
        env.step(env.expert_action())
        moments.append(env.capture())
        frames.append(env.observe())
    for moment, frame in zip(moments, frames, strict=True):
        late = env.observe(moment)
        assert all(np.array_equal(late[key], frame[key]) for key in keys)
    assert all(np.array_equal(v, frames[-1][k]) for k, v in env.observe().items())


def test_bad_actions_are_refused():
    env = env_of("reach-v3")
    env.reset(0)
    with pytest.raises(ContractError, match=r"shape \(3,\), expected \(4,\)"):
        env.step(np.zeros(3))
    with pytest.raises(ContractError, match="not finite"):
        env.step(np.array([0, np.nan, 0, 0]))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"name": "door-opn-v3"}, "Did you mean 'door-open-v3'"),
        ({"name": "reach-v3", "obs": ["pointclod"]}, "'pointcloud'"),
        ({"name": "reach-v3", "obs": ["rgb_cornr"]}, "Did you mean 'corner'"),
        ({"name": "reach-v3", "obs": ["pointcloud"], "cameras": ["gripperPOV"]}, "moves"),
        ({"name": "reach-v3", "n_point": 5}, "'n_points'"),
        ({"name": "reach-v3", "reward": "spars"}, "'sparse' or 'dense'"),
        ({}, "needs the option"),
        ({"suite": "metawrld", "name": "reach-v3"}, "'metaworld'"),
        ({"suite": "no.such.module:thing"}, "cannot be loaded"),
    ],
)
def test_mistakes_name_what_was_meant(args, message):
    with pytest.raises(ConfigError, match=message):
        make_env({"suite": "metaworld", **args})
    with pytest.raises(ConfigError, match="Did you mean"):
        metaworld_expert("door-opn-v3")


def test_demonstration_rollout_and_evaluation_seeds_are_disjoint():
    demos = {demo_seed(run, i) for run in range(5) for i in (0, 1, 99_999)}
    rollouts = {rollout_seed(run, env, episode) for run in range(3) for env in (0, 4095) for episode in (0, 10**6)}
    assert len(demos) == 15
    assert len(rollouts) == 12
    assert min(demos) >= 2**31
    assert min(rollouts) > max(demos)
