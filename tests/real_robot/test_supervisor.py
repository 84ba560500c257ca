"""Processes that die come back, but for the one that must not; all end together."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from real_robot.core.streams import Events, Session, sensor_dtype
from real_robot.core.supervisor import Part, Supervisor


def count(folder: str, *, name: str = "count", fail: int | None = None) -> None:
    session = Session(folder)
    ring = session.reopen(f"sensor.{name}", sensor_dtype(1), 64)
    Events(session, name).info(f"pid {os.getpid()}")
    if fail is not None:
        raise SystemExit(fail)
    while not session.stopping:
        ring.put(np.zeros((), ring.dtype), time.monotonic_ns())
        time.sleep(0.01)


def deaf(folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Events(Session(folder), "deaf").info("up")
    time.sleep(100)


def until(condition, supervisor: Supervisor, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, supervisor.news()
        supervisor.watch()
        time.sleep(0.02)


def newest(supervisor: Supervisor, name: str = "count") -> int:
    ring = f"sensor.{name}"
    return supervisor.session.attach(ring).newest if supervisor.session.has(ring) else 0


def test_a_process_that_is_killed_comes_back_and_goes_on_counting():
    with Supervisor([Part("count", count)]) as s:
        until(lambda: newest(s) > 5, s)
        os.kill(s.parts[0].process.pid, signal.SIGKILL)
        s.parts[0].process.join()
        before = newest(s)
        until(lambda: newest(s) > before + 5, s)
        assert s.parts[0].restarts == 1
        said = [text for _, _, text in s.news()]
        assert sum(text.startswith("pid") for text in said) == 2
        assert any("it is started again" in text for text in said)
    assert not s.session.folder.exists()


def test_when_an_essential_process_dies_the_session_ends():
    gasps = []
    with Supervisor([Part("count", count, essential=True)], last_gasp=lambda: gasps.append(1)) as s:
        until(lambda: newest(s) > 5, s)
        os.kill(s.parts[0].process.pid, signal.SIGKILL)
        s.parts[0].process.join()
        assert not s.watch()
        assert s.failed == "count ended with status -9"
        assert gasps == [1]


def test_nothing_is_started_on_what_could_not_start():
    first = Part("simulator", count, {"name": "simulator", "fail": 2}, essential=True, ready="world")
    with Supervisor([first, Part("count", count)]) as s:
        assert s.parts[1].process is None
        assert not s.watch()
        assert s.failed == "simulator ended with status 2"


@pytest.mark.parametrize(("status", "restarts"), [(2, 0), (1, 1)])
def test_one_that_says_why_is_not_started_again_and_one_that_cannot_live_not_for_ever(status, restarts):
    with Supervisor([Part("bad", count, {"name": "bad", "fail": status}), Part("count", count)], max_restarts=1) as s:
        until(lambda: s.parts[0].process is None, s, 60.0)
        assert s.parts[0].restarts == restarts
        assert any("not started again" in text for text in s.errors())
        assert s.watch()


def test_what_gives_up_before_it_was_of_use_ends_the_session_and_afterwards_does_not():
    gasps = []
    late = Part("policy", count, {"fail": 2}, needs="sensor.count")
    never = Part("policy", count, {"fail": 2}, needs="chunk")
    with Supervisor([late, Part("count", count)], last_gasp=lambda: gasps.append(1)) as s:
        until(lambda: s.parts[0].process is None, s)
        assert s.watch()
        assert not s.failed
    with Supervisor([never, Part("count", count)], last_gasp=lambda: gasps.append(1)) as s:
        never.process.join()
        assert not s.watch()
        assert s.failed == "policy ended with status 2"
    assert not gasps  # the control process is alive, and stops the robot as always


def test_one_that_does_not_end_is_killed():
    with Supervisor([Part("deaf", deaf), Part("count", count)]) as s:
        until(lambda: s.session.has("event.deaf") and newest(s) > 0, s)
        pids = [part.process.pid for part in s.parts]
        s.stop(timeout=0.5)
        for pid in pids:
            assert not Path(f"/proc/{pid}").exists()
