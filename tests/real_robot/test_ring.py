"""Rings: what is read is what was put, whole, whoever writes and dies meanwhile."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from real_robot.core.ring import Ring
from real_robot.core.streams import (
    Events,
    Session,
    camera_dtype,
    chunk_dtype,
    command_dtype,
    event,
    state_dtype,
    teleop_dtype,
)


@pytest.mark.parametrize(
    "dtype",
    [np.dtype("<f8"), state_dtype(6), command_dtype(7), chunk_dtype(2), teleop_dtype(3), camera_dtype(4, 5, True)],
)
def test_layout_survives_the_file(tmp_path, dtype):
    ring = Ring.create(tmp_path / "r", dtype, 4)
    data = np.frombuffer(np.random.default_rng(0).bytes(dtype.itemsize), dtype, 1)[0]
    assert ring.put(data, 17) == 1
    other = Ring.attach(tmp_path / "r")
    assert other.dtype == dtype
    record = other.latest()
    assert record is not None
    assert (record.n, record.t) == (1, 17)
    assert record.data.tobytes() == np.asarray(data).tobytes()


@given(puts=st.integers(0, 40), slots=st.integers(1, 9), seen=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_since_tells_what_is_there_and_what_was_missed(tmp_path_factory, puts, slots, seen):
    ring = Ring.create(tmp_path_factory.mktemp("r") / "r", "<i8", slots)
    for i in range(1, puts + 1):
        ring.put(10 * i, i)
    seen = min(seen, puts)
    found, missed = ring.since(seen)
    assert [r.n for r in found] == list(range(max(seen, puts - slots) + 1, puts + 1))
    assert [int(r.data) for r in found] == [10 * r.n for r in found]
    assert missed == puts - seen - len(found)
    assert ring.get(puts + 1) is None


def _write(path: str) -> None:
    ring, n = Ring.attach(path), 0
    while True:
        n += 1
        ring.put(np.full(512, n % 251, "<f8"), n)


def test_no_torn_reads_though_the_writer_is_killed(tmp_path):
    ring = Ring.create(tmp_path / "r", np.dtype(("<f8", (512,))), 2)
    taken = 0
    for _ in range(3):
        process = mp.get_context("fork").Process(target=_write, args=(str(ring.path),))
        process.start()
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            if (record := ring.get(ring.newest)) is not None:
                assert (record.data == record.data[0]).all()
                taken += 1
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert taken > 100
    assert ring.put(np.zeros(512), 1) == ring.newest


def test_attach_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="no ring"):
        Ring.attach(tmp_path / "r")
    (tmp_path / "r").write_bytes(bytes(5000))
    with pytest.raises(DataError, match="is not a ring"):
        Ring.attach(tmp_path / "r")


def test_a_session_takes_its_folder_away():
    session = Session()
    session.create("state", state_dtype(2), 8).put(np.zeros((), state_dtype(2)), 5)
    other = Session(session.folder)
    assert other.names() == ["state"]
    reopened = other.reopen("state", state_dtype(2), 8)
    assert reopened.newest == 1
    Events(other, "camera").warning("é" * 300)
    said = session.attach("event.camera").latest()
    assert said is not None
    assert event(said) == (30, "é" * 200)
    assert not other.stopping
    session.stop()
    assert other.stopping
    other.close()
    assert session.has("state")
    session.close()
    assert not session.folder.exists()


def test_a_ring_that_does_not_fit_is_not_made(small_disk):
    """And one that was made goes on when its file system is full."""
    ring = Ring.create(small_disk / "made", np.dtype(("<f8", (1000,))), 100)
    with pytest.raises(DataError, match=r"takes 8\.. MB, which are not free"):
        Ring.create(small_disk / "large", np.dtype(("<f8", (1000,))), 1000)
    assert [p.name for p in small_disk.iterdir()] == ["made"]
    with open(small_disk / "ballast", "wb", buffering=0) as f, suppress(OSError):
        while True:
            f.write(bytes(4096))
    for i in range(200):
        ring.put(np.full(1000, i, "<f8"), i)
    assert [int(r.data[0]) for r in ring.since(0)[0]] == list(range(100, 200))
