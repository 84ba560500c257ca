"""Episodes on disk: a zarr store in the layout of the Diffusion Policy field, appended to one whole episode at a time.

    root attributes            our metadata: schema_version, task (TaskSpec.to_dict()), whatever else the creator gave
    data/<key>                 (T, *shape), all episodes one after the other, each frame once
    meta/episode_ends          (n_episodes,) int64, exclusive end of each episode in data/; written last
    meta/episode_<name>        (n_episodes, ...), numbers that belong to an episode, such as its seed

Stores without our metadata (published Diffusion Policy data, as a directory or a zip) open in the same reader.
A writer that is killed loses at most the episode it was appending. (A power cut is another matter: nothing is fsynced.)
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data import checks
from data.errors import DataError, nearest
from data.spec import FieldSpec, TaskSpec
from data.zarr_read import LazyArray, child_arrays, open_group, read_array
from data.zarr_write import GrowingArray, file_lock, write_json


class EpisodeStore:
    """A data set of episodes. Make one with ``EpisodeStore.create`` or ``EpisodeStore.open``.

    A store opened for reading shows the episodes that were finished when it was opened; ``refresh`` looks again.

    Attributes:
        path: directory or zip file.
        task: the task's contract; None for a store that Deft did not write.
        attrs: the other root attributes.
        episode_ends: (n_episodes,) int64, exclusive ends in rows of ``array(key)``.
    """

    path: Path
    task: TaskSpec | None
    attrs: dict[str, Any]
    episode_ends: np.ndarray

    def __init__(self, path: str | Path, mode: Literal["r", "a"] = "r") -> None:
        if mode not in ("r", "a"):
            raise DataError(f"{path}: mode must be 'r' or 'a', got {mode!r}.")
        self.path, self.mode = Path(path), mode
        self.refresh()
        if mode == "a":
            if self.task is None:
                raise DataError(
                    f"{self.path} was not written by Deft (no task in its attributes): open it with mode='r'."
                )
            with self._lock():
                self._recover()

    @classmethod
    def create(cls, path: str | Path, task: TaskSpec, attrs: dict[str, Any] | None = None) -> EpisodeStore:
        """A new, empty store, open for appending.

        Args:
            path: must not exist, or be an empty directory.
            task: its ``obs`` and ``action`` are what every episode must hold.
            attrs: further root attributes, JSON-ready.

        Raises:
            DataError: something is at ``path`` already, or a name cannot be used.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise DataError(
                f"{path} exists already: open it with EpisodeStore.open(path, mode='a'), or choose another path."
            )
        attrs = dict(attrs or {})
        checks.check_names(path, task, attrs)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The store appears under its name in one step, complete, so no kill leaves a store without episode_ends.
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            for group in (draft, draft / "data", draft / "meta"):
                group.mkdir()
                write_json(group / ".zgroup", {"zarr_format": 2})
            write_json(draft / ".zattrs", {"schema_version": checks.SCHEMA_VERSION, "task": task.to_dict(), **attrs})
            for key, spec in checks.task_fields(task).items():
                GrowingArray.create(draft / "data" / key, spec.shape, np.dtype(spec.dtype))
            GrowingArray.create(draft / "meta" / "episode_ends", (), np.dtype(np.int64))
            os.rename(draft, path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return cls(path, "a")

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r") -> EpisodeStore:
        """Open a store, ours or a published Diffusion Policy one (directory, zip, or a folder inside a zip).

        Raises:
            DataError: not a store, half-written, inconsistent, or of a newer schema.
        """
        return cls(path, mode)

    # ------------------------------------------------------------------------------------------ reading

    def refresh(self) -> None:
        """Read the store's outline again: episodes another process has finished since become visible."""
        group, files = open_group(self.path)
        attrs = dict(group.attrs)
        self.task = checks.read_task(self.path, attrs)
        self.attrs = {k: v for k, v in attrs.items() if k != "task"}
        complete = self.task is not None
        # The ends first: whatever they promise is already in the arrays that are opened after them.
        ends = read_array(group, "meta/episode_ends")
        if ends is None:
            raise DataError(
                f"{self.path} has no array meta/episode_ends, so it is not an episode store, or it was only half "
                "written or copied. Expected data/<key> (T, ...) and meta/episode_ends (n_episodes,)."
            )
        n_ends = ends.shape[0] if ends.ndim else 0
        self.episode_ends = checks.read_ends(self.path, LazyArray(ends, files, n_ends, complete=complete))
        self._arrays: dict[str, LazyArray] = {}
        for key, found in child_arrays(group, "data").items():
            n_rows = found.shape[0] if found.ndim else 0
            if n_rows < self.n_steps:
                raise DataError(
                    f"{self.path}: data/{key} has {n_rows} rows, but meta/episode_ends goes up to {self.n_steps}. "
                    "The data set is cut off; copy it again."
                )
            self._arrays[key] = LazyArray(found, files, self.n_steps, complete=complete)
        if not self._arrays:
            raise DataError(f"{self.path} has no arrays under data/: expected data/action and the observations.")
        self._episode_meta: dict[str, np.ndarray] = {}
        for name, found in child_arrays(group, "meta").items():
            long_enough = found.ndim > 0 and found.shape[0] >= self.n_episodes
            if name.startswith("episode_") and name != "episode_ends" and long_enough:
                lazy = LazyArray(found, files, self.n_episodes, complete=complete)
                self._episode_meta[name.removeprefix("episode_")] = lazy.read(0, self.n_episodes)
        if self.task is not None:
            checks.check_arrays(self.path, self.task, self._outline())

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
        """Names under data/: observations, "action", per-step extras."""
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

    def array(self, key: str) -> LazyArray:
        """``data/<key>`` as (n_steps, *shape), read when sliced. Raises DataError for an unknown key."""
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
            DataError: a value that is not finite (naming episode and step), or a chunk that cannot be read.
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

    # ------------------------------------------------------------------------------------------ writing

    def append(self, episode: dict[str, np.ndarray], meta: dict[str, Any] | None = None) -> int:
        """Add one whole episode; it is in the store when this returns, or (killed before that) not at all.

        Args:
            episode: {key: (T, *shape)} for every observation of the task and "action", in the task's dtypes, plus
                per-step extras such as "reward" and "success" (the first episode decides which, and their dtypes).
            meta: numbers that belong to the episode, such as {"seed": 3} (the first episode decides which).

        Returns:
            The episode's number.

        Raises:
            DataError: a wrong key, shape, dtype or length, or a value that is not finite; nothing is written.
        """
        if self.mode != "a":
            raise DataError(f"{self.path} is open for reading; open it with mode='a' to append.")
        with self._lock():
            if self._n_episodes_on_disk() != self.n_episodes:  # another process has appended
                self.refresh()
            start, index = self.n_steps, self.n_episodes
            assert self.task is not None
            where = f"Episode {index} for {self.path}"
            n_steps = checks.check_episode(where, episode, self.task, self._outline() if index else None)
            numbers = checks.check_meta(where, meta or {}, self._episode_meta if index else None)
            for key, rows in episode.items():
                self._growing("data", key, rows).extend(start, rows)
            for name, row in numbers.items():
                self._growing("meta", f"episode_{name}", row).extend(index, row)
            ends = GrowingArray(self.path / "meta" / "episode_ends")
            ends.extend(index, np.array([start + n_steps], np.int64))  # from here on the episode exists
            self.refresh()
        return index

    def _growing(self, group: str, name: str, rows: np.ndarray) -> GrowingArray:
        folder = self.path / group / name
        if (folder / ".zarray").exists():
            return GrowingArray(folder)
        return GrowingArray.create(folder, rows.shape[1:], rows.dtype)

    def _outline(self) -> dict[str, checks.Outline]:
        return {k: (a.shape[1:], a.dtype) for k, a in self._arrays.items()}

    def _lock(self) -> Any:
        return file_lock(self.path / ".lock")

    def _n_episodes_on_disk(self) -> int:
        return GrowingArray(self.path / "meta" / "episode_ends").length

    def _recover(self) -> None:
        """Cut off what a killed writer left beyond the last finished episode."""
        self.refresh()
        expected = set(checks.task_fields(self.task)) if self.task else set()
        for folder in (self.path / "data").iterdir():
            if folder.is_dir():
                self._cut(folder, self.n_steps, keep=folder.name in expected)
        for folder in (self.path / "meta").iterdir():
            if folder.is_dir():
                self._cut(folder, self.n_episodes, keep=folder.name == "episode_ends")
        self.refresh()

    def _cut(self, folder: Path, n: int, *, keep: bool) -> None:
        # Before the first finished episode nothing has decided on extras yet.
        if (self.n_episodes == 0 and not keep) or not (folder / ".zarray").exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            GrowingArray(folder).truncate(n)
