"""The follower: whatever it is asked for, no limit is ever passed, and where it can go it goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError
from real_robot.control.follower import Clip, Follower
from real_robot.control.workspace import Workspace
from real_robot.core.kinematics import Kinematics
from real_robot.robots.mujoco_arm import MujocoArm
from tests.real_robot.arms import check_limits, small_spec

BOX = [[-0.2, -0.4, -0.25], [0.65, 0.4, 0.5]]


def wild_targets(rng: np.random.Generator, n: int, steps: int):
    """Jumps, trembling, ramps, standing still; targets far outside; velocities that fit nothing."""
    target, velocity = np.zeros(n), None
    while steps > 0:
        kind, length = rng.integers(5), int(rng.integers(1, 120))
        drift = rng.normal(0, 0.02, n)
        if kind == 0:
            target = rng.uniform(-8, 8, n) * 10.0 ** rng.integers(-2, 3)
        velocity = rng.normal(0, 4, n) if rng.random() < 0.4 else None
        for _ in range(min(length, steps)):
            if kind == 1:
                target = rng.uniform(-2.2, 2.2, n)
            elif kind == 2:
                target = target + rng.normal(0, 0.5, n)
            elif kind == 3:
                target = target + drift
            yield (None if kind == 4 and rng.random() < 0.5 else target), velocity
        steps -= length


def follow(follower: Follower, rng, steps: int) -> np.ndarray:
    sent = []
    for target, velocity in wild_targets(rng, follower.spec.n, steps):
        if target is None:
            follower.brake()
        else:
            follower.step(target, velocity)
        sent.append(follower.q.copy())
    return np.array(sent)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_no_limit_is_passed(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 8))
    limits = {"velocity": rng.uniform(0.1, 4, n), "acceleration": rng.uniform(0.5, 20, n)}
    spec = small_spec(
        joints=tuple(map(str, range(n))), lower=-rng.uniform(0.05, 3, n), upper=rng.uniform(0.05, 3, n),
        jerk=rng.uniform(5, 500, n), home=None, control_hz=float(rng.choice([50, 125, 200, 500])), **limits,
    )  # fmt: skip
    follower = Follower(spec)
    start = follower.q.copy()
    check_limits(spec, follow(follower, rng, 600), start)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_limit_is_passed_in_a_million_steps(seed):
    spec = small_spec()
    follower = Follower(spec)
    check_limits(spec, follow(follower, np.random.default_rng(seed), 260_000), np.zeros(3))


@pytest.mark.parametrize("seed", range(1))
def test_the_tool_stays_in_its_workspace(tmp_path, seed):
    spec = small_spec(tmp_path, lower=[-2.5] * 3, upper=[2.5] * 3)
    kinematics = Kinematics(spec)
    workspace = Workspace(
        kinematics, box=BOX, planes=[[[0, 0, 1], -0.2]], spheres=[[[0.3, 0.25, 0.1], 0.1]], margin=0.004
    )
    follower = Follower(spec, workspace.outside)
    follower.reset(np.array([0.0, 0.6, -1.0]))
    sent, clips = [], Clip.NONE
    for target, velocity in wild_targets(np.random.default_rng(seed), 3, 1500):
        clips |= follower.brake() if target is None else follower.step(target, velocity)
        sent.append(follower.q.copy())
    check_limits(spec, np.array(sent), np.array([0.0, 0.6, -1.0]))
    assert max(workspace.depth(kinematics.position(q)) for q in sent) <= 0
    assert Clip.WORKSPACE in clips


def test_it_gets_where_it_may_and_runs_along_with_what_moves():
    spec = small_spec()
    follower = Follower(spec)
    goal = np.array([1.2, -0.7, 0.3])
    steps = 0
    while np.abs(follower.q - goal).max() > 1e-9:
        follower.step(goal)
        steps += 1
    assert steps * spec.dt < 1.2 / 1.5 + 1.5 / 6 + 6 / 80 + 0.1  # cruise, ramps of velocity and acceleration
    follower.reset(np.zeros(3))
    t = np.arange(800) * spec.dt
    path, slope = 0.4 * np.sin(2 * t)[:, None] * np.ones(3), 0.8 * np.cos(2 * t)[:, None] * np.ones(3)
    off = []
    for q, v in zip(path, slope, strict=True):
        follower.step(q, v)
        off.append(np.abs(follower.q - q).max())
    assert max(off[200:]) < 0.005


def test_it_arrives_just_above_the_table():
    spec = MujocoArm().spec
    kinematics = Kinematics(spec)
    follower = Follower(spec, Workspace(kinematics, planes=[[[0, 0, 1], 0.0]]).outside)
    pose, rng = kinematics.forward(spec.home), np.random.default_rng(0)

    def above(height: float) -> np.ndarray:
        pose[:3, 3] = rng.uniform(0.35, 0.5), rng.uniform(-0.2, 0.2), height
        return kinematics.inverse(pose, spec.home.copy())

    for _ in range(20):
        follower.reset(above(0.2))
        goal, steps = above(0.02), 0
        while np.abs(follower.q - goal).max() > 1e-3:
            follower.step(goal)
            steps += 1
            assert steps * spec.dt < 2


def test_outside_the_range_it_may_only_come_in():
    spec = small_spec()
    follower = Follower(spec)
    start = np.array([2.3, 0.0, -2.1])
    follower.reset(start)
    sent = []
    for target in [np.array([3.0, 0.0, -3.0])] * 100 + [np.zeros(3)] * 300 + [np.array([3.0, 0.0, -3.0])] * 400:
        follower.step(target)
        sent.append(follower.q.copy())
    path = np.array(sent)
    check_limits(spec, path, start)
    assert (np.abs(path[399]) < 0.3).all()
    assert (np.abs(path[-1] - [2.0, 0.0, -2.0]) < 1e-6).all()  # having come in, it stays in


def test_workspace_options_are_checked(tmp_path):
    kinematics = Kinematics(small_spec(tmp_path))
    with pytest.raises(ConfigError, match="lower below upper"):
        Workspace(kinematics, box=[[0, 0, 1], [1, 1, 0]])
    with pytest.raises(ConfigError, match="length 1"):
        Workspace(kinematics, planes=[[[0, 0, 2], 0.0]])
    with pytest.raises(ConfigError, match="has no model"):
        Kinematics(small_spec())
    with pytest.raises(ConfigError, match="one per joint"):
        small_spec(velocity=[1.0])
    with pytest.raises(ConfigError, match="beyond its own"):
        small_spec().with_limits({"velocity": 5.0})
    assert (small_spec().with_limits({"velocity": 0.5}).velocity == 0.5).all()


def test_inverse_kinematics_finds_back(tmp_path):
    """Poses of random joints are reached again, as seen from joints nearby."""
    spec = small_spec(tmp_path)
    kinematics, rng = Kinematics(spec), np.random.default_rng(0)
    for _ in range(20):
        q = np.array([rng.uniform(-1, 1), rng.uniform(-1, 0.5), rng.uniform(0.5, 1.5)])
        pose = kinematics.forward(q)
        found = kinematics.inverse(pose, q + rng.normal(0, 0.1, 3), steps=100)
        assert np.abs(kinematics.forward(found) - pose).max() < 1e-3
