"""Gymnasium's environments behind our door."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from data.errors import ConfigError, ContractError
from envs.evaluate import evaluate, summarise
from envs.make import make_env
from tests.envs.env_contract import EnvContract

SMALL = {"suite": "gymnasium", "id": "Small-v0", "module": "tests.envs.small_gym", "obs": ["state"]}


def small(**options):
    return make_env({**SMALL, **options})


class TestSmall(EnvContract):
    env_args = {**SMALL, "obs": ["state", "rgb", "robot.pos"], "measures": ["height"]}  # noqa: RUF012


class TestPendulum(EnvContract):
    env_args = {"suite": "gymnasium", "id": "Pendulum-v1", "obs": ["state"], "success_return": -200}  # noqa: RUF012


class TestToy(EnvContract):
    env_args = {"suite": "toy", "obs": ["state", "rgb_top"]}  # noqa: RUF012


def test_spaces_become_fields():
    env = small(obs=["state", "rgb", "robot.count"])
    fields = {key: (f.shape, f.dtype, f.kind) for key, f in env.spec.obs.items()}
    assert fields == {
        "state": ((3,), "float32", "state"),
        "cam": ((6, 8, 3), "uint8", "rgb"),
        "robot.count": ((1,), "float32", "state"),
    }
    assert env.spec.control_hz == 5.0
    frame = env.reset(0)
    np.testing.assert_array_equal(frame["state"][:1], frame["robot.count"])
    with pytest.raises(ConfigError, match=r"no observation 'pose' among .*robot\.pos: Box"):
        small(obs=["pose"])
    with pytest.raises(ConfigError, match=r"'odd' is Discrete\(3\)"):
        small(obs=["odd"], kwargs={"odd": True})
    assert "odd" not in small(kwargs={"odd": True}).spec.obs


def test_an_episode_equals_gymnasiums_own():
    ours, theirs = make_env({**SMALL, "id": "Pendulum-v1", "success_return": 0.0}), gymnasium.make("Pendulum-v1")
    seen, _ = theirs.reset(seed=7)
    np.testing.assert_array_equal(ours.reset(7)["state"], seen)
    for i in range(200):
        action = np.float32([2 * np.sin(i)])
        result = ours.step(action)
        seen, reward, terminated, truncated, _ = theirs.step(action)
        np.testing.assert_array_equal(ours.observe()["state"], seen)
        assert (result.reward, result.terminated, result.truncated) == (reward, terminated, truncated)
    assert truncated


def test_uneven_limits_are_scaled():
    env = small()
    env.reset(0)
    for unit, native in (([-1, -1], [-1, 0]), ([1, 1], [1, 4]), ([0, -0.5], [0, 1])):
        env.step(np.array(unit))
        np.testing.assert_allclose(env._env.unwrapped.done[-1], native, atol=1e-6)  # pyright: ignore
    assert (env.spec.action_low, env.spec.action_high) == (-1.0, 1.0)


def test_a_space_without_limits_needs_some():
    with pytest.raises(ConfigError, match=r"task\.action_low=-1 task\.action_high=1"):
        small(kwargs={"unbounded": True})
    spec = small(kwargs={"unbounded": True}, action_low=-2, action_high=3).spec
    assert (spec.action_low, spec.action_high) == (-2.0, 3.0)
    with pytest.raises(ConfigError, match="Discrete"):
        make_env({**SMALL, "id": "CartPole-v1"})


def up(env, n=12):
    return [env.step(np.array([0.0, 1.0])) for _ in range(n)]


def test_success_ends_an_episode_unless_told_otherwise():
    env = small(reward="sparse")
    env.reset(0)
    results = []
    while not results or not results[-1].terminated:
        results += up(env, 1)
    assert [r.success for r in results] == [False] * (len(results) - 1) + [True]
    assert [r.reward for r in results] == [float(r.success) for r in results]
    env = small(reward="sparse", terminate_on_success=False)
    env.reset(0)
    results = up(env)
    assert sum(r.success for r in results) > 1
    assert sum(r.reward for r in results) == 1.0
    assert results[-1].truncated
    assert not any(r.terminated for r in results)


def test_what_success_is_must_be_said():
    with pytest.raises(ConfigError, match=r"does not tell success.*height.*task\.success_return=R"):
        small(kwargs={"key": "other"})
    with pytest.raises(ConfigError, match=r"reward_threshold: 90"):
        make_env({**SMALL, "id": "MountainCarContinuous-v0"})
    env = small(success_key="height", success_threshold=0.8)
    env.reset(0)
    results = up(env, 5)
    assert results[-1].success
    env = small(success_key="hight")
    env.reset(0)
    with pytest.raises(ContractError, match=r"never had \['hight'\]"):
        up(env)


def test_a_return_is_judged_at_the_end():
    for wanted, success in ((5.0, True), (50.0, False)):
        env = small(success_return=wanted)
        env.reset(0)
        results = up(env)
        assert [r.success for r in results] == [False] * 11 + [success]
        assert results[-1].truncated


def test_a_reset_that_forgets_its_seed_is_refused():
    with pytest.raises(ConfigError, match=r"same seed differ.*task\.rebuild=true"):
        small(kwargs={"seeded": False})
    with pytest.raises(ConfigError, match="not even when made anew"):
        small(kwargs={"seeded": False}, rebuild=True)
    env, anew = small(), small(rebuild=True)
    np.testing.assert_array_equal(env.reset(3)["state"], anew.reset(3)["state"])


def test_what_cannot_be_made_is_explained():
    with pytest.raises(ConfigError, match=r"Did you mean 'Small-v0'"):
        small(id="Smal-v0")
    with pytest.raises(ConfigError, match=r"task\.module=no_such"):
        small(module="no_such")
    with pytest.raises(ConfigError, match=r"task\.kwargs=\{'wings': 2\}"):
        small(kwargs={"wings": 2})
    with pytest.raises(ConfigError, match=r"task\.episode_length=N"):
        small(id="Endless-v0")
    assert small(id="Endless-v0", episode_length=9).spec.env_args["episode_length"] == 9
    with pytest.raises(ConfigError, match=r"task\.id="):
        small(id=None)


def test_an_evaluation_reports_greatest_and_last_measures():
    def act(obs, episode):
        return torch.tensor([0.0, 1.0 - 2.0 * (episode.generator.initial_seed() % 2)]).expand(1, 5, 2)

    args = {**SMALL, "measures": ["height"], "terminate_on_success": False}
    results = evaluate(act, args, range(4), n_envs=2, n_obs_steps=1, n_action_steps=5)
    env = make_env(args)
    heights = []
    for result in results:
        env.reset(result.seed)
        steps = [env.step(action).measures for action in result.actions]
        heights.append([s["height"] for s in steps if s])
        assert result.measures == {"height": (max(heights[-1]), heights[-1][-1])}
    summary = summarise(results)
    assert summary["mean_max_height"] == pytest.approx(np.mean([max(h) for h in heights]))
    assert summary["mean_final_height"] == pytest.approx(np.mean([h[-1] for h in heights]))
    with pytest.raises(ContractError, match=r"info\['word'\] should be a number"):
        small(measures=["word"])
