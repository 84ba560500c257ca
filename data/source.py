"""What every data set shows, whatever its format: episodes, and arrays of rows along time that are read when asked for.

Training reads ``Episodes`` and nothing else, so a format is a subclass that fills in the attributes below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import checks
from data.errors import DataError, nearest
from data.spec import FieldSpec, TaskSpec


class Rows(ABC):
    """One array of a data set, (n, *shape), read in slices of time; nothing is kept in memory.

    Attributes:
        name: where it lies, for messages.
        shape: (n, *shape).
        dtype: as stored.
        seekable: rows at any places are decoded about as fast as rows in order, so training needs no decoded copy.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    seekable: bool = False

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one time step."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as (stop - start, *shape). Raises DataError if they cannot be read."""

    @abstractmethod
    def stamps(self) -> list[Any]:
        """What a cache of this array depends on, JSON-ready: changes when the files it is read from do."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places, (n,) int64 in [0, len), in that order."""
        if not rows.size:
            return self.read(0, 0)
        return np.concatenate([self.read(int(i), int(i) + 1) for i in rows])

    def blocks(self, start: int, stop: int, target_bytes: int = 16 << 20) -> Iterator[tuple[int, int, bool]]:
        """Cut rows [start, stop) where they are best read: (a, b, empty), about ``target_bytes`` (decoded) each.

        ``empty`` rows are stored nowhere and all zero, so there is nothing to read.
        """
        step = max(1, target_bytes // max(1, self.row_bytes))
        for a in range(start, stop, step):
            yield a, min(stop, a + step), False

    def raw(self) -> tuple[Path, np.ndarray] | None:
        """(file, (n,) int64 offset of each row's bytes in it) where rows lie there as they are; else None."""
        return None

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """``array[3]``, ``array[10:20]`` or ``array[np.array([...])]``, each along time.

        Raises:
            DataError: something is missing, cut off or corrupt.
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
        return self.read(int(index), int(index) + 1)[0] if index.ndim == 0 else self.gather(index)


class Episodes:
    """A data set, read-only.

    Attributes:
        format: its name, as ``data.convert`` takes it.
        path: file or directory.
        task: the contract of its episodes; None where it has no actions. Of a format that states none it is put
            together from the arrays (see ``data.guess``).
        attrs: other attributes of the whole set.
        episode_ends: (n_episodes,) int64, exclusive ends in rows of ``array(key)``.
    """

    format: str
    path: Path
    task: TaskSpec | None
    attrs: dict[str, Any]
    episode_ends: np.ndarray
    _arrays: dict[str, Rows]
    _episode_meta: dict[str, np.ndarray]

    @property
    def n_episodes(self) -> int:
        """Finished episodes."""
        return len(self.episode_ends)

    @property
    def n_steps(self) -> int:
        """Time steps of all finished episodes."""
        return int(self.episode_ends[-1]) if len(self.episode_ends) else 0

    @property
    def keys(self) -> list[str]:
        """Names of the arrays: observations, "action", per-step extras."""
        return list(self._arrays)

    @property
    def episode_starts(self) -> np.ndarray:
        """(n_episodes,) int64, first row of each episode."""
        return np.concatenate([np.zeros(1, np.int64), self.episode_ends[:-1]])[: self.n_episodes]

    @property
    def fields(self) -> dict[str, FieldSpec]:
        """Shape, dtype and kind of every key: from the task where there is one, else guessed from the arrays."""
        known = checks.task_fields(self.task) if self.task else {}
        return {k: known.get(k) or checks.guess_field(k, a.shape[1:], a.dtype) for k, a in self._arrays.items()}

    def array(self, key: str) -> Rows:
        """``key`` as (n_steps, *shape), read when sliced. Raises DataError for an unknown key."""
        if key not in self._arrays:
            raise DataError(f"{self.path} has no data/{key}. {nearest(key, self.keys)}")
        return self._arrays[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one time step of ``key``."""
        return self.array(key).shape[1:]

    def dtype(self, key: str) -> np.dtype:
        """Stored dtype of ``key``."""
        return self.array(key).dtype

    def episode_meta(self, name: str) -> np.ndarray:
        """(n_episodes, ...) numbers given as ``meta={name: ...}`` when the episodes were appended."""
        if name not in self._episode_meta:
            raise DataError(f"{self.path} has no meta/episode_{name}. {nearest(name, list(self._episode_meta))}")
        return self._episode_meta[name].copy()

    @property
    def episode_meta_names(self) -> list[str]:
        """What ``episode_meta`` knows."""
        return list(self._episode_meta)

    def episode(self, i: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Episode ``i`` (negative counts from the end): {key: (T, *shape)}, stored dtypes."""
        if not -self.n_episodes <= i < self.n_episodes:
            raise DataError(f"{self.path} has {self.n_episodes} episodes; there is no episode {i}.")
        start, end = int(self.episode_starts[i]), int(self.episode_ends[i])
        return {k: self.array(k).read(start, end) for k in (self.keys if keys is None else keys)}

    def scene(self, i: int) -> str | None:
        """XML of the simulated scene of episode ``i``, where the format keeps it."""
        return None

    def locate(self, row: int) -> tuple[int, int]:
        """(episode, step in that episode) of a row of ``array(key)``."""
        episode = int(np.searchsorted(self.episode_ends, row, side="right"))
        return episode, row - int(self.episode_starts[episode])

    def finite_blocks(
        self, key: str, episodes: np.ndarray | None = None
    ) -> Iterator[tuple[int, int, np.ndarray | None]]:
        """Stream ``key`` over ``episodes`` (all): (start, stop, rows (stop - start, *shape)).

        Rows are None where nothing is stored (all zero).

        Raises:
            DataError: a value that is not finite (naming episode and step), or rows that cannot be read.
        """
        array = self.array(key)
        for start, stop in self.runs(episodes):
            for a, b, empty in array.blocks(start, stop):
                if empty:
                    yield a, b, None
                    continue
                block = array.read(a, b)
                if (bad := checks.first_not_finite(block)) is not None:
                    episode, step = self.locate(a + bad)
                    raise DataError(
                        f"{self.path}: data/{key} holds a value that is not finite (NaN or infinite) in episode "
                        f"{episode} at step {step}. Expected finite numbers; leave the episode out or record it again."
                    )
                yield a, b, block

    def runs(self, episodes: np.ndarray | None = None) -> list[tuple[int, int]]:
        """[start, stop) row ranges that cover ``episodes`` in their order, neighbours joined."""
        if episodes is None:
            return [(0, self.n_steps)] if self.n_steps else []
        out: list[tuple[int, int]] = []
        for i in np.asarray(episodes).tolist():
            start, stop = int(self.episode_starts[i]), int(self.episode_ends[i])
            if out and out[-1][1] == start:
                out[-1] = (out[-1][0], stop)
            else:
                out.append((start, stop))
        return out

    def _outline(self) -> dict[str, checks.Outline]:
        return {k: (a.shape[1:], a.dtype) for k, a in self._arrays.items()}
