"""The energy tank: never overspent, no other limit passed for it, and nothing changed where there is none."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError
from real_robot.control.controller import Controller
from real_robot.control.executor import Executor
from real_robot.control.follower import Clip, Follower
from real_robot.control.process import tank as tank_of
from real_robot.control.tank import Tank
from real_robot.core.clock import VirtualClock
from real_robot.core.kinematics import Kinematics
from real_robot.core.types import SECOND, Button
from real_robot.robots.mujoco_arm import MujocoArm
from real_robot.robots.spec import servo_gains
from tests.real_robot.arms import check_limits, small_spec
from tests.real_robot.running import CHUNK, running
from tests.real_robot.test_control import RAMP, Bench
from tests.real_robot.test_follower import wild_targets


def one_joint(**changes):
    return small_spec(joints=("one",), lower=[-2.0], upper=[2.0], velocity=[1.5], acceleration=[6.0], jerk=[80.0],
                      home=[0.0], **changes)  # fmt: skip


class Arm:
    """Springs and dampers without mass: runs after its command, is stuck now and then, and is pushed about."""

    def __init__(self, rng, n: int, push: float, dt: float):
        self.rng, self.push, self.dt = rng, push, dt
        self.q, self.dq, self.lag, self.free = np.zeros(n), np.zeros(n), rng.uniform(0.01, 0.2), np.ones(n, bool)

    def move(self, command: np.ndarray) -> None:
        if self.rng.random() < 0.02:
            self.free = self.rng.random(len(self.q)) < 0.6
        v = np.where(self.free, (command - self.q) / self.lag, 0.0)
        v += self.rng.uniform(-self.push, self.push, len(v)) * (self.rng.random() < 0.5)
        self.q, self.dq = self.q + v * self.dt, v


def spend(seed: int, n: int, steps: int, *, pushed: float, teleports: bool = False):
    """A follower with a tank, after whatever targets, with an arm that may be pushed harder than the tank reckons."""
    rng = np.random.default_rng(seed)
    limits = {k: [v] * n for k, v in (("velocity", 1.5), ("acceleration", 6.0), ("jerk", 80.0))}
    spec = small_spec(joints=tuple(map(str, range(n))), lower=[-2.0] * n, upper=[2.0] * n, home=[0.0] * n, **limits)
    stiffness = rng.uniform(50, 2000, n)
    tank = Tank(spec, energy=10 ** rng.uniform(-1, 2), stiffness=stiffness, damping=stiffness * rng.choice([0, 0.02]),
                push=0.3)  # fmt: skip
    follower, arm = Follower(spec, tank=tank), Arm(rng, n, pushed, spec.dt)
    sent, levels, clips = [], [], Clip.NONE
    for i, (target, velocity) in enumerate(wild_targets(rng, n, steps)):
        tank.feel(arm.q, arm.dq, round(i * spec.dt * SECOND))
        before = follower.q
        clips |= follower.brake() if target is None else follower.step(target, velocity)
        work = float(np.sum(stiffness * (follower.q - before) * ((follower.q + before) / 2 - arm.q)))
        levels.append((tank.level, work))
        sent.append(follower.q.copy())
        arm.move(follower.q)
        if teleports and rng.random() < 0.02:
            arm.q = rng.uniform(-2, 2, n)
    check_limits(spec, np.array(sent), np.zeros(n))
    return tank, np.array(levels), clips


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 7))
@settings(max_examples=12, deadline=None)
def test_it_is_never_overspent_and_no_limit_is_passed(seed, n):
    """The arm stuck, pushed and let go: [0, energy] always, and it is all paid for."""
    tank, levels, _ = spend(seed, n, 500, pushed=0.29)
    assert ((levels[:, 0] >= 0) & (levels[:, 0] <= tank.energy)).all()
    assert tank.overdrawn == 0
    if not tank.damping.any():  # what is there at the end is what was there less what was done, or less than that
        assert levels[-1, 0] <= tank.energy - levels[:, 1].sum() + 1e-6
    assert levels[:, 1].cumsum().max() <= tank.energy + 1e-6 or tank.damping.any()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None)
def test_an_arm_that_is_thrown_about_breaks_no_bound(seed):
    """What a stop took more is told; the limits and the bounds hold as well."""
    tank, levels, _ = spend(seed, 3, 400, pushed=5.0, teleports=True)
    assert ((levels[:, 0] >= 0) & (levels[:, 0] <= tank.energy)).all()
    assert np.isfinite(tank.overdrawn)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_it_is_never_overspent_in_many_steps(seed):
    tank, levels, clips = spend(seed, 4, 100_000, pushed=0.29)
    assert ((levels[:, 0] >= 0) & (levels[:, 0] <= tank.energy)).all()
    assert tank.overdrawn == 0
    assert Clip.ENERGY in clips


@pytest.mark.parametrize("energy", [0.1, 1.0, 10.0])
def test_against_a_wall_it_presses_as_hard_as_the_energy_allows(energy):
    """One joint that is stuck: the spring takes all there is, K e^2 / 2 = energy, and gives it back on the way out."""
    spec, stiffness, q = one_joint(), 500.0, np.zeros(1)
    tank = Tank(spec, energy=energy, stiffness=stiffness, push=0.0)
    follower, clips = Follower(spec, tank=tank), Clip.NONE
    for i in range(2000):
        tank.feel(q, q, i * round(spec.dt * SECOND))
        clips |= follower.step(np.array([1.5]))
    assert Clip.ENERGY in clips
    held = 0.5 * stiffness * float(follower.q[0]) ** 2
    assert 0.97 * energy <= held <= energy
    assert tank.level == pytest.approx(energy - held, abs=1e-9 * energy)
    for i in range(2000, 2400):
        tank.feel(q, q, i * round(spec.dt * SECOND))
        follower.step(q)
    assert abs(follower.q[0]) < 1e-6
    assert tank.level == pytest.approx(energy)


def test_work_is_what_the_spring_holds_more():
    spec, rng = small_spec(), np.random.default_rng(0)
    tank = Tank(spec, energy=1.0, stiffness=np.array([10.0, 200.0, 3.0]))
    for _ in range(20):
        q, a, b = rng.normal(size=(3, 3))
        tank.feel(q, np.zeros(3), 0)
        held = [0.5 * np.sum(tank.stiffness * (x - q) ** 2) for x in (a, b)]
        assert tank.work(a, b) == pytest.approx(held[1] - held[0])


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_price_of_a_stop_is_its_work(seed):
    """As summed along the stop itself: exactly, where the arm is stuck; at least, where it is moving and pushed."""
    rng, spec = np.random.default_rng(seed), small_spec()
    follower = Follower(spec)
    q, v, dq = rng.normal(0, 0.05, 3), rng.uniform(-1, 1, 3) * spec.velocity * rng.choice([1, 0.02]), rng.normal(size=3)
    a = rng.uniform(-1, 1, 3) * spec.acceleration
    for moving, push in ((0.0, 0.0), (1.0, 0.4)):
        tank = Tank(spec, energy=1.0, stiffness=100.0, push=push)
        tank.feel(q, dq * moving, 0)
        follower._stop(np.zeros(3), v, a)
        seconds = follower._trajectory.duration
        t = np.linspace(0, seconds, 4000)
        way = np.array([follower._trajectory.at_time(x)[0] for x in t])
        step, middle = np.diff(way, axis=0), (way[1:] + way[:-1]) / 2 - q
        speed = push + np.maximum(-np.sign(step) * dq * moving, 0)  # against the stop, all the time
        work = 100 * np.maximum(step * (middle + np.sign(step) * speed * t[1:, None]), 0).sum()
        price = tank._price(np.zeros(3), v, a, way[-1], seconds)
        assert price >= work * (1 - 1e-6) - 1e-9
        if not moving:
            assert price == pytest.approx(work, rel=1e-3, abs=1e-6)


def test_dampers_fill_it_by_no_more_than_they_take():
    """Steady motion at v for s seconds gives D v^2 s back; trembling about a point next to nothing; never above all."""
    spec = one_joint()
    tank = Tank(spec, energy=5.0, initial=0.0, stiffness=100.0, damping=2.0)
    for i in range(201):
        tank.feel(np.array([0.5 * i * spec.dt]), np.array([0.5]), round(i * spec.dt * SECOND))
    assert tank.level == pytest.approx(2.0 * 0.5**2 * 1.0)
    before = tank.level
    for i in range(201, 401):
        tank.feel(np.array([0.5 + 0.0015 * (i % 2)]), np.zeros(1), round(i * spec.dt * SECOND))
    assert tank.level - before < 1e-3
    for i in range(401, 4000):
        tank.feel(np.array([1.0 * i * spec.dt]), np.ones(1), round(i * spec.dt * SECOND))
    assert tank.level == 5.0


def test_without_a_tank_nothing_changes_and_with_more_than_enough_neither():
    """Bit for bit."""
    ways = []
    for energy in (None, 1e9):
        spec = small_spec()
        follower = Follower(spec, tank=Tank(spec, energy=energy, stiffness=100.0) if energy else None)
        rng = np.random.default_rng(3)
        for target, velocity in wild_targets(rng, 3, 800):
            follower.brake() if target is None else follower.step(target, velocity)
            ways.append(np.concatenate([follower.q, follower.v, follower.a]))
    assert np.array_equal(np.array(ways[:800]), np.array(ways[800:]))
    assert tank_of(small_spec(), {"energy": None, "push": 0.2, "stiffness": 100.0}) is None


class TankBench(Bench):
    """A controller whose follower has a tank."""

    def __init__(self, **tank):
        super().__init__()
        self.tank = Tank(self.spec, **tank)
        self.session.close()
        super().__init__()
        follower = Follower(self.spec, tank=self.tank)
        self.controller = Controller(self.robot, self.session, self.clock, follower, Executor(self.spec, max_age=1.0))
        self.executor = self.controller.executor


def test_clips_and_fillings_are_events():
    bench = TankBench(energy=0.5, stiffness=400.0, initial=0.4)
    bench.enable()
    assert any("energy tank: 0.4 J" in line for line in bench.said()), bench.said()
    bench.robot.stuck = True  # as against a wall
    for _ in range(4):
        bench.chunk(RAMP)
        bench.run(0.4)
    assert any("clipped by ENERGY" in line for line in bench.said()), bench.said()
    off = bench.controller.follower.q - bench.robot.q
    assert 0.2 < 0.5 * 400 * float(off @ off) <= 0.5
    assert 0 <= bench.tank.level < 0.2
    bench.press(Button.START)
    bench.run(0.05)
    assert sum("energy tank:" in line for line in bench.said()) == 2
    assert bench.tank.level < 0.2  # the springs hold the rest: what is stuck is not pressed harder each time
    bench.robot.stuck = False
    bench.robot.q = bench.controller.follower.q.copy()
    bench.press(Button.START)
    bench.run(0.01)
    assert bench.tank.level >= 0.4 - 1e-6
    bench.check()
    bench.session.close()


def test_it_costs_a_tick_no_memory():
    spec = MujocoArm().spec
    tank = Tank(spec, energy=5.0, stiffness=1000.0, damping=30.0)
    q, at = np.zeros(spec.n), np.full(spec.n, 0.1)

    def tick(i: int) -> None:
        tank.feel(q, q, i * 5_000_000)
        tank.pays(q, at, at, at, at, 0.2)
        tank.draw(q, q)

    for i in range(100):
        tick(i)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(100, 600):
        tick(i)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 2000
    assert peak - before < 4000  # scalars and views of a tick; no array's worth


def test_simulated_physics_get_no_more_than_the_tank_held():
    """A UR5e of MuJoCo's with its servos' own gains is told to go into its table, and pressed as hard as it may."""
    clock = VirtualClock()
    robot = MujocoArm(clock=clock, scene={"cube_x": [0.9, 0.95]})
    robot.connect()
    spec, world = robot.spec, robot.world
    kinematics = Kinematics(spec)
    assert spec.home is not None
    under = kinematics.forward(spec.home)
    under[2, 3] -= 0.6
    goal = kinematics.inverse(under, spec.home.copy(), steps=100)
    pressed = {}
    for energy in (None, 20.0):
        world.reset(0)
        energies = tank_of(spec, {"energy": energy})
        follower = Follower(spec, tank=energies)
        follower.reset(world.q)
        held = [0.0]
        for _ in range(600):
            state = robot.read()
            if energies is not None:
                energies.feel(state.q, state.dq, state.t)
            follower.step(goal)
            robot.write(follower.q)
            clock.advance(spec.dt)
            gap = (follower.q - world.q)[:-1]
            held.append(0.5 * float(servo_gains(spec)[0] @ gap**2))
        pressed[energy] = held
    assert max(pressed[None]) > 100
    assert 5 < pressed[20.0][-1] <= 20.5
    assert max(pressed[20.0]) <= 20.5


def test_gains_come_from_the_model_and_options_are_checked():
    spec = MujocoArm().spec
    stiffness, damping = servo_gains(spec)
    assert (stiffness[[0, 5]] == [10000, 3000]).all()
    assert (damping[[0, 5]] == [300, 60]).all()
    made = tank_of(spec, {"energy": 3.0})
    assert made is not None
    assert np.array_equal(made.stiffness[:-1], stiffness)
    assert made.stiffness[-1] == 0
    given = tank_of(spec, {"energy": 3.0, "stiffness": 200.0})
    assert given is not None
    assert not given.damping.any()
    for options, words in (
        ({"energy": -1.0}, "energy above 0"),
        ({"energy": 1.0, "initial": 2.0}, "initial=2.0"),
        ({"energy": 1.0, "stiffness": [1.0, 2.0]}, "6, one per joint"),
        ({"energy": 1.0, "stiffness": 0.0}, "above 0"),
        ({"energy": float("nan")}, "energy above 0"),
        ({"energy": 1.0, "stiffness": 5.0, "push": -1.0}, "push"),
        ({"energy": 1.0, "stifness": 5.0}, "stiffness"),
    ):
        with pytest.raises(ConfigError, match=words):
            tank_of(spec, options)
    with pytest.raises(ConfigError, match="no model"):
        tank_of(small_spec(), {"energy": 1.0})


@pytest.mark.slow
@pytest.mark.parametrize("energy", [500.0, 3.0])
def test_a_running_session_has_one_that_is_asked_for(tmp_path, energy):
    """With plenty, it waves on; with next to nothing, it stands or creeps, says why, and may be filled anew."""
    with running(tmp_path, given=(f"safety.tank.energy={energy}",)) as r:
        said = []

        def told(words: str) -> int:
            said.extend(text for _, _, text in r.supervisor.news())
            return sum(words in text for text in said)

        r.until(lambda: told(f"energy tank: {energy:g} J"), what="filling")
        if energy > 100:
            assert r.until(r.moves, CHUNK, what="waving") <= CHUNK
            assert not told("ENERGY")
        else:
            r.until(lambda: told("clipped by ENERGY"), what="limiting")
            r.press(Button.START)
            r.until(lambda: told("energy tank:") == 2, what="filling again")
