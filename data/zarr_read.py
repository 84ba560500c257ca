"""Zarr arrays read lazily, from a directory or a zip file, whatever codec and layout people have published."""

from __future__ import annotations

import contextlib
import os
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
        self.name = f"{files.root / files.prefix}/{array.path.removeprefix(files.prefix).lstrip('/')}"
        self.shape: tuple[int, ...] = (n, *array.shape[1:])
        self.dtype: np.dtype = np.dtype(array.dtype)
        self.chunks: tuple[int, ...] = tuple(getattr(array, "shards", None) or array.chunks)

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
        if self._complete:
            for key in self._chunk_keys(start, stop):
                if self._files.stamp(key) is None:
                    raise DataError(
                        f"{self.name} is damaged: the file of chunk '{key.rsplit('/', 1)[-1]}' is missing. {REPAIR}"
                    )
        try:
            return np.asarray(self._array[start:stop])
        except Exception as e:
            raise self._blame(start, stop, e) from e

    def is_empty(self, start: int, stop: int) -> bool:
        """True if no chunk of these rows is stored and they are all zero: nothing to read."""
        if self._complete or self._array.fill_value not in (0, None):
            return False
        return all(self._files.stamp(k) is None for k in self._chunk_keys(start, stop))

    def blocks(self, start: int, stop: int, target_bytes: int = 16 << 20) -> Iterator[tuple[int, int]]:
        """[start, stop) cut at chunk borders into pieces of about ``target_bytes`` decoded."""
        c = self.chunks[0]
        step = max(1, target_bytes // max(1, self.row_bytes * c)) * c
        while start < stop:
            end = min(stop, (start // step + 1) * step)
            yield start, end
            start = end

    def stamps(self) -> list[Any]:
        """What a cache of this array depends on: its metadata and every chunk file's stamp."""
        keys = self._chunk_keys(0, len(self))
        return [self.shape, str(self.dtype), self.chunks, *(self._files.stamp(k) for k in keys)]

    def _chunk_keys(self, start: int, stop: int) -> list[str]:
        grid = [range(start // self.chunks[0], -(-stop // self.chunks[0]) if stop > start else 0)]
        grid += [range(-(-n // c)) for n, c in zip(self.shape[1:], self.chunks[1:], strict=True)]
        base = self._array.path.removeprefix(self._files.prefix).lstrip("/")
        coords = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, len(grid)).tolist()
        return [f"{base}/{self._array.metadata.encode_chunk_key(tuple(c))}" for c in coords]

    def _blame(self, start: int, stop: int, error: Exception) -> DataError:
        c = self.chunks[0]
        for a in range(start // c * c, stop, c):
            try:
                self._array[a : min(a + c, stop)]
            except Exception as e:
                rows = f"rows {a} to {min(a + c, len(self)) - 1}"
                return DataError(
                    f"{self.name} cannot be decoded in {rows} (chunk {a // c} along time): {reason(e)}. "
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
