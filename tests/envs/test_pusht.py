"""PushT: gym-pusht's physics behind our door, and a planner that solves it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="pip install 'deft[pusht]'")

from data.errors import ConfigError
from envs.collect import collect_demos, demo_seed, replay
from envs.make import make_env
from envs.pusht_planner import outline
from tests.envs.env_contract import EnvContract

PUSHT = {"suite": "pusht", "obs": ["state", "agent_pos", "keypoints"]}


class TestPushT(EnvContract):
    env_args = {**PUSHT, "obs": ["state", "agent_pos", "keypoints", "rgb"], "image_size": 48}  # noqa: RUF012
    steps = 25


def test_observations_are_gym_pushts():
    from gym_pusht.envs.pusht import PushTEnv as Theirs

    ours = make_env({**PUSHT, "obs": ["state", "agent_pos", "keypoints", "rgb"], "reward": "dense"})
    state, points, picture = (Theirs(obs_type=t) for t in ("state", "environment_state_agent_pos", "pixels"))
    frame = ours.reset(5)
    seen = [env.reset(seed=5)[0] for env in (state, points, picture)]
    for i in range(30):
        np.testing.assert_array_equal(frame["state"], seen[0].astype(np.float32))
        np.testing.assert_array_equal(frame["keypoints"], seen[1]["environment_state"].astype(np.float32))
        np.testing.assert_array_equal(frame["agent_pos"], seen[1]["agent_pos"].astype(np.float32))
        assert (np.abs(frame["rgb"].astype(int) - seen[2]).max(-1) > 8).mean() < 0.01
        action = np.float32([256 + 150 * np.sin(i / 4), 256 + 150 * np.cos(i / 3)])
        result, steps = ours.step(action), [env.step(action.astype(float)) for env in (state, points, picture)]
        frame, seen = ours.observe(), [step[0] for step in steps]
        assert result.reward == steps[0][1]
        assert result.measures == {"coverage": steps[0][4]["coverage"]}


def test_success_and_coverage_are_two_things():
    env = make_env({**PUSHT, "terminate_on_success": False})
    env.reset(2)
    results = []
    while not results or not results[-1].success:
        results.append(env.step(env.expert_action()))
        assert not results[-1].truncated
    covered = [r.measures["coverage"] for r in results if r.measures]
    assert all((c > 0.95) == r.success for c, r in zip(covered, results, strict=True))
    assert max(covered[:-1]) > 0.1  # not nothing before it is everything
    assert sum(r.reward for r in results) == 1.0


def test_the_planners_t_is_the_physics_t():
    from gym_pusht.envs.pusht import PushTEnv as Physics

    physics = Physics()
    physics.reset(seed=3)
    pose = np.array([*physics.block.position, physics.block.angle])
    corners, points = outline(pose), physics.get_keypoints(physics._block_shapes)
    for point in points:  # the rectangles' corners lie on the outline or in the middle of its edges
        distance = [np.linalg.norm(point - corner) for corner in corners]
        assert min(distance) < 1e-4


def test_demonstrations_replay_and_do_not_depend_on_workers(tmp_path):
    stores = [collect_demos(PUSHT, tmp_path / str(n), 2, demo_seed(0, 0), n_workers=n) for n in (1, 2)]
    for i in range(2):
        one, two = (store.episode(i) for store in stores)
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
        assert replay(stores[0], i)[0]
        assert 0.0 <= one["action"].min() <= one["action"].max() <= 512.0


@pytest.mark.slow
def test_the_planner_nearly_always_succeeds():
    env = make_env(PUSHT)
    successes = 0
    for seed in range(100, 120):
        env.reset(seed)
        result = env.step(env.expert_action())
        while not (result.terminated or result.truncated):
            result = env.step(env.expert_action())
        successes += result.success
    assert successes >= 18


def test_what_it_does_not_have_is_named():
    for bad in ({"obs": ["stat"]}, {"reward": "some"}, {"name": "pushl"}):
        with pytest.raises(ConfigError, match=r"state|sparse|pusht"):
            make_env({**PUSHT, **bad})
