"""Rows of a store at random, under a byte budget.

What fits the budget is held in memory (or on the accelerator). What does not is decoded once into a flat file beside
the store and read from there row by row, so training touches neither codecs nor more memory than its batches. Video is
left as it is (decoded, it would fill a disk): windows are decoded from it, and the rest of the budget keeps frames.

The file is read with ``pread`` and not through ``mmap``: pages of a mapping count as resident until they are given
back, and a gather faults them in one small piece at a time. Measured on random windows of two 240x320 images, 64 a
batch: 94 ms against 112 to 278 ms (sparse, cold), 21 against 22 ms (cached), with nothing but the batch resident.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from data.errors import DataError
from data.source import Episodes
from data.zarr_read import find_zip
from data.zarr_write import PARTIAL, file_lock

# float64 is more than any policy uses; torch can hardly index unsigned integers above 8 bits.
_KEEP = {np.dtype(np.float64): np.float32, np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}


def decoded_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in which values of a stored dtype are held: float32 for float64, native byte order."""
    native = dtype.newbyteorder("=")
    return np.dtype(_KEEP.get(native, native))


def decoded_bytes(store: Episodes, key: str, n_rows: int) -> int:
    """Bytes that ``n_rows`` rows of ``key`` take in memory."""
    return n_rows * int(np.prod(store.shape(key), dtype=np.int64)) * decoded_dtype(store.dtype(key)).itemsize


class MemoryRows:
    """Rows held as one tensor on ``device``; ``episodes`` only, packed one after the other in their order."""

    def __init__(self, store: Episodes, key: str, episodes: np.ndarray, device: torch.device) -> None:
        n = sum(b - a for a, b in store.runs(episodes))
        dtype = decoded_dtype(store.dtype(key))
        self.data = torch.zeros((n, *store.shape(key)), dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device=device)
        at = 0
        for start, stop, block in store.finite_blocks(key, episodes):
            if block is not None:
                self.data[at : at + stop - start] = torch.from_numpy(block.astype(dtype, copy=False))
            at += stop - start

    def take(self, rows: Int64[Tensor, " n"]) -> Shaped[Tensor, "n ..."]:
        """``rows`` (on the CPU) as (n, *shape) on the device."""
        if self.data.device.type != "cpu":
            return self.data.index_select(0, rows.to(self.data.device, non_blocking=True))
        # numpy copies rows as fast as one core can. torch would share them out between threads, which at this size
        # gains little, and waits a whole time slice (12 ms instead of 0.1) as soon as one core has other work.
        out = torch.empty((len(rows), *self.data.shape[1:]), dtype=self.data.dtype)
        self.data.numpy().take(rows.numpy(), axis=0, out=out.numpy(), mode="clip")
        return out


class FileRows:
    """Rows read from a file: the data set's own where they lie there as they are needed, else a decoded cache.

    ``rows_on_file`` maps packed rows to rows of the store.
    """

    def __init__(
        self, store: Episodes, key: str, rows_on_file: np.ndarray, device: torch.device, cache_dir: Path
    ) -> None:
        self.row_bytes = decoded_bytes(store, key, 1)
        if (raw := _own_file(store, key)) is not None:
            self.path, self._offsets = raw[0], raw[1][rows_on_file]
        else:
            self.path, self._offsets = build_cache(store, key, cache_dir), rows_on_file * self.row_bytes
        self.shape = store.shape(key)
        self.dtype = torch.from_numpy(np.empty(0, decoded_dtype(store.dtype(key)))).dtype
        self._device = device
        self._fd = os.open(self.path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def take(self, rows: Int64[Tensor, " n"]) -> Shaped[Tensor, "n ..."]:
        """``rows`` (on the CPU) as (n, *shape) on the device; one read per run of neighbouring rows."""
        at = self._offsets[rows.numpy()]
        out = torch.empty((len(at), *self.shape), dtype=self.dtype, pin_memory=self._device.type == "cuda")
        if not len(at):
            return out.to(self._device)
        view = out.view(torch.uint8).numpy().reshape(-1).data
        n = self.row_bytes
        cuts = np.flatnonzero(np.diff(at) != n) + 1
        for a, b in zip([0, *cuts.tolist()], [*cuts.tolist(), len(at)], strict=True):
            self._read(view[a * n : b * n], int(at[a]))
        return out.to(self._device, non_blocking=True)

    def _read(self, into: memoryview, offset: int) -> None:
        while len(into):
            got = os.preadv(self._fd, [into], offset)
            if got <= 0:
                raise DataError(
                    f"{self.path} has become shorter than it was. If it is a cache, delete it; it is built again."
                )
            into, offset = into[got:], offset + got


class DecodedRows:
    """Rows decoded where they lie (video); those that were seen first stay in memory, as many as the budget allows.

    Training draws every row once an epoch, in an order of its own each time: no row is likelier to be asked for again
    than another, so none gives way to another.
    """

    def __init__(self, store: Episodes, key: str, rows: np.ndarray, device: torch.device, budget: int) -> None:
        """``rows`` maps packed rows to rows of the store; ``budget`` is in bytes."""
        self._array, self._rows, self._device = store.array(key), rows, device
        n = min(len(rows), budget // decoded_bytes(store, key, 1))
        self._kept = np.empty((n, *store.shape(key)), self._array.dtype)
        self._slot = np.full(len(rows), -1, np.int64)
        self._used = 0

    def take(self, rows: Int64[Tensor, " n"]) -> Shaped[Tensor, "n ..."]:
        """``rows`` (on the CPU) as (n, *shape) on the device."""
        at = rows.numpy()
        slot = self._slot[at]
        have = slot >= 0
        missed = at[~have]
        view = decoded = self._array.gather(self._rows[missed])
        if have.any():
            view = np.empty((len(at), *decoded.shape[1:]), decoded.dtype)
            view[have] = self._kept[slot[have]]
            view[~have] = decoded
        new, places = np.unique(missed, return_index=True)
        n = min(len(new), len(self._kept) - self._used)
        self._kept[self._used : self._used + n] = decoded[places[:n]]
        self._slot[new[:n]] = np.arange(self._used, self._used + n)
        self._used += n
        return torch.from_numpy(view).to(self._device)


def _own_file(store: Episodes, key: str) -> tuple[Path, np.ndarray] | None:
    """(file, offset of each row), where no cache is needed."""
    rows = store.array(key)
    if rows.dtype != decoded_dtype(rows.dtype) or (raw := rows.raw()) is None:
        return None
    if len(raw[1]) and int(raw[1].max()) + rows.row_bytes > raw[0].stat().st_size:
        raise DataError(f"{rows.name} goes on behind the end of the file: it is cut off. Copy it again.")
    if rows.dtype.kind == "f":
        for _ in store.finite_blocks(key):  # says where a value is not finite
            pass
    return raw


def default_cache_dir(path: Path) -> Path:
    """A folder beside the store, on the disk that was chosen to hold the data."""
    found = find_zip(path)
    path = found[0] if found else path
    return path.with_name(path.name + ".cache")


def build_cache(store: Episodes, key: str, cache_dir: Path) -> Path:
    """Decode ``key`` into a flat file of rows, once; streaming, with holes where the store holds nothing.

    The file's name carries a fingerprint of the store's chunks, so a store that has grown or been replaced gets a new
    one (and the old one goes). Processes that ask at the same time wait for one of them to build it.

    Raises:
        DataError: the store is damaged, or the disk is too small.
    """
    array, dtype = store.array(key), decoded_dtype(store.dtype(key))
    place = str(store.path.resolve())
    stamp = json.dumps([array.stamps(), str(dtype)]).encode()
    folder = cache_dir / f"{store.path.name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}" / key
    path = folder / f"{hashlib.sha256(stamp).hexdigest()[:16]}.rows"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / ".lock"):
            if path.exists():
                return path
            for old in folder.glob("*.rows*"):
                old.unlink(missing_ok=True)
            partial = path.with_name(path.name + PARTIAL)
            _decode(store, key, dtype, partial)
            os.replace(partial, path)
    except OSError as e:
        need = decoded_bytes(store, key, store.n_steps) / 1e9
        raise DataError(
            f"data/{key} of {store.path} does not fit the memory budget, and its decoded cache ({need:.1f} GB) "
            f"cannot be written to {cache_dir}: {e.strerror or e}. "
            "Choose a cache_dir with room, or a larger memory_budget_bytes."
        ) from e
    return path


def _decode(store: Episodes, key: str, dtype: np.dtype, partial: Path) -> None:
    row_bytes = decoded_bytes(store, key, 1)
    with open(partial, "wb") as f:
        for start, stop, block in store.finite_blocks(key):
            if block is None:
                continue  # stays a hole
            if shutil.disk_usage(partial.parent).free < (stop - start) * row_bytes + (256 << 20):
                f.truncate(0)
                raise OSError(28, "No space left on device")
            f.seek(start * row_bytes)
            f.write(np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data)
        f.truncate(store.n_steps * row_bytes)


def load_rows(
    store: Episodes,
    keys: list[str],
    episodes: np.ndarray,
    device: torch.device,
    budget: int,
    cache_dir: Path | None,
) -> dict[str, MemoryRows | FileRows | DecodedRows]:
    """Rows of every key, packed over ``episodes``: in memory, smallest first, while ``budget`` lasts; else on file, or
    decoded from video with what is left of the budget for frames.

    Args:
        cache_dir: for the decoded files; None puts them in a folder beside the store.
    """
    runs = store.runs(episodes)
    n = sum(b - a for a, b in runs)
    out: dict[str, MemoryRows | FileRows | DecodedRows] = {}
    sought = []
    for key in sorted(keys, key=lambda k: decoded_bytes(store, k, n)):
        size = decoded_bytes(store, key, n)
        if size <= budget:
            out[key] = MemoryRows(store, key, episodes, device)
            budget -= size
        elif store.array(key).seekable:
            sought.append(key)
        else:
            rows = np.concatenate([np.arange(a, b) for a, b in runs])
            out[key] = FileRows(store, key, rows, device, cache_dir or default_cache_dir(store.path))
    for key in sought:
        rows = np.concatenate([np.arange(a, b) for a, b in runs])
        out[key] = DecodedRows(store, key, rows, device, budget // len(sought))
    return out
