"""Arrays that grow along time with atomic writes: zarr v2, a directory, Blosc, as the field exchanges them.

Not through ``zarr``: what survives a ``kill -9`` depends on the order in which files are replaced, so the few lines
that matter are here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from data.cores import n_cores
from data.errors import DataError
from data.zarr_codecs import blosc_damage
from data.zarr_read import REPAIR, reason

PARTIAL = ".partial"
MANY_CHUNKS = 8  # of one episode, from which on they are written in threads


def rows_per_chunk(row_bytes: int) -> int:
    """Rows per chunk: about 1 MiB of low-dimensional rows, about 256 KiB of images or clouds (a few frames)."""
    target = 1 << 20 if row_bytes < 4096 else 1 << 18
    return max(1, target // max(1, row_bytes))


def write_atomically(path: Path, payload: bytes) -> None:
    """Replace ``path`` in one step: a reader, or a reopened store after a kill, sees the old file or the new one."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    partial.write_bytes(payload)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """``write_atomically`` of a JSON document."""
    write_atomically(path, json.dumps(value, indent=2).encode())


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Exclusive between processes (and threads); the kernel releases it when its holder dies."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class GrowingArray:
    """A zarr v2 array in a directory, chunked along time only, that rows are appended to.

    ``extend`` replaces chunk files first and the metadata (which holds the length) last, each atomically, so at
    every moment the array on disk has its old length with its old rows, or the new length with the new rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / ".zarray").read_text())
        self._meta = meta
        self.row_shape = tuple(meta["shape"][1:])
        self.dtype = np.dtype(meta["dtype"])
        self.chunk_rows: int = meta["chunks"][0]
        self._codec = numcodecs.get_codec(meta["compressor"]) if meta["compressor"] else None
        codec = (meta["compressor"] or {}).get("id", "blosc")
        if (tuple(meta["chunks"][1:]), meta["filters"], meta["order"], codec) != (self.row_shape, None, "C", "blosc"):
            raise DataError(
                f"{folder} was not laid out by Deft (chunks {meta['chunks']}): it can be read, not extended."
            )

    @classmethod
    def create(cls, folder: Path, row_shape: tuple[int, ...], dtype: np.dtype) -> GrowingArray:
        """An empty array of rows with ``row_shape`` and ``dtype``."""
        row_bytes = int(np.prod(row_shape, dtype=np.int64)) * dtype.itemsize
        # Bytes of one kind lie together for floats (shuffle); a picture's bytes are all of one kind.
        shuffle = numcodecs.Blosc.SHUFFLE if dtype.itemsize > 1 else numcodecs.Blosc.NOSHUFFLE
        meta = {
            "zarr_format": 2,
            "shape": [0, *row_shape],
            "chunks": [rows_per_chunk(row_bytes), *row_shape],
            "dtype": dtype.str,
            "compressor": numcodecs.Blosc(cname="zstd", clevel=3, shuffle=shuffle).get_config(),
            "fill_value": False if dtype.kind == "b" else 0,
            "order": "C",
            "filters": None,
            "dimension_separator": ".",
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / ".zarray", meta)
        return cls(folder)

    @property
    def length(self) -> int:
        """Rows, as on disk when this was made."""
        return self._meta["shape"][0]

    def extend(self, n: int, rows: np.ndarray) -> None:
        """Write ``rows`` at [n, n + len(rows)); whatever lay beyond row n (an unfinished episode) is gone.

        Args:
            n: valid rows so far.
            rows: (T, *row_shape) of ``dtype``.
        """
        c, end = self.chunk_rows, n + len(rows)

        def write(i: int) -> None:
            first = i * c
            chunk = np.zeros((c, *self.row_shape), self.dtype)
            if first < n:  # the tail chunk also holds rows of finished episodes: carry them over
                chunk[: n - first] = self._read_chunk(i)[: n - first]
            a, b = max(n, first), min(end, first + c)
            chunk[a - first : b - first] = rows[a - n : b - n]
            payload: Any = self._codec.encode(chunk) if self._codec else chunk.tobytes()
            write_atomically(self._chunk_path(i), bytes(payload))

        numbers = range(n // c, -(-end // c))
        if len(numbers) < MANY_CHUNKS:
            for i in numbers:
                write(i)
        else:  # Blosc releases Python's lock; a chunk a thread is quicker than its own threads on one chunk
            with ThreadPoolExecutor(n_cores(), "deft-write") as pool:
                list(pool.map(write, numbers))
        self._set_length(end)

    def truncate(self, n: int) -> None:
        """Drop all rows from ``n`` on, and files that a killed writer left behind."""
        if self._meta["shape"][0] != n:
            self._set_length(n)
        last = -(-n // self.chunk_rows)
        for file in self.folder.iterdir():
            index = file.name.split(".")[0]
            if file.name.endswith(PARTIAL) or (index.isdigit() and int(index) >= last):
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the array."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _chunk_path(self, i: int) -> Path:
        return self.folder / ".".join(map(str, (i, *(0 for _ in self.row_shape))))

    def _read_chunk(self, i: int) -> np.ndarray:
        try:
            raw = self._chunk_path(i).read_bytes()
            n_bytes = self.chunk_rows * int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize
            if self._codec and (why := blosc_damage(raw[:16], len(raw), n_bytes)):
                raise ValueError(why)
            decoded: Any = self._codec.decode(raw) if self._codec else raw
            return np.frombuffer(decoded, self.dtype).reshape(self.chunk_rows, *self.row_shape)
        except Exception as e:
            raise DataError(
                f"{self._chunk_path(i)} cannot be decoded, so nothing can be appended: {reason(e)}. {REPAIR}"
            ) from e

    def _set_length(self, n: int) -> None:
        self._meta["shape"][0] = n
        write_json(self.folder / ".zarray", self._meta)
