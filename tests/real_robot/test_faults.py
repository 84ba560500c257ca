"""What fails in a running session, process by process: the robot stands in time, passes no limit, and goes on after."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from configs.loader import load_config
from real_robot.control.machine import Machine
from real_robot.core.streams import HUMAN, POLICY, REQUEST, Session
from real_robot.core.supervisor import Part, Supervisor
from real_robot.core.types import SECOND, Button
from real_robot.parts import parts_of, spec_of
from real_robot.recorder.episode import Episode
from tests.real_robot import faulty
from tests.real_robot.arms import check_limits

pytestmark = pytest.mark.slow
CHUNK = faulty.LENGTH / faulty.HZ  # s that the last chunk goes on for, at most
BRAKING = 1.0  # s, and what a starved machine needs to notice
PATIENT = ["safety.watch.late=5.0", "safety.watch.overruns=10000", "safety.watch.robot=5.0", "priority=null"]


class Running:
    """A session with a robot that waves, by its policy or by a hand."""

    def __init__(self, tmp_path: Path, *, camera: bool = False, hand: bool = False, record: bool = False):
        options = [*PATIENT, "checkpoint=none", "mode=replace"]
        options += ["cameras.front.type=tests.real_robot.faulty:Grey"] if camera else []
        options += [f"out={tmp_path / 'out'}"] if record else []
        config = load_config("deploy", options)
        self.spec, self.fault, self.out = spec_of(config), tmp_path / "fault", tmp_path / "out"
        if hand:
            config["teleop"] = {"device": "scripted", "path": str(self._script(tmp_path))}
        parts = parts_of(config, self.spec)
        policy = next(part for part in parts if part.name == "policy")
        wave = {"metadata": faulty.contract(self.spec, camera), "fault": str(self.fault)}
        policy.options = {"policy": wave, "mode": "replace", "build": faulty.build}
        self.supervisor = Supervisor([p for p in parts if not (hand and p.name == "policy")])
        self.session: Session = self.supervisor.session
        self._request = self.session.create("request.test", REQUEST, 64)

    def _script(self, tmp_path: Path) -> Path:
        t = np.arange(0, 60, 0.02)
        target = np.repeat(self.spec.home[None], len(t), 0)
        target[:, 0] += 0.2 * np.sin(2 * t)
        buttons = np.where(t < 3, int(Button.ENABLE), 0)
        np.savez(tmp_path / "hand.npz", t=t, engaged=t > 0.1, target=target, buttons=buttons)
        return tmp_path / "hand.npz"

    def part(self, name: str) -> Part:
        return next(p for p in self.supervisor.parts if p.name.startswith(name))

    def send(self, name: str, number: signal.Signals) -> None:
        os.kill(self.part(name).process.pid, number)

    def press(self, buttons: Button) -> None:
        self._request.put(np.array((int(buttons),), REQUEST), time.monotonic_ns())

    def commands(self, since: int = 0) -> np.ndarray:
        """Records of the last ones, from monotonic time ``since`` on."""
        records, _ = self.session.attach("command").since(0)
        return np.array([r.data for r in records if r.t >= since])

    def until(self, true, seconds: float = 30.0, what: str = "") -> float:
        """s that it took; the supervisor looks after its processes meanwhile."""
        begin = time.monotonic()
        while not true():
            self.supervisor.watch()
            assert time.monotonic() - begin < seconds, f"{what} did not happen: {self.supervisor.news()}"
            time.sleep(0.02)
        return time.monotonic() - begin

    def _last(self, n: int) -> np.ndarray:
        return self.commands(time.monotonic_ns() - SECOND)[-n:]

    def moves(self) -> bool:
        last = self._last(20)
        return len(last) == 20 and bool((np.diff(last["sent"], axis=0) != 0).any(1).all())

    def stands(self) -> bool:
        last = self._last(10)
        return len(last) == 10 and bool((np.diff(last["sent"], axis=0) == 0).all())

    def led(self) -> set[int]:
        return set(self._last(10)["source"].tolist())


@contextmanager
def running(tmp_path, **options):
    r = Running(tmp_path, **options)
    with r.supervisor:
        r.until(lambda: r.session.has("command"), what="control")

        def enabled():
            r.press(Button.ENABLE)
            return len(r._last(1)) and int(r._last(1)["state"][0]) in (Machine.RUN, Machine.PAUSE)

        r.until(enabled, what="enabling")
        r.until(r.moves, 60, what="waving")
        yield r
        sent = r.commands()["sent"]
        assert r.supervisor.failed is None
        check_limits(r.spec, sent, sent[0]) if len(sent) < 4096 else check_limits_within(r, sent)
    r.session.close()


def check_limits_within(r, sent):
    """Of a piece that does not begin at rest: the first three rows are its history."""
    for order, limit in enumerate((r.spec.velocity, r.spec.acceleration, r.spec.jerk), start=1):
        assert (np.abs(np.diff(sent, order, axis=0)) / r.spec.dt**order <= limit * (1 + 1e-7)).all()


def stands_and_goes_on(r, name: str, number: signal.Signals) -> None:
    r.send(name, number)
    assert r.until(r.stands, CHUNK + BRAKING + 1.0, what="standing") <= CHUNK + BRAKING + 1.0
    if number == signal.SIGSTOP:
        r.send(name, signal.SIGCONT)
    r.until(r.moves, 60, what="going on")


def test_a_policy_that_hangs(tmp_path):
    with running(tmp_path) as r:
        stands_and_goes_on(r, "policy", signal.SIGSTOP)
        assert r.led() == {POLICY}


def test_a_policy_that_dies(tmp_path):
    """It may be back before its last chunk is over."""
    with running(tmp_path) as r:
        last = r.session.attach("chunk").newest
        r.send("policy", signal.SIGKILL)
        r.until(lambda: r.part("policy").restarts == 1, what="restart")
        r.until(lambda: r.session.attach("chunk").newest > last + 2, 60, what="new chunks")
        r.until(r.moves, what="going on")
        ids = [int(x.data["id"]) for x in r.session.attach("chunk").since(0)[0]]
        assert (np.diff(ids) > 0).all()


@pytest.mark.parametrize("fault", ["nan", "inf", "shape"])
def test_a_policy_that_answers_nonsense(tmp_path, fault):
    with running(tmp_path) as r:
        r.fault.write_text(fault)
        r.until(r.stands, CHUNK + BRAKING + 1.0, what="standing")
        r.fault.unlink()
        r.until(r.moves, what="going on")


def test_a_policy_that_answers_wildly(tmp_path):
    with running(tmp_path) as r:
        r.fault.write_text("wild")
        time.sleep(2.0)  # the limits are looked at in the end


def test_a_camera_that_hangs(tmp_path):
    """A policy that sees nothing new decides nothing new."""
    with running(tmp_path, camera=True) as r:
        stands_and_goes_on(r, "camera", signal.SIGSTOP)


def test_a_camera_that_dies(tmp_path):
    """It may be back before the last chunk is over."""
    with running(tmp_path, camera=True) as r:
        r.send("camera", signal.SIGKILL)
        r.until(lambda: r.part("camera").restarts == 1, what="restart")
        last = r.session.attach("chunk").newest
        r.until(lambda: r.session.attach("chunk").newest > last + 2, 60, what="new chunks")
        r.until(r.moves, what="going on")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_hand(tmp_path, number):
    with running(tmp_path, hand=True) as r:
        assert r.led() == {HUMAN}
        r.send("teleop", number)
        assert r.until(r.stands, 2.0 + BRAKING, what="standing") <= 2.0 + BRAKING
        if number == signal.SIGSTOP:
            r.send("teleop", signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_recorder(tmp_path, number):
    """The robot does not notice; nothing that was finished is lost."""
    with running(tmp_path, camera=True, record=True) as r:
        r.press(Button.START)
        r.until(lambda: (r.out / "episode_0000").exists(), what="recording")
        time.sleep(1.0)
        r.send("recorder", number)
        time.sleep(1.0)
        assert r.moves()
        if number == signal.SIGSTOP:
            r.send("recorder", signal.SIGCONT)
        else:
            r.until(lambda: r.part("recorder").restarts == 1, what="restart")
        time.sleep(1.0)
        r.press(Button.STOP | Button.SUCCESS)
        r.until(lambda: (r.out / "episode_0000" / "meta.json").read_text().count('"success"'), what="the label")
        time.sleep(1.0)
    t, _ = Episode(r.out / "episode_0000").table("command")
    assert (np.diff(t) > 0).all()
    assert np.diff(t).max() < SECOND  # through the recorder's absence
    pictures = Episode(r.out / "episode_0000").pictures("camera.front")
    assert np.diff(np.array([int(p[0, 0, 0]) for p in (pictures[i] for i in range(len(pictures.t)))]) % 256).max() <= 3


def test_control_that_is_killed_ends_the_session(tmp_path):
    r = Running(tmp_path)
    gasps = []
    r.supervisor.last_gasp = lambda: gasps.append(time.monotonic())
    with r.supervisor:
        r.until(lambda: r.session.has("command"), what="control")
        r.send("control", signal.SIGKILL)
        begin = time.monotonic()
        while r.supervisor.watch():
            assert time.monotonic() - begin < 5
            time.sleep(0.02)
        assert len(gasps) == 1
        assert "control" in (r.supervisor.failed or "")
    r.session.close()
