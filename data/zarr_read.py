"""Zarr arrays read lazily, from a directory or a zip file, whatever codec and layout people have published."""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import ZipStore

from data.errors import DataError
from data.source import Rows
from data.zarr_codecs import HEAD, MAX_CHUNK, UNPACKED, damage

REPAIR = "Copy the data set again from its source, or record it again."
MAX_METADATA = 16 << 20  # bytes
MAX_STEPS = 1 << 28


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
    raise DataError(
        f"No data set at {path}: expected a zarr directory or a .zarr.zip, "
        "a robomimic .hdf5, or a LeRobot folder (with meta/info.json)."
    )


def _store_in_zip(archive: Path, inside: str) -> str:
    """Published zips hold the store at their root or some folders down; find it below ``inside``."""
    marks = ("meta/episode_ends/.zarray", "meta/episode_ends/zarr.json")
    with zipfile.ZipFile(archive) as z:
        names = z.namelist()
        for info in z.infolist():
            if Path(info.filename).name.startswith(".z") and info.file_size > MAX_METADATA:
                raise DataError(f"{archive}: {info.filename} claims {info.file_size} bytes; metadata has kilobytes.")
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
            self._archive = zipfile.ZipFile(root)
            self._zip = {i.filename: (i.file_size, i.CRC) for i in self._archive.infolist()}

    def head(self, key: str, most: int) -> tuple[bytes, int] | None:
        """(first ``most`` bytes, size) of one chunk file, None if there is none."""
        try:
            if self._zip is not None:
                if (found := self.stamp(key)) is None:
                    return None
                with self._archive.open(f"{self.prefix}/{key}".lstrip("/")) as f:
                    return f.read(most), found[0]
            with open(self.root / key, "rb", buffering=0) as f:
                return f.read(most), os.fstat(f.fileno()).st_size
        except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
            return None if self._zip is None else (b"", 0)

    def stamp(self, key: str) -> tuple[int, int] | None:
        """(size, CRC or modification time) of one chunk file, None if there is none."""
        if self._zip is not None:
            return self._zip.get(f"{self.prefix}/{key}".lstrip("/"))
        try:
            s = os.stat(self.root / key)
        except OSError:
            return None
        return s.st_size, s.st_mtime_ns


class LazyArray(Rows):
    """One array of a store, (n, *shape), read in slices of time; nothing is kept in memory.

    ``complete`` says that the writer stores every chunk, so a missing file is damage and not zarr's "all fill value".
    """

    def __init__(self, array: zarr.Array, files: ChunkFiles, n: int, *, complete: bool) -> None:
        self._array, self._files, self._complete = array, files, complete
        self._base = array.path.removeprefix(files.prefix).lstrip("/")
        self.name = f"{files.root / files.prefix}/{self._base}"
        self.shape = (n, *array.shape[1:])
        self.dtype = np.dtype(array.dtype)
        self.chunks: tuple[int, ...] = tuple(getattr(array, "shards", None) or array.chunks)
        self._chunk_bytes = math.prod(self.chunks) * self.dtype.itemsize
        if self._chunk_bytes > MAX_CHUNK or n > MAX_STEPS:
            raise DataError(
                f"{self.name} claims {n} rows in chunks of {self._chunk_bytes / 1e9:.1f} GB; expected 1 GB at most. "
                f"{REPAIR}"
            )
        plain = array.metadata.zarr_format == 2 and not array.filters
        self._codec = next((str(getattr(c, "codec_id", "?")) for c in array.compressors), "") if plain else "?"

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places, (n,) int64 in [0, len), in that order."""
        return np.asarray(self._array.oindex[rows] if rows.size else self.read(0, 0))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as (stop - start, *shape), decoded."""
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
        most = 2 * self._chunk_bytes + (1 << 20)  # no codec makes anything that much larger
        head = self._files.head(key, most if self._codec in UNPACKED else HEAD)
        chunk = key.removeprefix(self._base).lstrip("/")
        if head is None:
            if self._complete:
                raise DataError(f"{self.name} is damaged: the file of chunk '{chunk}' is missing. {REPAIR}")
            return
        why = damage(self._codec, *head, self._chunk_bytes)
        if head[1] > most:
            why = f"its file has {head[1]} bytes, though it decodes to {self._chunk_bytes}"
        if why:
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
