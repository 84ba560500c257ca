"""The recorder: what is in the rings is in the episode, whoever is killed, and whatever becomes of the disk."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import resource
import signal
import time

import cv2  # noqa: F401  (forked recorders need not import it)
import numpy as np
import pytest

from data.errors import ConfigError
from real_robot.core.streams import REQUEST, Events, Session, camera_dtype, command_dtype, state_dtype
from real_robot.core.types import SECOND, Button
from real_robot.recorder import folder as folders
from real_robot.recorder.episode import Episode
from real_robot.recorder.log import Log
from real_robot.recorder.pictures import Encoding
from real_robot.recorder.process import run
from tests.real_robot.recording import Filled, H, N, W, contiguous, numbers, picture, q_at, recorder, said


@pytest.fixture
def session(monkeypatch, tmp_path):
    session = Session()
    yield session
    session.close()


def steps(r, n=3) -> None:
    for _ in range(n):
        r._looked = 0.0
        r.step()


def test_an_episode_holds_everything_from_start_to_stop(session, tmp_path):
    rings = Filled(session)
    Events(session, "control").info("hello")
    rings.press(Button.START, 1.0)
    r = recorder(session, tmp_path)
    steps(r)
    status = session.attach("recorder").latest()
    assert bool(status.data["recording"])
    rings.press(Button.STOP | Button.SUCCESS, 3.0)
    steps(r)
    rings.press(Button.FAILURE, 3.5)  # upon reflection
    steps(r)
    r.close()
    (folder,) = folders.episodes(tmp_path)
    meta = folders.read_meta(folder)
    assert folders.is_done(folder)
    assert (meta["status"], meta["label"], meta["truncated"]) == ("finished", "failure", None)
    assert folders.seconds(meta) == 2.0
    assert meta["info"]["cameras"] == {"front": {"fx": 30.0}}
    assert abs(meta["realtime"] - (time.time_ns() - time.monotonic_ns() + meta["start"])) < SECOND
    episode = Episode(folder)
    t, state = episode.table("state")
    assert numbers(folder, "state") == list(range(101, 401))  # from START on, and what was there at STOP
    assert np.array_equal(state["q"], q_at((t - rings.t0) / 1e9)) or np.allclose(state["q"], q_at((t - rings.t0) / 1e9))
    pictures = episode.pictures("camera.front")
    assert len(pictures) == 60
    assert np.array_equal(pictures[5], picture(25))
    assert episode.table("clock")[1]["realtime"][0] == pytest.approx(time.time_ns(), abs=60e9)
    assert ("control", "hello") in [(p, text) for _, p, _, text in episode.events()]
    assert meta["streams"]["state"] == {"records": 300, "missed": 0, "dropped": 0, "hz": 100.0,
                                        "bytes": meta["streams"]["state"]["bytes"]}  # fmt: skip


def test_preroll_reaches_back(session, tmp_path):
    rings = Filled(session)
    rings.press(Button.START, 1.0)
    r = recorder(session, tmp_path, preroll=0.5)
    steps(r)
    r.close()
    (folder,) = folders.episodes(tmp_path)
    assert numbers(folder, "state")[0] == 51
    meta = folders.read_meta(folder)
    assert meta["truncated"] == "the session ended before STOP"
    assert folders.group(meta) == "truncated"


def test_what_comes_long_after_stop_is_not_waited_for(session, tmp_path, monkeypatch):
    """A recorder that is slower than its cameras would never come to an end."""
    monkeypatch.setattr("real_robot.recorder.take.PASS", 0.0)
    rings = Filled(session)
    rings.press(Button.START, 1.0)
    rings.press(Button.STOP, 2.0)
    r = recorder(session, tmp_path, tail=0.1)
    while r._take is not None or not folders.episodes(tmp_path):
        steps(r, 1)
        for _ in range(20):
            rings.tick(500, 100)
    r.close()
    assert numbers(tmp_path / "episode_0000", "state") == list(range(101, 212))
    assert numbers(tmp_path / "episode_0000", "camera.front") == list(range(21, 44))


def test_rings_that_appear_or_are_replaced(session, tmp_path):
    rings = Filled(session)
    rings.press(Button.START, 3.5)
    r = recorder(session, tmp_path)
    steps(r)
    late = session.create("camera.late", camera_dtype(2, 2, False), 8)
    late.put((0, np.full((2, 2, 3), 9)), rings.at(3.9))
    steps(r)
    for i in range(4):
        late.put((i + 1, np.full((2, 2, 3), i)), rings.at(4 + i / 10))
    late = session.create("camera.late", camera_dtype(4, 4, False), 8)  # another resolution
    late.put((0, np.full((4, 4, 3), 5)), rings.at(4.9))
    steps(r)
    r.close()
    (folder,) = folders.episodes(tmp_path)
    assert numbers(folder, "camera.late") == [1, 2, 3, 4, 5, 1]
    pictures = Episode(folder).pictures("camera.late")
    assert pictures[0].shape == (2, 2, 3)
    assert pictures[5].shape == (4, 4, 3)


def test_overruns_are_counted_and_said(session, tmp_path):
    rings = Filled(session)
    small = session.create("camera.small", np.dtype([("seq", "<i8")]), 16)
    small.put((0,), rings.at(3.0))
    rings.press(Button.START, 2.9)
    r = recorder(session, tmp_path)
    steps(r)
    for i in range(1, 100):
        small.put((i,), rings.at(3 + i / 100))
    r._checked = 0.0
    steps(r)
    r.close()
    (folder,) = folders.episodes(tmp_path)
    found = numbers(folder, "camera.small")
    assert found == [1, *range(101 - len(found) + 1, 101)]
    meta = folders.read_meta(folder)["streams"]["camera.small"]
    assert meta["missed"] == 100 - len(found)
    assert meta["dropped"] == 100 - len(found)
    assert f"camera.small {meta['missed']}" in said(session)


def test_wishes(session, tmp_path):
    rings = Filled(session)
    r = recorder(session, tmp_path)

    def press(button: Button, at: float) -> None:
        rings.press(button, at)
        steps(r)

    press(Button.SUCCESS, 0.1)
    press(Button.DISCARD, 0.2)
    press(Button.STOP, 0.3)
    assert "no episode to label" in said(session)
    assert "no episode to discard" in said(session)
    press(Button.START, 0.5)
    press(Button.START, 0.6)
    assert "being recorded already" in said(session)
    press(Button.STOP, 1.0)
    press(Button.START, 1.0)
    press(Button.DISCARD, 1.5)  # while it goes on
    press(Button.START, 2.0)
    press(Button.STOP, 2.5)
    press(Button.DISCARD, 2.6)  # afterwards
    press(Button.DISCARD, 2.7)  # never the one before
    rings.teleop.put((False, np.zeros(N), int(Button.START | Button.ENABLE)), rings.at(3.0))  # from the device
    steps(r)
    press(Button.STOP, 3.5)
    r.close()
    assert [folders.number(f) for f in folders.episodes(tmp_path)] == [0, 3]
    assert [folders.number(f) for f in folders.episodes(tmp_path, discarded=True)] == [1, 2]
    folders.restore(folders.find(tmp_path, 2, discarded=True))
    r = recorder(session, tmp_path)  # what was asked for has been done already
    steps(r)
    r.close()
    assert [folders.number(f) for f in folders.episodes(tmp_path)] == [0, 2, 3]
    with pytest.raises(ConfigError, match="label"):
        folders.set_label(folders.find(tmp_path, 0), "good")


def test_what_is_asked_for_while_no_recorder_runs_is_done_by_the_next(session, tmp_path):
    rings = Filled(session)
    rings.press(Button.START, 1.0)
    first = recorder(session, tmp_path)
    steps(first)
    os.close(first.disk._lock)  # as if it was killed: nothing is finished
    rings.press(Button.STOP | Button.FAILURE, 2.0)
    rings.press(Button.START, 2.5)
    rings.press(Button.STOP, 3.0)
    rings.press(Button.SUCCESS, 3.1)
    second = recorder(session, tmp_path)
    steps(second)
    second.close()
    metas = [folders.read_meta(f) for f in folders.episodes(tmp_path)]
    assert [(m["label"], folders.seconds(m)) for m in metas] == [("failure", 1.0), ("success", 0.5)]
    assert contiguous(numbers(tmp_path / "episode_0000", "state"))
    assert "goes on with episode_0000" in said(session)


def test_a_wish_that_was_logged_but_not_seen_to_is_seen_to(session, tmp_path):
    """The ring may have forgotten it by the time that there is a recorder again."""
    rings = Filled(session)
    rings.press(Button.START, 1.0)
    first = recorder(session, tmp_path)
    steps(first)
    rings.press(Button.STOP | Button.SUCCESS, 2.0)
    first._record(first._take)  # into the log, and killed before it was acted upon
    os.close(first.disk._lock)
    for i in range(20):  # more than the ring holds
        rings.press(Button.NONE, 2 + i / 100)
    second = recorder(session, tmp_path)
    steps(second)
    second.close()
    meta = folders.read_meta(tmp_path / "episode_0000")
    assert (meta["label"], folders.seconds(meta)) == ("success", 1.0)


def test_an_episode_of_a_dead_session_is_recovered(session, tmp_path):
    dead = Session()
    rings = Filled(dead)
    rings.press(Button.START, 1.0)
    r = recorder(dead, tmp_path)
    steps(r)
    os.close(r.disk._lock)
    dead.close()
    with open(tmp_path / "episode_0000" / "log", "ab") as f:
        f.write(b"half a record")
    (tmp_path / ".draft-episode_0001").mkdir()
    r = recorder(session, tmp_path)
    r.close()
    (folder,) = folders.episodes(tmp_path)
    meta = folders.read_meta(folder)
    assert folders.is_done(folder)
    assert meta["truncated"] == "its session died"
    assert meta["streams"]["state"]["records"] == 300
    assert Log(folder / "log").lost == 0
    assert "are recovered" in said(session)
    assert not (tmp_path / ".draft-episode_0001").exists()


def test_two_recorders_do_not_share_a_folder(session, tmp_path, monkeypatch):
    r = recorder(session, tmp_path)
    monkeypatch.setattr("real_robot.recorder.disk.Disk.__init__.__defaults__", (0.1,))
    with pytest.raises(ConfigError, match="Another recorder"):
        recorder(session, tmp_path)
    r.close()


# ------------------------------------------------------------------------------------------------------- full disks


def fill(rings: Filled, r, first: int) -> int:
    """Pictures that do not fit on the disk; the first that was not put."""
    for i in range(first, first + 900):
        rings.camera.put((i, np.random.default_rng(i).integers(0, 256, (H, W, 3))), rings.at(4 + i / 20))
        if i % 50 == 0:
            steps(r, 1)
        if r._full:
            return i + 1
    return first + 900


def check_full(session, out, rings, r, last: int) -> None:
    """The episode has ended, and holds what went in before."""
    (folder,) = folders.episodes(out)
    meta = folders.read_meta(folder)
    assert folders.is_done(folder)
    assert meta["truncated"].startswith("disk: ")
    assert "takes no more data" in said(session)
    log = Log(folder / "log")
    assert log.lost == 0
    found = numbers(folder, "camera.front")
    assert contiguous(found)
    assert len(found) >= last - 100
    assert meta["streams"]["camera.front"]["records"] == len(found)
    assert bool(session.attach("recorder").latest().data["full"]) or r._told


def test_a_full_disk_ends_the_episode_and_loses_nothing(session, small_disk):
    rings = Filled(session)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(800_000))
    rings.press(Button.START, 3.0)
    r = recorder(session, small_disk, encoding=Encoding(image="raw"))
    steps(r)
    last = fill(rings, r, 80)
    assert r._full
    check_full(session, small_disk, rings, r, last - 80)
    rings.press(Button.START, 50.0)
    steps(r)
    assert "nothing is recorded" in said(session)
    assert len(folders.episodes(small_disk)) == 1
    ballast.unlink()
    r._checked = 0.0
    steps(r)
    assert "there is space" in said(session)
    rings.press(Button.START, 50.0)
    steps(r)
    rings.press(Button.STOP, 50.5)
    steps(r)
    r.close()
    meta = folders.read_meta(folders.find(small_disk, 1))
    assert (meta["status"], meta["truncated"]) == ("finished", None)


def test_an_almost_full_disk_ends_it_too(session, small_disk):
    rings = Filled(session)
    rings.press(Button.START, 3.0)
    r = recorder(session, small_disk, min_free_mb=1.0)
    steps(r)
    (small_disk / "ballast").write_bytes(bytes(900_000))
    r._checked = 0.0
    steps(r)
    r.close()
    meta = folders.read_meta(folders.find(small_disk, 0))
    assert meta["truncated"] == "disk: less than 1 MB are free"
    assert meta["streams"]["state"]["records"] == 100


def _limited(folder: str, out: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    run(folder, out=out, image="raw", preroll=0.0, min_free_mb=0.0)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_a_full_disk(session, tmp_path):
    rings = Filled(session)
    rings.press(Button.START, 3.0)
    process = mp.get_context("fork").Process(target=_limited, args=(str(session.folder), str(tmp_path)))
    process.start()
    for i in range(300):
        rings.camera.put((80 + i, picture(i)), rings.at(4 + i / 20))
    wait_for(lambda: any(folders.is_done(f) for f in folders.episodes(tmp_path)))
    session.stop()
    process.join(20)
    assert process.exitcode == 0
    folder = folders.find(tmp_path, 0)
    assert folders.read_meta(folder)["truncated"] == "disk: File too large"
    assert 0 < Log(folder / "log").size <= 300_000
    assert Log(folder / "log").lost == 0
    assert contiguous(numbers(folder, "camera.front"))


# ------------------------------------------------------------------------------------------------------------ kills


def wait_for(what, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def _write(folder: str) -> None:
    """State and command at 200 Hz, two cameras at 30 Hz, as long as the session lasts."""
    session = Session(folder)
    n = 3
    rings = {
        "state": (session.create("state", state_dtype(n), 4096), 200),
        "command": (session.create("command", command_dtype(n), 4096), 200),
        "camera.a": (session.create("camera.a", camera_dtype(48, 64, False), 256), 30),
        "camera.b": (session.create("camera.b", camera_dtype(48, 64, True), 256), 30),
    }
    data = {name: np.zeros((), ring.dtype) for name, (ring, _) in rings.items()}
    begin = time.monotonic()
    while not session.stopping:
        for name, (ring, hz) in rings.items():
            while ring.newest < (time.monotonic() - begin) * hz:
                field = "seq" if name.startswith("camera.") else "q" if name == "state" else "sent"
                data[name][field] = ring.newest + 1
                ring.put(data[name], time.monotonic_ns())
        time.sleep(0.002)


@pytest.mark.slow
def test_thirty_kills_in_a_row_lose_nothing(session, tmp_path):
    context, rng = mp.get_context("fork"), random.Random(1)
    request = session.create("request", REQUEST, 64)
    writer = context.Process(target=_write, args=(str(session.folder),))
    writer.start()
    wait_for(lambda: len(session.names("camera.")) == 2)
    request.put((int(Button.START),), time.monotonic_ns())
    grown = 0

    def start():
        process = context.Process(target=run, args=(str(session.folder),), kwargs={"out": str(tmp_path)})
        process.start()
        return process

    process = start()
    wait_for(lambda: folders.episodes(tmp_path))
    log = tmp_path / "episode_0000" / "log"
    for i in range(30):
        before = log.stat().st_size if log.exists() else 0
        if i % 3:  # it works already; else it may still look at what it finds
            wait_for(lambda before=before: log.exists() and log.stat().st_size > before)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        grown += log.exists() and log.stat().st_size > before
        process = start()
    assert grown >= 20
    wait_for(lambda: "goes on with" in said(session).splitlines()[-1])
    request.put((int(Button.STOP | Button.SUCCESS),), time.monotonic_ns())
    wait_for(lambda: folders.is_done(tmp_path / "episode_0000"))
    session.stop()
    process.join()
    writer.join()
    (folder,) = folders.episodes(tmp_path)
    meta = folders.read_meta(folder)
    assert (meta["label"], meta["truncated"]) == ("success", None)
    episode = Episode(folder)
    for name, field in (("state", "q"), ("command", "sent"), ("camera.a", "seq"), ("camera.b", "seq")):
        t, rows = episode.table(name)
        found = numbers(folder, name)
        assert contiguous(found), name
        assert meta["streams"][name]["missed"] == 0
        assert np.array_equal(rows[field].reshape(len(rows), -1)[:, 0], found), name
        assert t[0] <= meta["start"] + SECOND
        assert t[-1] >= meta["end"] - SECOND
