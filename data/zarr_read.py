"""Zarr arrays read lazily, from a directory or a zip file, whatever codec and layout people have published."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import ZipStore

from data.errors import DataError

REPAIR = "Copy the data set again from its source, or record it again."


def blosc_damage(head: bytes, size: int, n_bytes: int) -> str:
    """What is wrong with a Blosc buffer, judging by its header; "" if nothing or if ``head`` is not known.

    Blosc's decoder trusts the sizes in the header and would read on behind a file that is cut off.

    Args:
        head: the buffer's first 16 bytes.
        size: the buffer's length.
        n_bytes: what it should decode to.
    """
    if not head and size:
        return ""
    if len(head) < 16:
        return f"the file has {size} bytes, not even a header"
    decoded, _, encoded = struct.unpack("<III", head[4:16])
    if encoded != size:
        return f"the file has {size} bytes where its header says {encoded}"
    if decoded != n_bytes:
        return f"its header says {decoded} decoded bytes, expected {n_bytes}"
    return ""


def find_zip(path: Path) -> tuple[Path, str] | None:
    """``(zip file, path inside it)`` if ``path`` is a zip file or leads into one."""
    for candidate in (path, *path.parents):
        if candidate.is_file():
            return (candidate, path.relative_to(candidate).as_posix()) if zipfile.is_zipfile(candidate) else None
    return None


def open_group(path: Path) -> tuple[zarr.Group, ChunkFiles]:
    """Open a zarr group read-only from a directory or from (inside) a zip file.

    Raises:
        DataError: nothing there, not zarr, a broken zip, or a zip with several stores in it.
    """
    try:
        if path.is_dir():
            return zarr.open_group(str(path), mode="r", use_consolidated=False), ChunkFiles(path)
        if (found := find_zip(path)) is not None:
            archive, inside = found
            prefix = _store_in_zip(archive, "" if inside == "." else inside)
            store = ZipStore(archive, mode="r")
            return zarr.open_group(store, mode="r", path=prefix, use_consolidated=False), ChunkFiles(archive, prefix)
    except DataError:
        raise
    except Exception as e:
        raise DataError(
            f"{path} is not a zarr store that can be read ({reason(e)}). Expected a zarr group "
            "(a directory with .zgroup, or a zip of one) with data/<key> arrays and meta/episode_ends."
        ) from e
    if path.exists():
        raise DataError(
            f"{path} is a file, but neither a zarr directory nor a zip file that can be read; is it cut off?"
        )
    raise DataError(f"No data set at {path}: expected a zarr directory or a .zarr.zip file.")


def _store_in_zip(archive: Path, inside: str) -> str:
    """Published zips hold the store at their root or some folders down; find it below ``inside``."""
    marks = ("meta/episode_ends/.zarray", "meta/episode_ends/zarr.json")
    with zipfile.ZipFile(archive) as z:
        names = z.namelist()
    roots = sorted({n[: -len(m)].rstrip("/") for n in names for m in marks if n.endswith(m)})
    roots = [r for r in roots if not inside or r == inside or r.startswith(inside + "/")]
    if len(roots) > 1:
        raise DataError(
            f"{archive} holds {len(roots)} stores; name one of them: {', '.join(f'{archive}/{r}' for r in roots)}."
        )
    return roots[0] if roots else inside


class ChunkFiles:
    """Which chunk files exist, and a fingerprint of each that changes when it is rewritten."""

    def __init__(self, root: Path, prefix: str = "") -> None:
        self.root, self.prefix, self._zip = root, prefix, None
        if root.is_file():
            with zipfile.ZipFile(root) as z:
                self._zip = {i.filename: (i.file_size, i.CRC) for i in z.infolist()}

    def head(self, key: str) -> tuple[bytes, int] | None:
        """(first 16 bytes, size) of one chunk file, None if there is none; zip files check themselves: no bytes."""
        if self._zip is not None:
            found = self.stamp(key)
            return None if found is None else (b"", found[0])
        try:
            with open(self.root / key, "rb", buffering=0) as f:
                return f.read(16), os.fstat(f.fileno()).st_size
        except OSError:
            return None

    def stamp(self, key: str) -> tuple[int, int] | None:
        """(size, CRC or modification time) of one chunk file, None if there is none."""
        if self._zip is not None:
            return self._zip.get(f"{self.prefix}/{key}".lstrip("/"))
        try:
            s = os.stat(self.root / key)
        except OSError:
            return None
        return s.st_size, s.st_mtime_ns


class LazyArray:
    """One array of a store, (n, *shape), read in slices of time; nothing is kept in memory.

    ``complete`` says that the writer stores every chunk, so a missing file is damage and not zarr's "all fill value".
    """

    def __init__(self, array: zarr.Array, files: ChunkFiles, n: int, *, complete: bool) -> None:
        self._array, self._files, self._complete = array, files, complete
        self._base = array.path.removeprefix(files.prefix).lstrip("/")
        self.name = f"{files.root / files.prefix}/{self._base}"
        self.shape: tuple[int, ...] = (n, *array.shape[1:])
        self.dtype: np.dtype = np.dtype(array.dtype)
        self.chunks: tuple[int, ...] = tuple(getattr(array, "shards", None) or array.chunks)
        plain = array.metadata.zarr_format == 2 and not array.filters
        blosc = plain and any("blosc" in type(c).__module__ for c in array.compressors)
        self._blosc_bytes = int(np.prod(self.chunks, dtype=np.int64)) * self.dtype.itemsize if blosc else None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one time step."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """``array[3]``, ``array[10:20]`` or ``array[np.array([...])]``, each along time.

        Raises:
            DataError: a chunk is missing, cut off or corrupt.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step < 1:
                raise IndexError(f"{self.name}: a slice of time must go forwards, got step {step}")
            return self.read(start, max(start, stop))[::step]
        index = np.asarray(rows, dtype=np.int64)
        if index.size and (index.min() < -len(self) or index.max() >= len(self)):
            raise IndexError(f"{self.name}: row out of range for {len(self)} rows")
        index = np.where(index < 0, index + len(self), index)
        if index.ndim == 0:
            return self.read(int(index), int(index) + 1)[0]
        return np.asarray(self._array.oindex[index] if index.size else self.read(0, 0))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as (stop - start, *shape), decoded."""
        if self._complete or self._blosc_bytes is not None:
            for key in self._chunk_keys(start, stop):
                self._check_chunk(key)
        try:
            return np.asarray(self._array[start:stop])
        except Exception as e:
            raise self._blame(start, stop, e) from e

    def blocks(self, start: int, stop: int, target_bytes: int = 16 << 20) -> Iterator[tuple[int, int, bool]]:
        """Cut rows [start, stop) at chunk borders: (a, b, empty).

        ``empty`` rows are stored nowhere and all zero, so there is nothing to read; others come about
        ``target_bytes`` (decoded) at a time.
        """
        c = self.chunks[0]
        most = max(1, target_bytes // max(1, self.row_bytes * c)) * c
        a = start
        while a < stop:
            b = min(stop, (a // c + 1) * c)
            empty = self._is_empty(a, b)
            while b < stop and (empty or b - a < most) and self._is_empty(b, min(stop, b + c)) == empty:
                b = min(stop, b + c)
            yield a, b, empty
            a = b

    def _is_empty(self, start: int, stop: int) -> bool:
        if self._complete or self._array.fill_value not in (0, None):
            return False
        return all(self._files.stamp(k) is None for k in self._chunk_keys(start, stop))

    def stamps(self) -> list[Any]:
        """What a cache of this array depends on: its metadata and every chunk file's stamp."""
        keys = self._chunk_keys(0, len(self))
        return [self.shape, str(self.dtype), self.chunks, *(self._files.stamp(k) for k in keys)]

    def _chunk_keys(self, start: int, stop: int) -> list[str]:
        grid = [range(start // self.chunks[0], -(-stop // self.chunks[0]) if stop > start else 0)]
        grid += [range(-(-n // c)) for n, c in zip(self.shape[1:], self.chunks[1:], strict=True)]
        coords = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, len(grid)).tolist()
        return [f"{self._base}/{self._array.metadata.encode_chunk_key(tuple(c))}" for c in coords]

    def _check_chunk(self, key: str) -> None:
        head = self._files.head(key)
        chunk = key.removeprefix(self._base).lstrip("/")
        if head is None:
            if self._complete:
                raise DataError(f"{self.name} is damaged: the file of chunk '{chunk}' is missing. {REPAIR}")
        elif self._blosc_bytes is not None and (why := blosc_damage(*head, self._blosc_bytes)):
            c = self.chunks[0]
            first = int(re.split("[./]", chunk)[0]) * c
            raise DataError(
                f"{self.name} cannot be decoded in rows {first} to {min(first + c, len(self)) - 1} (chunk '{chunk}'): "
                f"{why}. {REPAIR}"
            )

    def _blame(self, start: int, stop: int, error: Exception) -> DataError:
        c = self.chunks[0]
        for a in range(start // c * c, stop, c):
            try:
                self._array[a : min(a + c, stop)]
            except Exception as e:
                rows = f"rows {a} to {min(a + c, len(self)) - 1}"
                return DataError(
                    f"{self.name} cannot be decoded in {rows} (chunk '{a // c}'): {reason(e)}. "
                    f"The file is cut off or corrupt, or its codec is not installed. {REPAIR}"
                )
        return DataError(f"{self.name} cannot be read: {reason(error)}.")


def reason(e: Exception) -> str:
    """First line of what an exception says."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")


def read_array(group: zarr.Group, name: str) -> zarr.Array | None:
    """``group[name]`` if it is there and an array. Raises DataError if its metadata cannot be read."""
    with _metadata_errors(group, name):
        found = group.get(name)
        return found if isinstance(found, zarr.Array) else None


def child_arrays(group: zarr.Group, name: str) -> dict[str, zarr.Array]:
    """The arrays directly in the group ``name``, sorted; none if there is no such group."""
    with _metadata_errors(group, name):
        folder = group.get(name)
        return dict(sorted(folder.arrays())) if isinstance(folder, zarr.Group) else {}


@contextlib.contextmanager
def _metadata_errors(group: zarr.Group, name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are no arrays
            yield
    except Exception as e:
        raise DataError(
            f"The metadata of {name} in {group.store_path} cannot be read ({reason(e)}): expected zarr's .zarray and "
            f".zgroup files. {REPAIR}"
        ) from e
