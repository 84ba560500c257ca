"""python -m data.convert: decoding ahead, and going on after an interruption."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data import convert as tool
from data.ahead import Ahead
from data.convert import convert
from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError
from data.opening import open_episodes
from tests.data.others import robomimic_file

REPO = Path(__file__).parents[2]


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def left(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def stop_at(n):
    def progress(done):
        if done == n:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_conversion_goes_on(tmp_path, stored, workers):
    source = EpisodeStore.open(stored)
    convert(source, tmp_path / "whole", "deft")
    for n in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "x", "deft", stop_at(n), workers=workers)
    assert not (tmp_path / "x").exists()
    assert left(tmp_path) == [".x.journal", ".x.partial"]
    written, there = [], []
    convert(source, tmp_path / "x", "deft", written.append, workers=workers, resumed=there.append)
    assert (there, written) == ([4], [5])
    assert files_of(tmp_path / "x") == files_of(tmp_path / "whole")
    assert left(tmp_path) == []


def test_what_has_changed_is_refused(tmp_path):
    robomimic_file(tmp_path / "a.hdf5")
    out = tmp_path / "x.zarr"

    def begin(*words):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(tool.Bar, "update", lambda self, done: stop_at(1)(done))
            return tool.main([str(tmp_path / "a.hdf5"), f"out={out}", *words])

    with pytest.raises(KeyboardInterrupt):
        begin()
    with pytest.raises(DataError, match=r"x.zarr is half-written.*: data/action.*episodes.*changed.*anew=true"):
        begin("episodes=0-1")
    with pytest.raises(DataError, match=r"half-written.*format changed"):
        begin("format=dp")
    stat = (tmp_path / "a.hdf5").stat()
    os.utime(tmp_path / "a.hdf5", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"half-written.*: data/action, data/agentview_image, data/done"):
        begin()
    assert tool.main([str(tmp_path / "a.hdf5"), f"out={out}", "anew=true", "episodes=2"]) == 0
    assert open_episodes(out).n_steps == 4
    with pytest.raises(ConfigError, match="workers=0 must be at least 1"):
        begin("workers=0", f"out={tmp_path / 'y'}")


def test_a_split_goes_on_in_its_second_part(tmp_path, monkeypatch):
    robomimic_file(tmp_path / "a.hdf5")
    words = [str(tmp_path / "a.hdf5"), f"out={tmp_path / 'x.zarr'}", "split=0.4"]
    real = tool.convert

    def fails(source, out, *args, **kwargs):
        if "valid" in out.name:
            raise KeyboardInterrupt  # before anything of it is written
        real(source, out, *args, **kwargs)

    monkeypatch.setattr(tool, "convert", fails)
    with pytest.raises(KeyboardInterrupt):
        tool.main(words)
    monkeypatch.setattr(tool, "convert", real)
    with pytest.raises(DataError, match=r"x-train.zarr exists already"):
        tool.main([*words, "seed=7"])
    before = (tmp_path / "x-train.zarr").stat().st_mtime_ns
    assert tool.main(words) == 0
    assert (tmp_path / "x-train.zarr").stat().st_mtime_ns == before
    both = [open_episodes(tmp_path / f"x-{part}.zarr") for part in ("train", "valid")]
    assert sum(s.n_steps for s in both) == open_episodes(tmp_path / "a.hdf5").n_steps
    assert left(tmp_path) == []


@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path):
    """The command itself, killed again and again, gives what one run gives."""
    robomimic_file(tmp_path / "a.hdf5", lengths=[40] * 8, compression="gzip")
    convert(open_episodes(tmp_path / "a.hdf5"), tmp_path / "whole.zarr", "deft")
    slow = (  # a progress that takes its time, so that a kill falls anywhere
        "import sys, time; from pathlib import Path; from data.convert import convert\n"
        "from data.opening import open_episodes\n"
        "source, out = open_episodes(sys.argv[1]), Path(sys.argv[2])\n"
        "convert(source, out, 'deft', lambda n: (print(n, flush=True), time.sleep(0.02)), workers=2)"
    )
    rng, out, kills = np.random.default_rng(0), tmp_path / "x.zarr", 0
    while not out.exists():
        with subprocess.Popen(
            [sys.executable, "-c", slow, tmp_path / "a.hdf5", out], cwd=REPO, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        assert kills < 9  # each has written an episode more
    assert kills >= 2
    assert files_of(out) == files_of(tmp_path / "whole.zarr")


def test_what_is_decoded_ahead_is_the_same_and_within_the_budget(stored):
    source = EpisodeStore.open(stored)
    step = sum(source.array(k).row_bytes for k in source.keys)
    read, threads = [], set()
    for key in source.keys:
        array = source.array(key)

        def seen(a, b, array=array):
            read.append(b - a)
            threads.add(threading.current_thread().name)
            return type(array).read(array, a, b)

        array.read = seen
    with Ahead(source, 2, budget_bytes=13 * step) as ahead:
        for i in range(5):  # 7, 4, 12, 5 and 9 steps
            for key in reversed(ahead.keys):
                np.testing.assert_array_equal(ahead.episode(i)[key], source.episode(i)[key])
                waiting = sum(int(np.diff(ahead.episode_ends, prepend=0)[j]) for j in ahead._coming)
                assert waiting <= 13
        rng = np.random.default_rng(0)
        for a, b in np.sort(rng.integers(0, 38, (30, 2))).tolist():
            np.testing.assert_array_equal(ahead.array("cloud").read(a, b), source.array("cloud").read(a, b))
    assert any(t.startswith("deft-ahead") for t in threads)
    with Ahead(source, 2, budget_bytes=step) as ahead:  # nothing fits
        threads.clear()
        np.testing.assert_array_equal(ahead.array("state").read(3, 9), source.array("state").read(3, 9))
        ahead.episode(2)
    assert threads == {threading.current_thread().name}


def test_episodes_are_decoded_together_and_before_they_are_asked_for(stored):
    source, both = EpisodeStore.open(stored), threading.Barrier(2)
    array, begun = source.array("state"), []

    def read(a, b):
        begun.append(a)
        if a in (7, 11):  # episodes 1 and 2: each goes on when the other has come
            both.wait(timeout=30)
        return type(array).read(array, a, b)

    array.read = read
    with Ahead(source, 2) as ahead:
        ahead.array("state").read(0, 7)
        deadline = time.monotonic() + 30
        while not {7, 11} <= set(begun) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert {7, 11} <= set(begun)
        np.testing.assert_array_equal(ahead.array("state").read(7, 11), source.array("state")._array[7:11])


def test_an_error_comes_when_its_episode_is_read(stored):
    source = EpisodeStore.open(stored)
    array = source.array("state")

    def broken(a, b):
        if a == 11:
            raise DataError("episode 2 is broken")
        return type(array).read(array, a, b)

    array.read = broken
    with Ahead(source, 2) as ahead:
        ahead.episode(0)
        ahead.episode(1)
        with pytest.raises(DataError, match="episode 2 is broken"):
            ahead.episode(2)
