"""Several data sets one after the other, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.errors import DataError
from data.source import Episodes, Rows


class Chained(Rows):
    """Arrays one after the other along time."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts, self._ends = list(parts), np.cumsum([len(p) for p in parts])
        self.name, self.dtype = parts[0].name, parts[0].dtype
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""
        found = [self._parts[0].read(0, 0)]
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            a, b = max(start, end - len(part)), min(stop, end)
            if a < b:
                found.append(part.read(a - end + len(part), b - end + len(part)))
        return np.concatenate(found)

    def stamps(self) -> list[Any]:
        """Those of the parts."""
        return [p.stamps() for p in self._parts]


class Merged(Episodes):
    """The first one's task and attributes; what belongs to an episode is kept where all have it."""

    def __init__(self, sources: Sequence[Episodes]) -> None:
        """Nothing is read yet.

        Raises:
            DataError: keys, shapes, dtypes, rates or action ranges that differ, naming the first difference.
        """
        first = sources[0]
        for other in sources[1:]:
            _check_same(first, other)
        self.format, self.path, self.attrs, self.task = first.format, first.path, dict(first.attrs), first.task
        starts = np.cumsum([0, *(s.n_steps for s in sources[:-1])])
        self.episode_ends = np.concatenate([s.episode_ends + n for s, n in zip(sources, starts, strict=True)])
        self._arrays = {k: Chained([s.array(k) for s in sources]) for k in first.keys}
        names = [n for n in first.episode_meta_names if all(n in s.episode_meta_names for s in sources)]
        self._episode_meta = {n: np.concatenate([s.episode_meta(n) for s in sources]) for n in names}


def _check_same(first: Episodes, other: Episodes) -> None:
    where = f"{other.path} cannot be joined to {first.path}"
    for key in sorted({*first.keys} ^ {*other.keys}):
        raise DataError(f"{where}: only one of them has '{key}'.")
    for key in first.keys:
        a, b = (first.shape(key), first.dtype(key)), (other.shape(key), other.dtype(key))
        if a != b:
            raise DataError(f"{where}: '{key}' is {b[0]} {b[1]}, expected {a[0]} {a[1]}.")
    if first.task and other.task:
        differences = first.task.differences(other.task)
        if first.task.control_hz != other.task.control_hz:
            differences.append(f"{other.task.control_hz:g} actions per second, expected {first.task.control_hz:g}")
        if differences:
            raise DataError(f"{where}: {'; '.join(differences)}.")
