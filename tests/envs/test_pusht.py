"""PushT: gym-pusht's physics behind our door, and a planner that solves it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="pip install 'deft[pusht]'")

from data.errors import ConfigError
from envs.collect import collect_demos, demo_seed, replay
from envs.make import make_env
from envs.pusht_planner import PushPlanner, _continued, outline
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


GOAL = np.array([256.0, 256.0, np.pi / 4])


def test_a_push_does_the_same_wherever_the_t_lies():
    from gym_pusht.envs.pusht import PushTEnv as Physics

    planner, rng = PushPlanner(GOAL), np.random.default_rng(0)
    for push in range(0, len(planner._starts), 17):
        pose = np.array([*rng.uniform(200, 300, 2), rng.uniform(-3, 3)])
        c, s = np.cos(pose[2]), np.sin(pose[2])
        turn = np.array([[c, -s], [s, c]])
        physics = Physics()
        physics.reset(seed=0)
        physics.agent.position = tuple(turn @ planner._starts[push] + pose[:2])
        physics.agent.velocity = tuple(turn @ planner._headings[push] * 120.0)  # pixels a second, 1.2 in a step
        physics.block.angle = pose[2]
        physics.block.position = tuple(pose[:2])
        physics.block.velocity, physics.block.angular_velocity = (0.0, 0.0), 0.0
        for body in (physics.agent, physics.block):
            physics.space.reindex_shapes_for_body(body)
        for _ in range(60):
            physics.space.step(physics.dt)
        want = _continued(pose, planner._effects[push, 59])
        np.testing.assert_allclose([*physics.block.position, physics.block.angle], want, atol=0.05)


def test_error_after_two_pushes_by_brute_force():
    planner = PushPlanner(GOAL)
    poses = np.random.default_rng(1).uniform((100, 100, -3), (400, 400, 3), (5, 3))
    after = _continued(poses[:, None], np.broadcast_to(planner._second, (5, *planner._second.shape)))
    distance = np.sqrt(((outline(after) - outline(GOAL)) ** 2).sum(-1).mean(-1))
    want = distance + 3.0 * np.minimum(distance, 3.0)
    np.testing.assert_allclose(planner._error(after), want, rtol=1e-6)
    np.testing.assert_allclose(planner._error_after_second(poses), want, rtol=1e-3)


def test_the_planner_keeps_no_plan():
    used, rng = PushPlanner(GOAL), np.random.default_rng(2)
    for _ in range(5):
        agent, pose = rng.uniform(30, 480, 2), np.array([*rng.uniform(150, 350, 2), rng.uniform(-3, 3)])
        np.testing.assert_array_equal(used.action(agent, pose), PushPlanner(GOAL).action(agent, pose))


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
