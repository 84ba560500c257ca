"""What fails in a running session, process by process: the robot stands in time, passes no limit, and goes on after."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from real_robot.control.machine import Machine
from real_robot.core.streams import HUMAN, POLICY
from real_robot.core.types import SECOND, Button
from real_robot.recorder.episode import Episode
from tests.real_robot.running import BRAKING, CHUNK, Running, running

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("hand", [False, True])
def test_whoever_is_late_by_200_ms(tmp_path, hand):
    """Chunks outlast it, hands too, and rings; control does not catch up on what it has missed."""
    with running(tmp_path, camera=not hand, hand=hand, record=True) as r:
        since = time.monotonic_ns()
        r.press(Button.START)
        r.until(lambda: (r.out / "episode_0000").exists(), what="recording")
        for name in [*(["teleop"] if hand else ["policy", "camera"]), "recorder", "control"] * 3:
            r.send(name, signal.SIGSTOP)
            time.sleep(0.2)
            r.send(name, signal.SIGCONT)
            time.sleep(0.3)  # so that what is looked at is what comes after
            r.until(r.moves, CHUNK + BRAKING, what=f"going on after {name}")
        commands = r.commands(since)
        assert set(commands["state"].tolist()) <= {Machine.RUN, Machine.PAUSE}
        assert (commands["late"] > 0.1 * SECOND).sum() >= 3  # control's own
        assert not any("died" in text for _, _, text in r.supervisor.news())


def test_a_policy_that_answers_late(tmp_path):
    with running(tmp_path) as r:
        r.fault.write_text("late")
        before = r.session.attach("chunk").newest
        r.until(lambda: r.session.attach("chunk").newest >= before + 8, what="late chunks")
        delays = [x.data["answered"] - x.data["asked"] for x in r.session.attach("chunk").since(before + 1)[0]]
        assert min(delays) >= 0.2 * SECOND
        r.until(r.moves, CHUNK + BRAKING, what="moving on late chunks")
        assert r.led() == {POLICY}


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
