"""What fails of the machine that a session runs on: its date is changed, its disk is full. Each process is real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from real_robot.control.machine import Machine
from real_robot.core.streams import HUMAN, POLICY
from real_robot.core.types import SECOND, Button
from real_robot.recorder import folder as folders
from real_robot.recorder.episode import Episode
from tests.real_robot.running import CHUNK, Running, running

HOUR = 3600 * SECOND


class WallClock:
    """The date that processes see which are started from now on."""

    def __init__(self, file: Path):
        self._file = np.memmap(file, np.int64, "w+", shape=(1,))

    def step(self, ns: int) -> None:
        """The date is changed, in all of them at once."""
        self._file[0] += ns


@pytest.fixture
def wall_clock(tmp_path, monkeypatch):
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler (cc) and Linux, for a date of the processes' own")
    library = tmp_path / "wall_clock.so"
    source = Path(__file__).with_name("wall_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    clock = WallClock(tmp_path / "date")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("WALL_CLOCK", str(tmp_path / "date"))
    return clock


def test_the_date_of_other_processes_can_be_changed(wall_clock):
    """And nothing but the date."""
    tell = "import time; input(); print(time.time_ns(), time.monotonic_ns(), int(time.time()))"
    for step in (HOUR, -2 * HOUR):
        wall_clock.step(step)
        date, monotonic, whole = map(int, subprocess.check_output([sys.executable, "-c", tell], input=b"\n").split())
        wanted = HOUR if step > 0 else -HOUR
        assert abs(date - time.time_ns() - wanted) < 60 * SECOND
        assert abs(monotonic - time.monotonic_ns()) < 60 * SECOND
        assert abs(date // SECOND - whole) <= 1


def states_since(r: Running, since: int) -> set[int]:
    return set(r.commands(since)["state"].tolist())


def start(r: Running, number: int) -> None:
    """Of an episode, which is recorded."""
    r.press(Button.START)
    r.until(lambda: (r.out / f"episode_{number:04d}" / "log").exists(), what="recording")


def ends(r: Running, number: int) -> Episode:
    """It is stopped, and closed."""
    folder = r.out / f"episode_{number:04d}"
    r.press(Button.STOP | Button.SUCCESS)
    r.until(lambda: folders.is_done(folder) and folders.read_meta(folder)["label"] == "success", what="the end")
    return Episode(folder)


def whole(episode: Episode, camera: bool) -> None:
    """Every command and every picture from START to STOP, each in its time."""
    for name in ("command", "state", *(("camera.front",) if camera else ())):
        t = episode.pictures(name).t if name.startswith("camera") else episode.table(name)[0]
        assert (np.diff(t) >= 0).all()
        assert np.diff(t).max() < SECOND, name
        assert t[0] <= episode.meta["start"] + SECOND
        assert t[-1] >= episode.meta["end"] - SECOND
    assert episode.log.lost == 0


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.parametrize("who", ["policy", "hand", "ur_sim"])
def test_the_date_is_changed(tmp_path, wall_clock, hours, who):
    """Policy, camera, hand, recorder, control and a controller on the wire: none of them goes by the date."""
    camera, leads = who != "hand", HUMAN if who == "hand" else POLICY
    given = ()
    if who == "ur_sim":
        pytest.importorskip("rtde_control", reason="pip install 'deft[ur]'")
        given = ("robot=ur_sim", "robot.host=127.0.1.61", "simulator.host=127.0.1.61")
    with running(tmp_path, camera=camera, hand=who == "hand", record=True, given=given) as r:
        start(r, 0)
        time.sleep(1.5)
        before, chunks = time.monotonic_ns(), r.session.attach("chunk").newest if camera else 0
        wall_clock.step(hours * HOUR)
        for _ in range(15):
            time.sleep(0.2)
            r.supervisor.watch()
            assert r.moves() or r.until(r.moves, CHUNK, "going on") <= CHUNK
        assert states_since(r, before) <= {Machine.RUN, Machine.PAUSE}
        assert r.led() == {leads}
        assert not camera or r.session.attach("chunk").newest >= chunks + 5
        first = ends(r, 0)
        start(r, 1)
        time.sleep(1.0)
        second = ends(r, 1)
        assert all(part.restarts == 0 for part in r.supervisor.parts)
    for episode in (first, second):
        whole(episode, camera)
        assert not [text for _, _, level, text in episode.events() if level >= 40]
    t, date = first.table("clock")
    steps = np.diff(date["realtime"]) - np.diff(t)
    assert np.abs(steps).max() == pytest.approx(HOUR, abs=SECOND)  # so it was seen, and is in the recording
    assert (steps[np.abs(steps) > SECOND] > 0).tolist() == [hours > 0]
    assert second.meta["start"] > first.meta["end"]
    assert (second.meta["date"] > first.meta["date"]) == (hours > 0)


def fill(disk: Path) -> None:
    """Until nothing more goes in."""
    with open(disk / "ballast", "ab", buffering=0) as f, suppress(OSError):
        for size in [1 << 16] * 64 + [1] * 8192:
            f.write(bytes(size))
    assert os.statvfs(disk).f_bavail == 0


def full(r: Running) -> bool:
    """What the recorder says of its disk."""
    return bool(r.session.attach("recorder").latest().data["full"])


@pytest.mark.slow
@pytest.mark.parametrize("hand", [False, True])
@pytest.mark.parametrize("min_free_mb", [0.0, 0.5])  # a write fails, or there is less left than is asked for
def test_the_disk_is_full(tmp_path, small_disk, min_free_mb, hand):
    """The robot goes on; what was recorded is kept, and there is more as soon as there is room."""
    options = ("recorder.image=raw", f"recorder.min_free_mb={min_free_mb}")
    with running(tmp_path, camera=not hand, hand=hand, record=small_disk / "out", given=options) as r:
        start(r, 0)
        first = ends(r, 0)
        kept = (first.folder / "log").read_bytes()
        start(r, 1)
        time.sleep(0.7)
        before = time.monotonic_ns()
        fill(small_disk)
        folder = r.out / "episode_0001"
        r.until(lambda: any("takes no more data" in text for text in r.supervisor.errors()), what="the full disk")
        for _ in range(5):
            time.sleep(0.2)
            assert r.moves() or r.until(r.moves, CHUNK, "going on") <= CHUNK
        if min_free_mb:  # else what the recorder kept back counts as room again
            r.press(Button.START)  # nothing comes of it
            time.sleep(0.5)
            assert not (r.out / "episode_0002").exists()
        (small_disk / "ballast").unlink()
        r.until(lambda: folders.is_done(folder) and not full(r), what="closing the episode")
        start(r, 2)
        time.sleep(0.3)
        third = ends(r, 2)
        assert states_since(r, before) <= {Machine.RUN, Machine.PAUSE}
        assert all(part.restarts == 0 for part in r.supervisor.parts)
    assert (first.folder / "log").read_bytes() == kept
    second = Episode(folder)
    assert second.meta["truncated"].startswith("disk: ")
    for episode in (first, second, third):
        assert episode.log.lost == 0
        t = episode.table("command")[0]
        assert np.diff(t).max() < SECOND / 2
    assert second.table("command")[0][-1] > before - SECOND / 2  # what was finished when it became full is there
