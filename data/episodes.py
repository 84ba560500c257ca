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
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data import checks
from data.errors import DataError
from data.source import Episodes
from data.spec import TaskSpec
from data.zarr_read import LazyArray, child_arrays, open_group, read_array
from data.zarr_write import GrowingArray, file_lock, write_json


class EpisodeStore(Episodes):
    """A data set of episodes. Make one with ``EpisodeStore.create`` or ``EpisodeStore.open``.

    A store opened for reading shows the episodes that were finished when it was opened; ``refresh`` looks again.

    Its ``path`` is a directory or zip file; its ``task`` is None where Deft did not write it (``data.opening`` puts one
    together).
    """

    format = "deft"

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
        self._arrays = {}
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
        self._episode_meta = {}
        for name, found in child_arrays(group, "meta").items():
            long_enough = found.ndim > 0 and found.shape[0] >= self.n_episodes
            if name.startswith("episode_") and name != "episode_ends" and long_enough:
                lazy = LazyArray(found, files, self.n_episodes, complete=complete)
                self._episode_meta[name.removeprefix("episode_")] = lazy.read(0, self.n_episodes)
        if self.task is not None:
            checks.check_arrays(self.path, self.task, self._outline())

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
