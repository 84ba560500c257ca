"""The control loop on a clock that a test turns: who leads, what is refused, when it stands still."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from real_robot.control.controller import Controller, Watch
from real_robot.control.executor import Executor, hermite
from real_robot.control.follower import Clip, Follower
from real_robot.control.machine import Machine
from real_robot.core.clock import VirtualClock
from real_robot.core.streams import (
    HOLD,
    HUMAN,
    MAX_ACTIONS,
    POLICY,
    REQUEST,
    STOP,
    Session,
    chunk_dtype,
    event,
    teleop_dtype,
)
from real_robot.core.types import SECOND, Button, Chunk, RobotMode
from tests.real_robot.arms import PerfectRobot, check_limits, small_spec

BRAKING = 0.5  # s, more than the small arm takes to stand still


class Bench:
    """A controller with its rings, and hands on all of them."""

    def __init__(self, **watch):
        self.session, self.clock = Session(), VirtualClock()
        spec = small_spec()
        self.spec, self.robot = spec, PerfectRobot(spec, self.clock)
        n = spec.n
        self.chunks = self.session.create("chunk", chunk_dtype(n), 16)
        self.teleop = self.session.create("teleop", teleop_dtype(n), 64)
        self.request = self.session.create("request.test", REQUEST, 64)
        self.executor = Executor(spec, max_age=1.0)
        self.controller = Controller(
            self.robot, self.session, self.clock, Follower(spec), self.executor, Watch(**watch)
        )  # fmt: skip
        self.n_chunks = 0

    def press(self, buttons: Button) -> None:
        self.request.put(np.array((int(buttons),), REQUEST), self.clock.now())

    def run(self, seconds: float, each=None) -> Machine:
        for _ in range(round(seconds * self.spec.control_hz)):
            if each is not None:
                each()
            self.controller.tick(self.clock.now())
            self.clock.advance(self.spec.dt)
        return self.controller.machine.state

    def hand(self, target, engaged=True, buttons=Button.NONE) -> None:
        record = np.zeros((), self.teleop.dtype)
        record["engaged"], record["target"], record["buttons"] = engaged, target, int(buttons)
        self.teleop.put(record, self.clock.now())

    def chunk(self, actions, dt=0.1, t_obs=None, due=None, number=None) -> None:
        self.n_chunks += 1
        record = np.zeros((), self.chunks.dtype)
        record["id"] = self.n_chunks if number is None else number
        record["t_obs"] = self.clock.now() if t_obs is None else t_obs
        record["due"] = record["t_obs"] if due is None else due
        record["dt"], record["length"] = dt, len(actions)
        record["actions"] = np.nan
        record["actions"][: len(actions)] = actions
        self.chunks.put(record, self.clock.now())

    def enable(self) -> None:
        assert self.run(0.05) == Machine.READY
        self.press(Button.ENABLE)
        assert self.run(0.05) == Machine.PAUSE

    def said(self) -> list[str]:
        records, _ = self.session.attach("event.control").since(0)
        return [event(r)[1] for r in records]

    def sources(self) -> list[int]:
        return [int(r.data["source"]) for r in self.session.attach("command").since(0)[0]]

    def still(self) -> bool:
        """Whether the last five ticks sent the same."""
        sent = np.array([r.data["sent"] for r in self.session.attach("command").since(0)[0]])
        return bool((np.diff(sent[-5:], axis=0) == 0).all())

    def check(self) -> None:
        check_limits(self.spec, np.array(self.robot.written), self.spec.home)


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    if bench.robot.written:
        bench.check()
    bench.session.close()


RAMP = np.linspace(0, 0.3, 12)[:, None] * np.array([1.0, -1.0, 0.5])


def test_nothing_moves_before_it_is_enabled(bench):
    for _ in range(5):
        bench.chunk(RAMP + 0.5)
        bench.hand(np.ones(3))
        assert bench.run(0.2) == Machine.READY
    assert (np.array(bench.robot.written) == 0).all()


def test_a_chunk_is_followed_and_never_past_its_end(bench):
    bench.enable()
    bench.chunk(RAMP, dt=0.05)
    start = bench.clock.now()
    seen = []
    assert bench.run(0.5, lambda: seen.append(bench.controller.machine.state)) == Machine.RUN
    assert Machine.RUN in seen
    now = (bench.clock.now() - start) / SECOND / 0.05
    want, _ = hermite(RAMP, now, 0.05)
    assert np.abs(bench.robot.q - want).max() < 0.02
    assert bench.run(1.0) == Machine.PAUSE  # the chunk is over at 0.55 s
    assert np.abs(bench.robot.q - RAMP[-1]).max() < 0.08
    assert bench.still()


def test_an_old_chunk_is_left_even_when_it_goes_on(bench):
    """Standstill within max age and the time to brake, when no other chunk comes."""
    bench.enable()
    bench.chunk(np.linspace(0, 5, 60)[:, None] * np.ones(3), dt=0.1)
    assert bench.run(0.9) == Machine.RUN
    assert bench.run(0.1 + BRAKING) == Machine.PAUSE
    assert bench.still()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda b: b.chunk(np.where(np.arange(36).reshape(12, 3) == 20, np.nan, RAMP)), "not finite"),
        (lambda b: b.chunk(RAMP, t_obs=b.clock.now() - 2 * SECOND), "2.000 s old"),
        (lambda b: b.chunk(RAMP, t_obs=b.clock.now() + SECOND), "future"),
        (lambda b: b.chunk(RAMP, number=0), "comes after"),
        (lambda b: b.chunk(RAMP, dt=np.nan), "between 1 ms and 1 s"),
        (lambda b: b.chunk(RAMP, dt=0.02, t_obs=b.clock.now() - SECOND // 2), "ago"),
        (lambda b: b.chunk(RAMP[:0]), "shape"),
    ],
)
def test_unfit_chunks_are_refused_whole(bench, spoil, why):
    bench.enable()
    bench.chunk(RAMP)
    bench.run(0.1)
    spoil(bench)
    assert bench.run(0.1) == Machine.RUN  # the one before goes on
    assert any("refused" in s and why in s for s in bench.said()), bench.said()


def test_an_observation_from_before_it_was_enabled_is_refused(bench):
    bench.run(0.05)
    t_obs = bench.clock.now()
    bench.run(0.1)
    bench.press(Button.ENABLE)
    bench.run(0.05)
    bench.chunk(RAMP, t_obs=t_obs)
    assert bench.run(0.1) == Machine.PAUSE
    assert any("before the policy was to lead" in s for s in bench.said())


def test_a_person_takes_over_without_a_jump_and_gives_back(bench):
    bench.enable()
    bench.chunk(RAMP * 2)
    bench.run(0.4)
    taken_at = bench.robot.q.copy()
    bench.run(0.6, lambda: bench.hand(taken_at + 0.1))
    commands = bench.session.attach("command").since(0)[0]
    led = [r.data for r in commands if r.data["source"] == HUMAN]
    assert len(led) >= 59
    assert np.isfinite(led[0]["proposal"]).all()  # what the policy would have done stays beside it
    assert np.abs(bench.robot.q - taken_at - 0.1).max() < 0.03
    bench.chunk(RAMP * 2, t_obs=bench.clock.now())  # observed while the hand led
    bench.run(0.3, lambda: bench.hand(taken_at, engaged=False))
    assert bench.sources()[-1] == HOLD
    bench.chunk(bench.robot.q + 0 * RAMP)
    bench.run(0.1)
    assert bench.sources()[-1] == POLICY


def test_a_hand_that_speaks_while_the_robot_is_read_leads_on(bench, monkeypatch):
    """Reading takes its time, and a sample that is younger than the tick is as good as any."""
    bench.enable()
    bench.hand(np.zeros(3), engaged=False)
    read = bench.robot.read

    def slowly():
        bench.clock.advance(0.001)
        bench.hand(np.full(3, 0.3))
        bench.clock.advance(0.001)
        return read()

    monkeypatch.setattr(bench.robot, "read", slowly)
    bench.run(0.3)
    assert bench.sources()[-40:] == [HUMAN] * 40


def test_a_silent_device_does_not_lead(bench):
    bench.enable()
    bench.hand(np.ones(3))
    assert bench.run(0.1) == Machine.RUN
    assert bench.run(0.25 + BRAKING) == Machine.PAUSE
    assert bench.still()


def test_nonsense_from_the_device_does_not_lead(bench):
    bench.enable()
    for bad in (np.full(3, np.nan), np.array([np.inf, 0, 0])):
        assert bench.run(0.2, lambda bad=bad: bench.hand(bad)) == Machine.PAUSE


def test_emergency_stop_is_latched(bench):
    bench.enable()
    bench.chunk(RAMP * 3)
    bench.run(0.4)
    bench.press(Button.ESTOP)
    assert bench.run(BRAKING) == Machine.FAULT
    assert bench.robot.stops == 1
    at = len(bench.robot.written)
    bench.press(Button.ENABLE)
    bench.chunk(RAMP * 3)
    assert bench.run(0.3, lambda: bench.hand(np.ones(3))) == Machine.FAULT
    assert len(bench.robot.written) == at  # it is left alone
    bench.press(Button.RECOVER)
    assert bench.run(0.1) == Machine.READY
    bench.press(Button.ENABLE)
    assert bench.run(0.2, lambda: bench.hand(np.ones(3))) == Machine.PAUSE  # a closed hand has to be opened first
    bench.hand(np.ones(3), engaged=False)
    bench.run(0.05)
    assert bench.run(0.1, lambda: bench.hand(np.ones(3))) == Machine.RUN
    assert bench.robot.recoveries == 1


@pytest.mark.parametrize("what", ["frozen", "dead", "protective stop", "stuck", "late"])
def test_faults_latch_and_recover(bench, what):
    bench.enable()
    bench.chunk(np.linspace(0, 1.5, 12)[:, None] * np.ones(3), dt=0.1)
    bench.run(0.3)
    robot = bench.robot
    if what == "frozen":
        robot.frozen_at = bench.clock.now() / SECOND
    elif what == "dead":
        robot.dead = True
    elif what == "protective stop":
        robot.mode = RobotMode.STOPPED
    elif what == "stuck":
        robot.stuck = True
    else:
        bench.clock.advance(0.4)
        bench.controller.tick(bench.clock.now() - round(0.4 * SECOND))
    assert bench.run(0.7) == Machine.FAULT, bench.said()
    assert bench.sources()[-1] == STOP
    path = np.array(robot.written)
    assert bench.still()
    robot.frozen_at, robot.dead, robot.stuck = None, False, False
    assert bench.run(0.5) == Machine.FAULT
    check_limits(bench.spec, path, bench.spec.home)
    robot.written.clear()
    bench.press(Button.RECOVER)
    assert bench.run(0.1) == Machine.READY, bench.said()
    assert np.abs(bench.controller.follower.q - robot.q).max() == 0
    robot.written.clear()


@pytest.mark.parametrize("seconds", [0.2, 0.4])
def test_a_tick_that_takes_too_long_is_a_fault(bench, monkeypatch, seconds):
    """A process that is stopped in the midst of a tick is late as well."""
    bench.enable()
    bench.chunk(np.linspace(0, 1.5, 30)[:, None] * np.ones(3), dt=0.1)
    bench.run(0.3)
    read, reads = bench.robot.read, iter(range(100))

    def slowly():
        i = next(reads)
        bench.clock.advance(0.0001)
        if i == 5:
            bench.clock.advance(seconds)
        if i == 60:
            bench.session.stop()
        return read()

    monkeypatch.setattr(bench.robot, "read", slowly)
    bench.controller.run()
    late = [int(r.data["late"]) for r in bench.session.attach("command").since(0)[0]]
    assert max(late) == pytest.approx(seconds * SECOND, abs=2 * bench.spec.dt * SECOND)
    assert any("control came 0.3" in s for s in bench.said()) == (seconds > 0.25), bench.said()


def test_a_held_enable_is_let_go_of():
    bench = Bench(enable=0.3)
    bench.enable()
    bench.chunk(RAMP, dt=0.2)
    assert bench.run(0.8, lambda: bench.press(Button.ENABLE)) == Machine.RUN
    assert bench.run(0.35) == Machine.READY
    bench.check()
    bench.session.close()


def test_ending_the_session_brakes(bench):
    bench.enable()
    bench.chunk(np.linspace(0, 3, 30)[:, None] * np.ones(3), dt=0.05)
    bench.run(0.5)
    bench.session.stop()
    bench.controller.run()
    assert (bench.robot.stops, bench.robot.closed) == (1, True)
    assert not bench.controller.follower.moving


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_whatever_comes_no_limit_is_passed(data):
    """Random chunks, hands, buttons and faults of the robot: finite, within limits, still when it must be."""
    bench = Bench()
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    bench.enable()
    for _ in range(25):
        kind = rng.integers(7)
        wild = rng.normal(0, 10.0 ** rng.integers(-2, 3), (int(rng.integers(1, MAX_ACTIONS)), 3))
        if rng.random() < 0.2:
            wild[rng.integers(len(wild)), 0] = rng.choice([np.nan, np.inf, -np.inf, 1e300])
        if kind <= 2:
            bench.chunk(
                wild, dt=float(rng.choice([0.01, 0.1, 0.5])), t_obs=bench.clock.now() - int(rng.integers(-1e8, 2e9))
            )
        elif kind == 3:
            bench.hand(wild[0], engaged=bool(rng.integers(2)))
        elif kind == 4:
            bench.press(Button(int(rng.integers(16))))
        elif kind == 5:
            bench.press(Button.RECOVER)
            bench.run(0.05)
            bench.press(Button.ENABLE)
        bench.run(0.1)
    recovered = [s for s in bench.said() if "recovered" in s]
    if not recovered:  # re-homing starts a new path
        bench.check()
    assert np.isfinite(np.array(bench.robot.written)).all()
    bench.session.close()


# ------------------------------------------------------------------ executor


def test_hermite_passes_through_its_points():
    points = np.random.default_rng(0).normal(size=(9, 2))
    for i in range(9):
        assert np.allclose(hermite(points, i, 0.1)[0], points[i])
    for at in np.linspace(0.05, 7.95, 40):  # its velocity is the slope of its position
        h = 1e-5
        (a, _), (b, _), (_, v) = (hermite(points, x, 0.1) for x in (at - h, at + h, at))
        assert np.allclose((b - a) / (2 * h) / 0.1, v, atol=1e-3)
    line = np.arange(6.0)[:, None] * np.array([1.0, -2.0])
    assert np.allclose(hermite(line, 2.3, 0.5), ([2.3, -4.6], [2.0, -4.0]))


def make(number, value, t_obs, due=None, length=10, dt=0.1):
    due = t_obs if due is None else due
    return Chunk(number, round(t_obs * SECOND), round(due * SECOND), dt, np.full((length, 3), float(value)))


def test_a_chunk_waits_for_its_turn():
    executor = Executor(small_spec())
    now = round(1.05 * SECOND)
    assert executor.accept(make(1, 1, 1.0), now) is None
    assert executor.accept(make(2, 2, 1.0, due=1.5), now) is None
    assert executor.target(now).chunk == 1  # type: ignore[union-attr]
    assert executor.target(round(1.39 * SECOND)).chunk == 1  # type: ignore[union-attr]
    assert executor.target(round(1.41 * SECOND)).chunk == 2  # type: ignore[union-attr]
    assert executor.target(round(2.45 * SECOND)) is None  # its last action was due at 2.4


def test_action_latency_is_sent_ahead_of():
    executor = Executor(small_spec(), action_latency=0.2)
    ramp = Chunk(1, SECOND, SECOND, 0.1, np.arange(10.0)[:, None] * np.ones(3))
    assert executor.accept(ramp, SECOND) is None
    wish = executor.target(round(1.1 * SECOND))
    assert wish is not None
    assert np.allclose(wish.q, 3.0)


def test_ensemble_weighs_all_that_are_running():
    executor = Executor(small_spec(), mode="ensemble", decay=0.5)
    for number in (1, 2, 3):
        assert executor.accept(make(number, number, 1 + 0.1 * number), round((1 + 0.1 * number) * SECOND)) is None
    wish = executor.target(round(1.35 * SECOND))
    weights = np.exp(-0.5 * np.arange(3))
    assert wish is not None
    assert np.allclose(wish.q, (weights * [1, 2, 3]).sum() / weights.sum())


def test_clips_are_told(bench):
    bench.enable()
    bench.chunk(RAMP + 9.0)
    bench.run(0.2)
    assert any("clipped" in s and "POSITION" in s for s in bench.said()), bench.said()
    last = bench.session.attach("command").latest()
    assert Clip.POSITION in Clip(int(last.data["clipped"]))
