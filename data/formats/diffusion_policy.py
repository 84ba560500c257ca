"""Data sets of Diffusion Policy and UMI: ``replay_buffer.zarr``, as a directory or a zip.

The layout is that of our own store (data/<key>, meta/episode_ends), without a word on what the arrays are; so the task
is put together by ``data.guess``. Pictures stored as floats (PushT's ``img``) are shown as the bytes they are. UMI has
no actions: they are its poses, which ``keys={action: [robot0_eef_pos, ...]}`` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.episodes import EpisodeStore
from data.errors import DataError
from data.guess import guess_task
from data.source import Rows


class Bytes(Rows):
    """Pictures (n, H, W, 3) that hold whole numbers from 0 to 255 in another dtype, as uint8."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self.name, self.shape, self.dtype = rows, rows.name, rows.shape, np.dtype(np.uint8)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop). Raises DataError where a value is no byte."""
        return self._cast(self._rows.read(start, stop))

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places."""
        return self._cast(self._rows.gather(rows))

    def _cast(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            out = values.astype(np.uint8)
        if not np.array_equal(out, values):
            raise DataError(
                f"{self.name} looks like pictures {self.shape[1:]} in {self._rows.dtype}, but holds values that are no "
                "whole numbers from 0 to 255. Expected uint8, or the same numbers as floats."
            )
        return out

    def blocks(self, start: int, stop: int, target_bytes: int = 16 << 20) -> Iterator[tuple[int, int, bool]]:
        """Those of the array."""
        return self._rows.blocks(start, stop, target_bytes)

    def stamps(self) -> list[Any]:
        """Those of the array."""
        return ["bytes", *self._rows.stamps()]


class DiffusionPolicyEpisodes(EpisodeStore):
    """A store that Deft did not write; ``task`` is None as long as nothing is named "action"."""

    format = "dp"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "r")

    def refresh(self) -> None:
        """Reads the outline again."""
        super().refresh()
        for key, rows in self._arrays.items():
            if len(rows.shape) == 4 and min(rows.shape[1:3]) >= 8 and rows.shape[3] == 3 and rows.dtype.kind == "f":
                self._arrays[key] = Bytes(rows)
        self.task = guess_task(self, self.path.name.split(".")[0])
