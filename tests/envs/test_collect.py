"""Demonstrations: the same whatever the workers, resumable, and they succeed again when replayed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import envs.collect
from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError
from envs.collect import collect_demos, demo_seed, replay
from envs.make import make_env

TOY = {"suite": "toy", "obs": ["state", "pointcloud"], "episode_length": 7, "radius": 0.15}
SEED = demo_seed(0, 0)


def contents(store):
    data = {key: store.array(key).read(0, store.n_steps) for key in store.keys}
    return store.episode_ends.tolist(), store.episode_meta("seed").tolist(), data


def assert_same(a, b):
    assert contents(a)[:2] == contents(b)[:2]
    first, second = contents(a)[2], contents(b)[2]
    assert set(first) == set(second)
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


def test_does_not_depend_on_the_number_of_workers(tmp_path):
    stores = [collect_demos(TOY, tmp_path / str(n), 6, SEED, n_workers=n) for n in (0, 1, 3)]
    assert_same(stores[0], stores[1])
    assert_same(stores[0], stores[2])
    seeds = stores[0].episode_meta("seed").tolist()
    assert seeds == sorted(seeds)
    assert seeds[-1] > SEED + 5  # with so little time some attempts fail, and are not kept


def test_only_successes_with_a_short_tail(tmp_path):
    store = collect_demos(TOY, tmp_path / "demos", 4, SEED, n_workers=0, keep_after_success=2)
    for i in range(4):
        success = store.episode(i)["success"]
        assert success.any()
        assert len(success) <= success.argmax() + 3
        assert store.episode(i)["reward"].sum() == 1.0
        assert replay(store, i)[0]


def test_disturbed_demonstrations_are_recorded_as_executed(tmp_path):
    clean = collect_demos(TOY, tmp_path / "clean", 6, SEED, n_workers=0)
    noisy = collect_demos(TOY, tmp_path / "noisy", 6, SEED, n_workers=0, noise=0.2)
    assert_same(noisy, collect_demos(TOY, tmp_path / "again", 6, SEED, n_workers=2, noise=0.2))
    assert all(replay(noisy, i)[0] for i in range(6))
    # Against the expert's own answers in the states that were recorded
    env, off = make_env(TOY), []
    for i in range(6):
        env.reset(int(noisy.episode_meta("seed")[i]))
        for action in noisy.episode(i)["action"]:
            off.append((action - env.expert_action()) / ((env.spec.action_high - env.spec.action_low) / 2))
            env.step(action)
    off = np.concatenate([o for o in off if np.abs(o).max() > 0])
    assert 0.05 < np.std(off) < 0.25  # some of it is cut off at the limits
    env.reset(int(noisy.episode_meta("seed")[0]))
    for action, meant in zip(noisy.episode(0)["action"], noisy.episode(0)["expert_action"], strict=True):
        np.testing.assert_array_equal(meant, env.expert_action())
        env.step(action)
    assert "expert_action" not in clean.keys
    with pytest.raises(DataError, match=r"noise 0\.0, not 0\.2"):
        collect_demos(TOY, clean.path, 7, SEED, n_workers=0, noise=0.2)


def test_extends_a_store_that_stopped_early(tmp_path):
    told = []
    collect_demos(TOY, tmp_path / "part", 3, SEED, n_workers=0)
    part = collect_demos(TOY, tmp_path / "part", 7, SEED, n_workers=0, progress=lambda i, n: told.append((i, n)))
    whole = collect_demos(TOY, tmp_path / "whole", 7, SEED, n_workers=0)
    assert_same(part, whole)
    assert told == [(4, 7), (5, 7), (6, 7), (7, 7)]
    again = collect_demos(TOY, tmp_path / "part", 5, SEED, n_workers=0)
    assert again.n_episodes == 7


def test_frames_and_actions_belong_together(tmp_path):
    """Frame t is what the expert saw when it chose action t."""
    store = collect_demos(TOY, tmp_path / "demos", 1, SEED, n_workers=0)
    episode = store.episode(0)
    env = make_env(TOY)
    frame = env.reset(int(store.episode_meta("seed")[0]))
    for t, action in enumerate(episode["action"]):
        np.testing.assert_array_equal(episode["state"][t], frame["state"])
        env.step(action)
        frame = env.observe()


def test_metaworld_demonstrations_replay(tmp_path):
    args = {"suite": "metaworld", "name": "window-close-v3", "obs": ["pointcloud", "agent_pos"], "n_points": 64}
    store = collect_demos(args, tmp_path / "demos", 2, SEED, n_workers=2)
    assert store.task is not None
    assert store.task.env_args["name"] == "window-close-v3"
    assert set(store.task.versions) == {"mujoco", "metaworld"}
    assert store.episode(0)["action"].dtype == np.float32
    assert np.abs(store.episode(0)["action"]).max() <= 1.0
    reopened = EpisodeStore.open(tmp_path / "demos")
    assert all(replay(reopened, i)[0] for i in range(2))
    success, seen = replay(reopened, 0, ["agent_pos", "state"])  # one recorded then, one not
    assert success
    np.testing.assert_array_equal(seen["agent_pos"], reopened.episode(0)["agent_pos"])
    assert seen["state"].shape == (len(seen["agent_pos"]), 39)


def test_another_environment_or_seed_is_refused(tmp_path):
    collect_demos(TOY, tmp_path / "demos", 1, SEED, n_workers=0)
    with pytest.raises(DataError, match=r"another environment \(radius: 0.15 there, 0.2 here\)"):
        collect_demos({**TOY, "radius": 0.2}, tmp_path / "demos", 2, SEED, n_workers=0)
    with pytest.raises(DataError, match="collected from seed"):
        collect_demos(TOY, tmp_path / "demos", 2, SEED + 1, n_workers=0)


def test_a_store_of_another_simulator_version_is_not_extended(tmp_path, monkeypatch):
    path = tmp_path / "demos"
    with monkeypatch.context() as other:
        make = envs.collect.make_env

        def older(env_args):
            env = make(env_args)
            env.spec = dataclasses.replace(env.spec, versions={"toy": "0.1"})
            return env

        other.setattr(envs.collect, "make_env", older)
        collect_demos(TOY, path, 2, SEED, n_workers=0)
    assert collect_demos(TOY, path, 2, SEED, n_workers=0).n_episodes == 2
    with pytest.raises(DataError, match="not extended"):
        collect_demos(TOY, path, 3, SEED, n_workers=0)


def test_a_hopeless_expert_is_given_up(tmp_path):
    with pytest.raises(DataError, match="succeeded in only 0 of"):
        collect_demos({**TOY, "episode_length": 1, "radius": 1e-6}, tmp_path / "demos", 1, SEED, n_workers=0)


def test_no_expert_no_demonstrations(tmp_path, monkeypatch):
    import envs.toy

    monkeypatch.delattr(envs.toy.ToyEnv, "expert_action")
    with pytest.raises(ConfigError, match="no scripted expert"):
        collect_demos(TOY, tmp_path / "demos", 1, SEED, n_workers=0)


def obstacle(**options):
    return make_env({"suite": "toy", "obs": ["state"], "obstacle": 0.4, "episode_length": 60, **options})


def test_an_obstacle_that_must_not_be_touched():
    """Straight on is the end of an episode, and no success; where it only stands in the way, nothing happens."""
    straight = np.array([1.0, 0.0], np.float32)
    for fragile in (False, True):
        env = obstacle(fragile=fragile)
        env.reset(0)
        env._position[1] = 0.0
        ends = [env.step(straight) for _ in range(20)]
        assert not any(end.success for end in ends)
        assert any(end.terminated for end in ends) == fragile


@pytest.mark.parametrize("fragile", [False, True])
def test_an_expert_that_goes_either_way(fragile):
    """Both sides of the toy's obstacle are taken, from starts that look the same; an episode keeps to its side."""
    env = obstacle(either_side=True, fragile=fragile)
    sides = []
    for seed in range(40):
        env.reset(seed)
        path = []
        for _ in range(60):
            path.append(env.observe()["state"][:2])
            if (end := env.step(env.expert_action())).terminated:
                break
        assert end.success, f"no success from seed {seed}"
        middle = min(path, key=lambda p: abs(p[0]))
        sides.append(np.sign(middle[1]))
    assert 10 < sides.count(1.0) < 30
