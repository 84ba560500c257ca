"""Arrays along time that lie in an HDF5 file in one piece per episode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.source import Rows
from data.zarr_read import REPAIR, reason

MAX_UNPACKED = 64 << 20  # bytes that an array may unpack to, however little of it is stored
MAX_CHUNK = 1 << 30  # bytes that are unpacked at once
_CONTIGUOUS, _CHUNKED, _VIRTUAL = 1, 2, 3  # H5D_layout_t


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The file, for reading; without locks, so on file systems that have none, and beside others who read.

    Raises:
        DataError: h5py is not installed, or the file cannot be opened.
    """
    try:
        import h5py
    except ImportError as e:
        raise DataError(f"{path} is an HDF5 file; reading it needs h5py: pip install 'deft[hdf5]'.") from e
    try:
        file = h5py.File(path, "r", locking=False)
    except Exception as e:
        raise DataError(f"{path} cannot be opened as HDF5 ({reason(e)}). It is cut off or corrupt. {REPAIR}") from e
    with file:
        yield file


def text(value: Any) -> str:
    """Of an attribute or a name that may be bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class Piece:
    """One dataset's outline.

    Attributes:
        name: its path in the file.
        shape: (T, *shape).
        dtype: as stored.
        stored: bytes in the file.
        bytes: what they unpack to.
    """

    def __init__(self, dataset: Any, path: Path, name: str) -> None:
        self.name, self.dtype = name, np.dtype(dataset.dtype)
        self.shape: tuple[int, ...] = tuple(dataset.shape or ())
        layout = dataset.id.get_create_plist()
        kind = layout.get_layout()
        n = 1
        for size in self.shape:  # numpy's product would overflow
            n *= int(size)
        self.bytes = n * self.dtype.itemsize
        self.stored = self.bytes if kind == _VIRTUAL else int(dataset.id.get_storage_size())
        chunks = layout.get_chunk() if kind == _CHUNKED else (0,)
        chunk = int(np.prod(chunks, dtype=np.float64)) * self.dtype.itemsize
        if chunk > MAX_CHUNK:
            raise DataError(f"{path}: {name} has chunks of {chunk / 1e9:.1f} GB; expected 1 GB at most.")
        self.raw = None if layout.get_nfilters() else self._raw(dataset, kind, chunks)

    def _raw(self, dataset: Any, kind: int, chunks: tuple[int, ...]) -> int | list[tuple[int, int]] | None:
        """Where the bytes lie as they are: an offset, or [(first row, offset)] of chunks of whole rows; else None."""
        if kind == _CONTIGUOUS:
            return dataset.id.get_offset()
        if kind != _CHUNKED or chunks[1:] != self.shape[1:]:
            return None
        found: list[tuple[int, int]] = []
        dataset.id.chunk_iter(lambda c: found.append((int(c.chunk_offset[0]), int(c.byte_offset))))
        return found if len(found) == -(-self.shape[0] // chunks[0]) else None


class Hdf5Rows(Rows):
    """The pieces one after the other; ``ends`` are their exclusive ends."""

    def __init__(self, path: Path, pieces: Sequence[Piece], ends: np.ndarray) -> None:
        self._path, self._pieces, self._ends = path, list(pieces), ends
        self._file: Any = None
        self.name = f"{path}: {pieces[0].name.split('/')[0]}/*/{pieces[0].name.split('/', 2)[-1]}"
        self.shape, self.dtype = (int(ends[-1]), *pieces[0].shape[1:]), pieces[0].dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""
        out = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        i = int(np.searchsorted(self._ends, start, side="right"))
        with open_hdf5(self._path) as file:
            while start < stop:
                piece, end = self._pieces[i], int(self._ends[i])
                first, upto = end - piece.shape[0], min(stop, end)
                try:
                    into = np.s_[len(out) - (stop - start) : len(out) - (stop - upto)]
                    file[piece.name].read_direct(out, np.s_[start - first : upto - first], into)
                except Exception as e:
                    raise DataError(
                        f"{self._path}: {piece.name} cannot be decoded in rows {start - first} to {upto - first - 1}: "
                        f"{reason(e)}. The file is cut off or corrupt, or its filter is not installed. {REPAIR}"
                    ) from e
                start, i = upto, i + 1
        return out

    def stamps(self) -> list[Any]:
        """The file's size and time of change, and what is read of it."""
        s = self._path.stat()
        return [s.st_size, s.st_mtime_ns, self.shape, str(self.dtype), [p.name for p in self._pieces]]

    def raw(self) -> tuple[Path, np.ndarray] | None:
        """Where rows lie uncompressed."""
        parts = []
        for piece in self._pieces:
            if piece.raw is None:
                return None
            n, offsets = piece.shape[0], np.empty(piece.shape[0], np.int64)
            starts = [(0, piece.raw)] if isinstance(piece.raw, int) else sorted(piece.raw)
            for (first, offset), (after, _) in zip(starts, [*starts[1:], (n, 0)], strict=True):
                offsets[first:after] = offset + np.arange(after - first) * self.row_bytes
            parts.append(offsets)
        return self._path, np.concatenate(parts)
