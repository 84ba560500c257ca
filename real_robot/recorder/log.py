"""The log of an episode: a file that is only ever appended to, and that says itself what is in it.

    record   length u32 | crc32 u32 | stream u16 | n u64 | t i64 | payload (length bytes)      little endian
             crc32 covers all of it but itself; n is the record's number in its ring, t its time (ns, monotonic)
    stream 0 JSON: first {"format": "deft-log", "version": 1}, then, before a stream's first record, its number, name,
             layout (dtype, codecs of pictures) and the ring it comes from

Whatever happens to a file (its writer is killed, it is cut off, a bit tips over), it is read up to the first record
that is not whole, and nothing else is ever read from it.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import DataError
from real_robot.recorder.pictures import Layout

FORMAT = {"format": "deft-log", "version": 1}
_SIZES = struct.Struct("<II")
_BODY = struct.Struct("<HQq")
OVERHEAD = _SIZES.size + _BODY.size  # bytes of a record without its payload


class Entry(NamedTuple):
    """One record; ``start`` and ``size`` say where its payload lies in the file."""

    stream: int
    n: int
    t: int
    start: int
    size: int


@dataclass
class Stream:
    """One ring's records in a log, and how they fare.

    Attributes:
        id: in this log.
        name: of the ring.
        source: ``Ring.id``; a ring that was replaced is another stream of the same name.
        layout: of its records.
        records, bytes: written, payloads with overhead.
        last, t_first, t_last: number and times; last is 0 before the first record.
        missed: records that were overwritten in the ring before they were read (overruns).
        dropped: pictures that the camera itself lost, by the gaps of its own count.
    """

    id: int
    name: str
    source: int
    layout: Layout
    records: int = 0
    bytes: int = 0
    last: int = 0
    t_first: int = 0
    t_last: int = 0
    missed: int = 0
    dropped: int = 0
    _count: int | None = None

    def __post_init__(self) -> None:
        fields = self.layout.head.fields or {}
        camera = self.name.startswith("camera.") and "seq" in fields
        self._seq = fields["seq"][1] if camera else None

    def add(self, n: int, t: int, payload: bytes | memoryview) -> None:
        """One more record."""
        self.missed += n - self.last - 1 if self.last else 0
        self.t_first = self.t_first if self.records else t
        self.last, self.t_last = n, t
        self.records += 1
        self.bytes += OVERHEAD + len(payload)
        if self._seq is not None:
            count = int.from_bytes(payload[self._seq : self._seq + 8], "little", signed=True)
            self.dropped += max(0, count - self._count - 1) if self._count is not None else 0
            self._count = count

    @property
    def hz(self) -> float:
        """Records per second, 0 where there are too few to say."""
        span = (self.t_last - self.t_first) / 1e9
        return (self.records - 1) / span if self.records > 1 and span > 0 else 0.0

    def describe(self) -> bytes:
        """The record of stream 0 that introduces it."""
        said = {"stream": self.id, "name": self.name, "source": self.source, **self.layout.to_dict()}
        return json.dumps(said).encode()

    @classmethod
    def parse(cls, payload: bytes) -> Stream:
        """Inverse of ``describe``."""
        d = json.loads(payload)
        return cls(d["stream"], d["name"], d["source"], Layout.from_dict(d))


def frame(stream: int, n: int, t: int, payload: bytes) -> bytes:
    """A record as it stands in the file."""
    length, body = len(payload), _BODY.pack(stream, n, t)
    return _SIZES.pack(length, _crc(length, body, payload)) + body + payload


def _crc(length: int, body: bytes | memoryview, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(body, zlib.crc32(length.to_bytes(4, "little"))))


def entries(buffer: bytes | memoryview) -> Iterator[Entry]:
    """The whole records of a log, up to the first that is not; the caller looks into ``buffer`` for payloads."""
    at, size, view = 0, len(buffer), memoryview(buffer)
    while at + OVERHEAD <= size:
        length, crc = _SIZES.unpack_from(view, at)
        start = at + OVERHEAD
        if start + length > size or _crc(length, view[at + _SIZES.size : start], view[start : start + length]) != crc:
            return
        stream, n, t = _BODY.unpack_from(view, at + _SIZES.size)
        yield Entry(stream, n, t, start, length)
        at = start + length


class Log:
    """A log opened for reading: its valid prefix, as it was when this was made.

    Attributes:
        path: of the file.
        streams: by their number, with their tallies.
        size: bytes of the valid prefix.
        lost: bytes after it, which are not read.
        index: every record but those of stream 0, in the order of the file.

    Raises:
        DataError: there is no such file, or it is a log of another version.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as f:
                size = os.fstat(f.fileno()).st_size
                self.buffer: mmap.mmap | bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except FileNotFoundError:
            raise DataError(f"There is no log {self.path}.") from None
        self.streams: dict[int, Stream] = {}
        self.index: list[Entry] = []
        self.size, self.control = 0, 0
        view = memoryview(self.buffer)
        for entry in entries(view):
            payload = view[entry.start : entry.start + entry.size]
            if entry.stream == 0:
                self._introduce(entry, bytes(payload))
            else:
                self.streams[entry.stream].add(entry.n, entry.t, payload)
                self.index.append(entry)
            self.size = entry.start + entry.size
        self.lost = size - self.size

    def _introduce(self, entry: Entry, payload: bytes) -> None:
        self.control = entry.n
        if entry.n > 1:
            stream = Stream.parse(payload)
            self.streams[stream.id] = stream
        elif json.loads(payload) != FORMAT:
            raise DataError(f"{self.path} is {payload.decode()[:80]}; this Deft reads {json.dumps(FORMAT)}.")

    def payload(self, entry: Entry) -> bytes:
        """The bytes of a record."""
        return bytes(self.buffer[entry.start : entry.start + entry.size])


class LogWriter:
    """Appends to a log, new or not: what is not whole at the end of an old one is cut off first.

    Records gather in memory until ``flush``.

    Attributes:
        streams: by (name, source).
        size: bytes of the file.
        found: the log as it was before, if it was; may be forgotten.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.found = log = Log(self.path) if self.path.exists() else None
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.size = log.size if log else 0
        self._control = log.control if log else 0
        self.streams = {(s.name, s.source): s for s in log.streams.values()} if log else {}
        self._waiting: list[bytes] = []
        self.waiting = 0  # bytes not yet flushed
        os.ftruncate(self._fd, self.size)
        os.lseek(self._fd, 0, os.SEEK_END)
        if not self._control:
            self._tell(json.dumps(FORMAT).encode(), 0)

    @property
    def fd(self) -> int:
        """Of the file; -1 once it is closed."""
        return self._fd

    def stream(self, name: str, source: int, layout: Layout, t: int) -> Stream:
        """The stream of a ring: the one that is there, or a new one."""
        found = self.streams.get((name, source))
        if found is None:
            found = self.streams[name, source] = Stream(len(self.streams) + 1, name, source, layout)
            self._tell(found.describe(), t)
        return found

    def append(self, stream: Stream, n: int, t: int, payload: bytes) -> None:
        """One record; in the file after ``flush``."""
        stream.add(n, t, payload)
        self._put(frame(stream.id, n, t, payload))

    def _tell(self, payload: bytes, t: int) -> None:
        self._control += 1
        self._put(frame(0, self._control, t, payload))

    def _put(self, record: bytes) -> None:
        self._waiting.append(record)
        self.waiting += len(record)

    def flush(self) -> None:
        """Everything so far is the kernel's: a killed process no longer loses it.

        Raises:
            OSError: the disk is full, or worse. The file then ends with the last record that went in whole, and the
                writer is of no more use; the tallies count records that are not there.
        """
        batch, self._waiting, self.waiting = self._waiting, [], 0
        data = memoryview(b"".join(batch))
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError:
            whole = 0
            for record in batch:
                if whole + len(record) > done:
                    break
                whole += len(record)
            self.size += whole
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def sync(self) -> None:
        """Everything flushed is on the disk: a power cut no longer loses it."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Lets go of the file, without a last ``flush``."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def tallies(streams: Iterable[Stream]) -> dict[str, dict[str, Any]]:
    """{name: {records, missed, dropped, bytes, hz}}, streams of one name together."""
    out: dict[str, dict[str, Any]] = {}
    for s in streams:
        if s.name not in out:
            out[s.name] = {"records": 0, "missed": 0, "dropped": 0, "bytes": 0, "hz": 0.0}
        mine = out[s.name]
        for key in ("records", "missed", "dropped", "bytes"):
            mine[key] += getattr(s, key)
        mine["hz"] = round(max(mine["hz"], s.hz), 2)
    return out
