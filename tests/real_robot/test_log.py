"""The log: whatever happens to the file, a prefix of what was written is read, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError, DataError
from real_robot.core.streams import camera_dtype, command_dtype
from real_robot.recorder.log import OVERHEAD, Log, LogWriter, entries, frame
from real_robot.recorder.pictures import Encoding, Layout, decode, encode, fit

RECORDS = st.lists(st.tuples(st.integers(0, 3), st.integers(-(2**40), 2**62), st.binary(max_size=60)), max_size=8)


def build(records) -> tuple[bytes, list[int]]:
    """The file, and the end of each record."""
    parts = [frame(stream, n, t, payload) for n, (stream, t, payload) in enumerate(records, 1)]
    return b"".join(parts), np.cumsum([len(p) for p in parts]).tolist()


def read(data: bytes):
    return [(e.stream, e.t, data[e.start : e.start + e.size]) for e in entries(data)]


@given(records=RECORDS, cut=st.integers(0, 10_000))
@settings(deadline=None)
def test_a_file_that_is_cut_off_is_read_up_to_the_last_whole_record(records, cut):
    data, ends = build(records)
    cut = min(cut, len(data))
    assert read(data[:cut]) == records[: sum(end <= cut for end in ends)]
    assert read(data[:cut] + bytes(100)) == read(data[:cut])  # as a file system may leave it after a power cut


@given(records=RECORDS.filter(bool), at=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=200)
def test_no_record_is_read_wrongly_when_a_bit_tips_over(records, at, bit):
    data, ends = build(records)
    broken = bytearray(data)
    broken[at % len(data)] ^= 1 << bit
    found = read(bytes(broken))
    assert found == records[: sum(end <= at % len(data) for end in ends)]


def write(path, n=12) -> list[tuple[int, int, bytes]]:
    """Two streams; what stands in the log."""
    writer = LogWriter(path)
    layouts = {"state": Layout(np.dtype("<f8")), "chunk": Layout(np.dtype([("id", "<i8"), ("x", "<f4", (2,))]))}
    out = []
    for i in range(1, n + 1):
        name = "state" if i % 3 else "chunk"
        stream = writer.stream(name, 7, layouts[name], i)
        payload = np.zeros((), layouts[name].head).tobytes()
        writer.append(stream, i, 10 * i, payload)
        out.append((stream.id, i, payload))
    writer.flush()
    writer.close()
    return out


def test_every_bit_and_every_length_of_a_whole_log(tmp_path):
    """Definitions of streams among them; and a writer goes on where the prefix ends."""
    path = tmp_path / "log"
    written = write(path)
    data = path.read_bytes()
    for at in range(len(data)):
        for broken in (data[:at], data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]):
            path.write_bytes(broken)
            log = Log(path)
            found = [(e.stream, e.n, log.payload(e)) for e in log.index]
            assert found == written[: len(found)]
            assert log.size <= at
            assert log.size + log.lost == len(broken)
        if at % 7 == 0:
            writer = LogWriter(path)
            stream = writer.stream("late", 8, Layout(np.dtype("<i4")), 0)
            writer.append(stream, 5, 1, b"1234")
            writer.flush()
            writer.close()
            log = Log(path)
            assert log.lost == 0
            assert [(e.n, log.payload(e)) for e in log.index][-1] == (5, b"1234")
            assert len(log.index) == len(found) + 1
            assert log.streams[log.index[-1].stream].name == "late"


def test_tallies_survive_the_file(tmp_path):
    writer = LogWriter(tmp_path / "log")
    layout = Layout(camera_dtype(2, 2, False), Encoding(image="raw").of(camera_dtype(2, 2, False)))
    stream = writer.stream("camera.front", 1, layout, 0)
    for n, count in ((3, 10), (4, 11), (7, 14), (8, 0), (9, 1)):  # 5 and 6 overwritten; 12, 13 lost by the camera
        data = np.zeros((), layout.dtype)
        data["seq"] = count
        writer.append(stream, n, n * 10**8, layout.pack(data))
    writer.flush()
    (found,) = Log(tmp_path / "log").streams.values()
    assert found == stream
    assert (found.records, found.missed, found.dropped) == (5, 2, 2)
    assert found.hz == pytest.approx(4 / 0.6)
    assert found.bytes == 5 * (OVERHEAD + 8 + 4 + 12)


def test_another_version_is_refused(tmp_path):
    (tmp_path / "log").write_bytes(frame(0, 1, 0, b'{"format": "deft-log", "version": 2}'))
    with pytest.raises(DataError, match="version"):
        Log(tmp_path / "log")


@given(unit=st.sampled_from([0.001, 0.0001, 0.005]), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=20)
def test_depth_is_off_by_half_a_unit_at_most(unit, seed):
    rng = np.random.default_rng(seed)
    metres = rng.uniform(0, 70000 * unit, (16, 16)).astype(np.float32)
    metres[0, :4] = np.nan, np.inf, -1, 0
    how, dtype = {"codec": "png16", "unit": unit}, np.dtype(("<f4", (16, 16)))
    found = decode(encode(metres, how), how, dtype)
    known = np.isfinite(metres) & (metres >= 0) & (metres < 65535 * unit)
    assert (found[~known & ~(np.rint(metres / unit) == 65535)] == 0).all()
    error = np.abs(found[known].astype(np.float64) - metres[known])
    assert error.max() <= unit / 2 + 4e-6 * metres[known].max()  # float32 itself
    assert np.array_equal(decode(encode(found, how), how, dtype), found)


@pytest.mark.parametrize("image", ["jpeg", "png", "raw"])
def test_pictures_come_back(image):
    dtype = camera_dtype(20, 30, True)
    layout = Layout(dtype, Encoding(image=image, depth="raw").of(dtype))
    assert Layout.from_dict(layout.to_dict()) == layout
    data = np.zeros((), dtype)
    data["seq"] = 77
    y, x = np.mgrid[:20, :30]
    data["rgb"] = np.stack([8 * x, 10 * y, 3 * (x + y)], -1)
    data["depth"] = x / 7
    payload = layout.pack(data)
    assert np.frombuffer(payload, layout.head, 1)["seq"] == 77
    assert np.array_equal(layout.picture(payload, "depth"), data["depth"])
    error = np.abs(layout.picture(payload, "rgb").astype(int) - data["rgb"])
    assert error.mean() < 4 if image == "jpeg" else error.max() == 0
    with pytest.raises(DataError, match="no picture"):
        layout.picture(payload, "infrared")


def test_records_without_pictures_are_their_bytes():
    dtype = command_dtype(4)
    layout = Layout(dtype, Encoding().of(dtype))
    data = np.frombuffer(np.random.default_rng(0).bytes(dtype.itemsize), dtype, 1)[0]
    assert layout.pack(data) == data.tobytes()


def test_unknown_encodings_are_refused():
    for wrong in ({"image": "jpg"}, {"quality": 0}, {"depth": "mm"}, {"depth_unit": 0.0}):
        with pytest.raises(ConfigError):
            Encoding(**wrong)


def test_fit_cuts_and_shrinks():
    y, x = np.mgrid[:48, :64]
    rgb = np.stack([x * 4, y * 5, x + y], -1).astype(np.uint8)
    assert np.array_equal(fit(rgb), rgb)
    assert np.array_equal(fit(rgb, "square"), rgb[:, 8:56])
    assert np.array_equal(fit(rgb, (1, 2, 10, 20)), rgb[1:11, 2:22])
    assert fit(rgb, "square", (24, 24)).shape == (24, 24, 3)
    depth = np.where(x < 32, 1, 3).astype(np.float32)
    assert set(np.unique(fit(depth, size=(10, 11)))) == {1, 3}
    with pytest.raises(ConfigError, match="does not lie"):
        fit(rgb, (40, 0, 20, 20))
