"""A data set decoded ahead of a reader who goes through it in order, in threads: decoders release Python's lock."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data.source import Episodes, Rows

AHEAD_BYTES = 1 << 30  # decoded and waiting, with what is being read


class Ahead(Episodes):
    """``source``, the same in every way; while its episodes are read in their order, the next ones are decoded.

    A context manager: leaving it ends the threads. An episode that is larger than the budget is read as if this were
    not there. One thread may read.
    """

    def __init__(self, source: Episodes, workers: int, budget_bytes: int = AHEAD_BYTES) -> None:
        """Nothing is read yet.

        Args:
            source: reading it in several threads at a time must be safe, as with all formats here.
            workers: threads.
            budget_bytes: decoded rows in flight.
        """
        self.format, self.path, self.task, self.attrs = source.format, source.path, source.task, source.attrs
        self.episode_ends, self._episode_meta = source.episode_ends, source._episode_meta
        self._arrays = {k: _AheadRows(self, k, source.array(k)) for k in source.keys}
        self._source, self._budget, self._most = source, budget_bytes, 4 * workers
        self._step_bytes = sum(source.array(k).row_bytes for k in source.keys)
        self._at = -1
        self._coming: dict[int, dict[str, Future[np.ndarray]]] = {}
        self._pool = ThreadPoolExecutor(workers, "deft-ahead")

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._coming.clear()
        self._pool.shutdown(cancel_futures=True)

    def rows(self, key: str, start: int, stop: int) -> np.ndarray | None:
        """Rows [start, stop) of ``key`` if their episode has been begun in a thread; begins the ones that follow."""
        if start >= stop or start >= self.n_steps:
            return None
        i, step = self.locate(start)
        if stop > self.episode_ends[i]:
            return None
        self._begin(i)
        found = self._coming.get(i, {}).get(key)
        if found is None:
            return None
        rows = found.result()[step : step + stop - start]
        if stop == self.episode_ends[i]:
            del self._coming[i][key]  # read to its end
        return rows

    def _begin(self, first: int) -> None:
        if first == self._at:
            return
        self._at = first
        for i in [i for i in self._coming if not first <= i < first + self._most]:
            for rows in self._coming.pop(i).values():
                rows.cancel()
        free = self._budget - sum(self._bytes(i) for i in self._coming)
        for i in range(first, min(first + self._most, self.n_episodes)):
            if i in self._coming:
                continue
            free -= self._bytes(i)
            if free < 0:
                break
            start, stop = int(self.episode_starts[i]), int(self.episode_ends[i])
            arrays = {k: self._source.array(k) for k in self.keys}
            self._coming[i] = {k: self._pool.submit(a.read, start, stop) for k, a in arrays.items()}

    def _bytes(self, i: int) -> int:
        return int(self.episode_ends[i] - self.episode_starts[i]) * self._step_bytes


class _AheadRows(Rows):
    def __init__(self, ahead: Ahead, key: str, rows: Rows) -> None:
        self._ahead, self._key, self._rows = ahead, key, rows
        self.name, self.shape, self.dtype, self.seekable = rows.name, rows.shape, rows.dtype, rows.seekable

    def read(self, start: int, stop: int) -> np.ndarray:
        found = self._ahead.rows(self._key, start, stop)
        return self._rows.read(start, stop) if found is None else found

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self._rows.gather(rows)

    def blocks(self, start: int, stop: int, target_bytes: int = 16 << 20) -> Any:
        return self._rows.blocks(start, stop, target_bytes)

    def stamps(self) -> list[Any]:
        return self._rows.stamps()

    def raw(self) -> tuple[Path, np.ndarray] | None:
        return self._rows.raw()
