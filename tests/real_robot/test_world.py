"""The simulated arm and its table on the virtual clock: kinematics, tracking, the task, and the hand that solves it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from data.errors import ConfigError, DeftError
from real_robot.core.clock import VirtualClock
from real_robot.core.kinematics import Kinematics
from real_robot.core.options import defaults_of, options
from real_robot.core.streams import Session
from real_robot.core.types import Button, DeviceError
from real_robot.robots.mujoco_arm import MujocoArm
from real_robot.robots.spec import spec_from_model
from real_robot.robots.ur import JOINTS
from real_robot.simulators.hand import Hand, Pick
from real_robot.simulators.port import ask
from real_robot.simulators.scene import Scene, model_path, mujoco
from real_robot.simulators.ur_motion import MoveJ, ServoJ, pose_from_ur, pose_to_ur
from real_robot.simulators.world import MODEL_FILE


@pytest.fixture
def session() -> Iterator[Session]:
    s = Session()
    yield s
    s.close()


def test_the_model_has_the_published_denavit_hartenberg_parameters():
    """d, a, alpha of a UR5e (Universal Robots, article 45257)."""
    d = (0.1625, 0, 0, 0.1333, 0.0997, 0.0996)
    a = (0, -0.425, -0.3922, 0, 0, 0)
    alpha = (np.pi / 2, 0, 0, np.pi / 2, -np.pi / 2, 0)
    kinematics = Kinematics(spec_from_model("ur5e", model_path("ur5e"), tcp="flange"))
    for q in np.random.default_rng(0).uniform(-3, 3, (20, 7)):
        pose = np.eye(4)
        for i in range(6):
            c, s, ca, sa = np.cos(q[i]), np.sin(q[i]), np.cos(alpha[i]), np.sin(alpha[i])
            pose = pose @ [
                [c, -s * ca, s * sa, a[i] * c],
                [s, c * ca, -c * sa, a[i] * s],
                [0, sa, ca, d[i]],
                [0, 0, 0, 1],
            ]
        np.testing.assert_allclose(kinematics.forward(q), pose, atol=1e-9)
        np.testing.assert_allclose(pose_from_ur(pose_to_ur(pose)), pose, atol=1e-6)


def test_spec_from_model():
    spec = spec_from_model("arm", model_path("ur5e"), JOINTS, velocity=[1, 1, 1, 2, 2, 2], control_hz=100)
    assert spec.joints == (*JOINTS, "gripper")
    assert (spec.lower[-1], spec.upper[-1]) == (0, 1)
    assert spec.velocity.tolist() == [1, 1, 1, 2, 2, 2, 3]
    assert spec.home is not None
    assert spec.home[-1] == 1
    assert not spec_from_model("arm", model_path("ur5e"), JOINTS, gripper=None).gripper
    with pytest.raises(ConfigError, match="no actuator named"):
        spec_from_model("arm", model_path("ur5e"), ["shoulder"])
    with pytest.raises(ConfigError, match="ur5e"):
        model_path("ur6e")


def test_the_arm_follows_and_every_run_is_alike(session: Session):
    runs = []
    for _ in range(2):
        clock = VirtualClock()
        robot = MujocoArm(clock=clock, session=session, seed=3)
        with pytest.raises(DeviceError, match="not connected"):
            robot.read()
        robot.connect()
        states, targets = [], []
        for i in range(400):
            q = robot.spec.home + np.append(np.full(6, 0.2 * np.sin(np.pi * i / 200)), -0.5 * (i > 200))
            robot.write(q)
            clock.advance(1 / 200)
            states.append(robot.read().q)
            targets.append(q)
        error = np.abs(np.array(states) - targets)
        assert error[:, :6].max() < 0.03
        assert error[-1, 6] < 0.02
        runs.append(states)
    np.testing.assert_array_equal(*runs)
    record = session.attach("world").latest()
    assert record is not None
    np.testing.assert_allclose(record.data["cube"][:2], Scene().place(3)[:2], atol=2e-3)
    model = mujoco.MjModel.from_binary_path(str(session.folder / MODEL_FILE))
    assert record.data["qpos"].shape == (model.nq,)
    with pytest.raises(DeviceError, match="finite"):
        robot.write(np.full(7, np.nan))


def test_resets_are_asked_for_from_outside(session: Session):
    clock = VirtualClock()
    robot = MujocoArm(clock=clock, session=session)
    with pytest.raises(DeftError, match="No simulator listens"):
        ask(session.folder, reset=5)
    robot.connect()
    moved = robot.spec.home + 0.1 * (np.arange(7) == 0)
    for _ in range(100):
        robot.write(moved)
        clock.advance(0.01)
    ask(session.folder, reset=5)
    assert abs(robot.read().q[0] - moved[0]) < 0.01  # the robot stays where it is
    assert (robot.world.seed, robot.world.episode) == (5, 2)
    np.testing.assert_allclose(robot.world.cube[:2], Scene().place(5)[:2], atol=1e-6)
    ask(session.folder, reset=None, robot=True)
    np.testing.assert_allclose(robot.read().q, robot.spec.home, atol=1e-3)
    assert robot.world.seed == 6


def test_servoj_trails_by_its_lookahead_and_movej_arrives():
    motion, q, v, dt = ServoJ(np.zeros(6), 0.1, 300), np.zeros(6), np.zeros(6), 0.002
    for i in range(1000):
        motion.target = np.full(6, 0.5 * i * dt)
        q, v, _ = motion.step(q, v, dt)
    np.testing.assert_allclose(0.5 * 999 * dt - q, 0.5 * 0.1, atol=2e-3)
    end, done, fastest = np.arange(6) / 5, False, 0.0
    move, q, v = MoveJ(np.zeros(6), end, 0.8, 2.0), np.zeros(6), np.zeros(6)
    while not done:
        q, v, done = move.step(q, v, dt)
        fastest = max(fastest, np.abs(v).max())
    np.testing.assert_allclose(q, end, atol=1e-9)
    assert fastest < 0.81


def test_options_are_checked():
    def f(host: str = "a", *, seed: int = 0, remote: bool = True, session: str | None = None) -> None: ...

    found = options(["host=b", "seed=3", "remote=false"], defaults_of(f))
    assert found == {"host": "b", "seed": 3, "remote": False, "session": None}
    for wrong in ("sead=3", "seed", "seed=x", "remote=maybe"):
        with pytest.raises(ConfigError):
            options([wrong], defaults_of(f))


def solve(session: Session, episodes: int, hz: int = 50) -> tuple[Hand, list[float]]:
    """The hand leads the simulated arm on the virtual clock; s of each episode."""
    clock = VirtualClock()
    robot = MujocoArm(clock=clock, session=session, control_hz=hz)
    robot.connect()
    hand = Hand(robot.spec, session, Pick(robot.spec), episodes=episodes)
    hand.start()
    target, begin, durations, buttons = robot.spec.home.copy(), 0, [], Button.NONE
    while not buttons & Button.QUIT:
        state = robot.read()
        sample = hand.read(state, target)
        buttons = sample.buttons if sample is not None else Button.NONE
        if sample is not None and sample.engaged:
            assert np.abs(sample.target - target)[:6].max() < 3 / hz  # rad/s
            target = sample.target
        if buttons & Button.START:
            begin = clock.now()
        if buttons & Button.STOP:
            assert bool(buttons & Button.SUCCESS) == hand.results[-1]
            durations.append((clock.now() - begin) / 1e9)
        robot.write(target)
        clock.advance(1 / hz)
    return hand, durations


def test_the_hand_puts_the_cube_on_the_disc(session: Session):
    hand, durations = solve(session, 3)
    assert hand.results == [True] * 3
    assert np.median(durations) < 8


@pytest.mark.slow
def test_the_hand_hardly_ever_fails(session: Session):
    hand, _ = solve(session, 40)
    assert np.mean(hand.results) >= 0.95


def test_the_hand_says_that_it_sees_nothing(session: Session):
    spec = MujocoArm().spec
    with pytest.raises(DeviceError, match="sees nothing"):
        Hand(spec, session, Pick(spec)).start()
