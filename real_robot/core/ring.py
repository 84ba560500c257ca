"""Records between processes: one writer, any number of readers, no locks, no torn reads, whoever dies.

A ring is a file in shared memory (/dev/shm): a header with its layout, then slots. The writer marks a slot as invalid,
fills it, marks it with the record's number, then publishes the number; a reader copies the slot and takes the copy only
if the marks were right before and after (a seqlock). A reader never holds a writer up, and learns what it has missed.

x86 keeps stores in order; on other machines each record carries a checksum too.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import struct
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from data.errors import DataError

_MAGIC = b"DEFTRING"
_PREFIX = struct.Struct("<8sII")  # magic, bytes of the layout, slots
_HEAD = 4096  # offset of the newest number, then when the ring was made; the layout stands before them
_SLOTS = _HEAD + 64
_CHECKSUM = platform.machine().lower() not in ("x86_64", "amd64")


class Record(NamedTuple):
    """One record: ``n`` counts from 1, ``t`` is its time in ns, ``data`` a copy of what was put."""

    n: int
    t: int
    data: NDArray[Any]


class Ring:
    """Make one with ``Ring.create``, look into one with ``Ring.attach``.

    Attributes:
        path: of the file.
        dtype: of a record, structured or with a shape.
        slots: records that are kept.
        id: when it was made, ns of the date: another one where a ring was replaced by one of the same name.
    """

    def __init__(self, path: Path, fd: int, dtype: np.dtype, slots: int):
        self.path, self.dtype, self.slots = path, dtype, slots
        self._file = _identity(os.fstat(fd))
        slot = _slot(dtype)
        self._map = mmap.mmap(fd, _SLOTS + slot.itemsize * slots)
        self._head, made = np.frombuffer(self._map, "<u8", 2, _HEAD)[:1], self._map[_HEAD + 8 : _HEAD + 16]
        self.id = int.from_bytes(made, "little")
        array = np.frombuffer(self._map, slot, slots, _SLOTS)
        self._before, self._after, self._t, self._sum = (array[k] for k in ("before", "after", "t", "sum"))
        self._data = array["data"]

    @classmethod
    def create(cls, path: str | Path, dtype: DTypeLike, slots: int) -> Ring:
        """A new, empty ring; appears under its name complete. An old one of that name is replaced."""
        path, dtype = Path(path), np.dtype(dtype)
        layout = json.dumps(describe_dtype(dtype)).encode()
        if _PREFIX.size + len(layout) > _HEAD:
            raise DataError(f"{path}: the layout of a record is too long ({len(layout)} bytes).")
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with open(draft, "w+b") as f:
            try:  # all of it now: on a full file system, a write through the map would kill its process
                os.posix_fallocate(f.fileno(), 0, _SLOTS + _slot(dtype).itemsize * slots)
            except OSError as e:
                draft.unlink()
                size = _slot(dtype).itemsize * slots / 1e6
                raise DataError(f"{path} takes {size:.1f} MB, which are not free there ({e.strerror}).") from e
            f.write(_PREFIX.pack(_MAGIC, len(layout), slots) + layout)
            f.seek(_HEAD + 8)
            f.write(time.time_ns().to_bytes(8, "little"))
            f.flush()
            ring = cls(path, f.fileno(), dtype, slots)
        os.replace(draft, path)
        return ring

    @classmethod
    def attach(cls, path: str | Path) -> Ring:
        """An existing ring. Raises DataError where there is none, or something else."""
        path = Path(path)
        try:
            with open(path, "r+b") as f:
                head = f.read(_HEAD)
                if head[:8] != _MAGIC:
                    raise DataError(f"{path} is not a ring.")
                _, size, slots = _PREFIX.unpack_from(head)
                dtype = parse_dtype(json.loads(head[_PREFIX.size : _PREFIX.size + size]))
                return cls(path, f.fileno(), dtype, slots)
        except FileNotFoundError:
            raise DataError(f"There is no ring {path}: has its writer been started?") from None

    @property
    def is_current(self) -> bool:
        """Whether the file of that name is still this ring: it may have been replaced or taken away."""
        try:
            return _identity(os.stat(self.path)) == self._file
        except FileNotFoundError:
            return False

    @property
    def newest(self) -> int:
        """Number of the newest record; 0 while there is none."""
        return int(self._head[0])

    def put(self, data: Any, t: int) -> int:
        """Writes a record of time ``t`` (ns); returns its number. Only one process may do so."""
        n = self.newest + 1
        i = n % self.slots
        self._after[i] = 0
        self._before[i] = n
        self._t[i] = t
        self._data[i] = data
        if _CHECKSUM:
            self._sum[i] = zlib.crc32(self._data[i].tobytes())
        self._after[i] = n
        self._head[0] = n
        return n

    def get(self, n: int) -> Record | None:
        """Record ``n``, or None where it is overwritten already, or not yet there."""
        if n <= 0:
            return None
        i = n % self.slots
        if int(self._after[i]) != n:
            return None
        t, data, checksum = int(self._t[i]), np.array(self._data[i]), int(self._sum[i])
        if int(self._before[i]) != n or int(self._after[i]) != n:
            return None
        if _CHECKSUM and zlib.crc32(data.tobytes()) != checksum:
            return None
        return Record(n, t, data)

    def time(self, n: int) -> int | None:
        """Time of record ``n`` without its data; None as ``get``."""
        if n <= 0:
            return None
        i = n % self.slots
        if int(self._after[i]) != n:
            return None
        t = int(self._t[i])
        return t if int(self._before[i]) == n and int(self._after[i]) == n else None

    def latest(self) -> Record | None:
        """The newest record; None while there is none."""
        while n := self.newest:
            if (record := self.get(n)) is not None:
                return record
        return None

    def since(self, n: int) -> tuple[list[Record], int]:
        """The records after number ``n`` that are still there, and how many are not."""
        newest = self.newest
        first = max(n + 1, newest - self.slots + 1)
        found = [r for k in range(first, newest + 1) if (r := self.get(k)) is not None]
        return found, newest - n - len(found)


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _slot(dtype: np.dtype) -> np.dtype:
    fields = [("before", "<u8"), ("t", "<i8"), ("sum", "<u4"), ("data", dtype), ("after", "<u8")]
    return np.dtype(fields, align=True)


def describe_dtype(dtype: np.dtype) -> Any:
    """A layout as JSON."""
    if dtype.names:
        return [[name, describe_dtype(dtype[name])] for name in dtype.names]
    base, shape = dtype.subdtype or (dtype, ())
    if base.names:
        return {"of": describe_dtype(base), "shape": list(shape)}
    return {"dtype": base.str, "shape": list(shape)}


def parse_dtype(d: Any) -> np.dtype:
    """Inverse of ``describe_dtype``."""
    if isinstance(d, list):
        return np.dtype([(name, parse_dtype(of)) for name, of in d])
    return np.dtype((parse_dtype(d["of"]) if "of" in d else d["dtype"], tuple(d["shape"])))
