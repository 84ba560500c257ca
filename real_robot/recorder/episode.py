"""A recorded episode, read back: tables of numbers, pictures one by one, what was sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError, nearest
from real_robot.core.types import Joints
from real_robot.recorder.folder import read_meta
from real_robot.recorder.log import Entry, Log


class Episode:
    """Of the folder that the recorder made.

    Attributes:
        folder: path.
        meta: see ``real_robot.recorder.folder``.
        log: its valid prefix.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        self.log = Log(self.folder / "log")
        self._entries: dict[str, list[Entry]] = {}
        for entry in self.log.index:
            self._entries.setdefault(self.log.streams[entry.stream].name, []).append(entry)

    @property
    def names(self) -> list[str]:
        """Of the streams that hold anything: "state", "camera.front", ..."""
        return sorted(self._entries)

    @property
    def cameras(self) -> list[str]:
        """Names of the streams of pictures."""
        return [name for name in self.names if name.startswith("camera.")]

    def _of(self, name: str) -> list[Entry]:
        if name not in self._entries:
            raise DataError(f"{self.folder} has no records of '{name}'. {nearest(name, self.names)}")
        return self._entries[name]

    def table(self, name: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Times (T,) ns and records (T,) structured, without pictures, of a stream in the order of time.

        Raises:
            DataError: no such stream, or it changed its layout on the way.
        """
        found = self._of(name)
        heads = {self.log.streams[e.stream].layout.head for e in found}
        if len(heads) > 1:
            raise DataError(f"{self.folder}: the layout of '{name}' changed during the episode.")
        head = heads.pop()
        view = memoryview(self.log.buffer)
        rows = np.frombuffer(b"".join(view[e.start : e.start + head.itemsize] for e in found), head)
        t = np.array([e.t for e in found], np.int64)
        order = np.argsort(t, kind="stable")
        return t[order], rows[order]

    def pictures(self, name: str, field: str = "rgb") -> Pictures:
        """The pictures of a camera, decoded when they are asked for; ``field`` is rgb or depth."""
        found = sorted(self._of(name), key=lambda e: e.t)
        layout = self.log.streams[found[0].stream].layout
        if field not in layout.pictures:
            raise DataError(f"{self.folder}: '{name}' has no {field}, only {', '.join(layout.pictures) or 'numbers'}.")
        return Pictures(self.log, found, field)

    def events(self) -> list[tuple[int, str, int, str]]:
        """(t, process, level, text) of all lines that processes said, by time."""
        out = []
        for name in self.names:
            if name.startswith("event."):
                t, rows = self.table(name)
                out += [
                    (int(at), name.removeprefix("event."), int(row["level"]), row["text"].decode(errors="replace"))
                    for at, row in zip(t, rows, strict=True)
                ]
        return sorted(out)


class Pictures:
    """A sequence of pictures; ``t`` (T,) are their capture times, ns."""

    def __init__(self, log: Log, entries: list[Entry], field: str):
        self._log, self._entries, self._field = log, entries, field
        self.t = np.array([e.t for e in entries], np.int64)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, i: int) -> NDArray[Any]:
        """(H, W, 3) uint8, or (H, W) float32 m."""
        entry = self._entries[i]
        return self._log.streams[entry.stream].layout.picture(self._log.payload(entry), self._field)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture."""
        return self._log.streams[self._entries[0].stream].layout.dtype[self._field].shape


def sent(folder: str | Path) -> Iterator[tuple[int, Joints]]:
    """What the robot was sent between START and STOP: (ns since START, (n,) joint targets), one per control tick."""
    episode = Episode(folder)
    start, end = episode.meta["start"], episode.meta["end"]
    t, rows = episode.table("command")
    for at, q in zip(t, rows["sent"], strict=True):
        if start <= at and (end is None or at <= end):
            yield int(at - start), np.array(q)
