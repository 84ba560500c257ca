"""Pictures along time that lie in videos: found by their time, decoded where they lie.

A window costs one seek, to the last key frame before it. Videos stay open, so many as ``OPEN_BYTES`` lasts for, in each
of as many threads as there are cores: decoding releases Python's lock.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data.cores import n_cores
from data.errors import DataError
from data.source import Rows
from data.zarr_read import REPAIR, reason

OPEN_BYTES = 64 << 20  # a thread's decoders, for one camera
_HELD = 12  # frames that a decoder holds, with its buffers
_NEAR = 3.5  # periods ahead that are decoded rather than sought
_OFF = 0.25  # periods that a frame may be away from its time

_threads: tuple[int, ThreadPoolExecutor] | None = None


def _workers() -> ThreadPoolExecutor | None:
    """Shared by all videos of this process (threads do not survive a fork); None on a single core."""
    global _threads
    n = n_cores()
    if n < 2:
        return None
    if _threads is None or _threads[0] != os.getpid():
        _threads = (os.getpid(), ThreadPoolExecutor(min(n, 8), "deft-video"))
    return _threads[1]


def import_av(path: Path) -> Any:
    """PyAV. Raises DataError: it is not installed."""
    try:
        import av
    except ImportError as e:
        raise DataError(f"{path} is a video; it needs PyAV: pip install 'deft[lerobot]'.") from e
    return av


class Video:
    """One open file; ``frame`` is quick where times go on."""

    def __init__(self, path: Path, shape: tuple[int, ...], period: float, last: float) -> None:
        """Open.

        Args:
            path: the file.
            shape: (H, W, 3).
            period: seconds between two frames.
            last: time of the last frame that is needed, seconds.

        Raises:
            DataError: no video, one of another size, or a shorter one.
        """
        av = import_av(path)
        self.path, self._period = path, period
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            self._base = float(self._stream.time_base)
            context = self._stream.codec_context
            context.thread_count, context.thread_type = 1, "NONE"  # otherwise frames come late
            size, duration = (context.height, context.width), self._stream.duration
        except Exception as e:
            raise DataError(f"{path} cannot be opened as a video ({reason(e)}). It is half-written or corrupt.") from e
        if size != tuple(shape[:2]):
            raise DataError(f"{path} shows {size[1]}x{size[0]} pictures; info.json says {shape[1]}x{shape[0]}.")
        if duration is not None and duration * self._base < last - period:
            raise DataError(
                f"{path} lasts {duration * self._base:.2f} s, but its episodes need a frame at {last:.2f} s. "
                f"It is half-written. {REPAIR}"
            )
        self._rgb = av.video.reformatter.VideoReformatter()
        self._coming: Iterator[Any] = iter(())
        self._at: tuple[float, Any] | None = None

    def frame(self, t: float, into: np.ndarray) -> None:
        """The frame at ``t`` seconds, (H, W, 3). Raises DataError: none there, or it cannot be decoded."""
        try:
            found = self._find(t)
            if found is not None:
                plane = self._rgb.reformat(found, format="rgb24").planes[0]
                height, width, _ = into.shape
                lines = np.frombuffer(plane, np.uint8)[: height * plane.line_size].reshape(height, plane.line_size)
                into[:] = lines[:, : 3 * width].reshape(into.shape)
        except Exception as e:
            self._at = None
            raise DataError(f"{self.path} cannot be decoded at {t:.3f} s ({reason(e)}). {REPAIR}") from e
        if found is None:
            raise DataError(
                f"{self.path} has no frame at {t:.3f} s. It is half-written, or does not belong to these episodes."
            )

    def _find(self, t: float) -> Any:
        off = _OFF * self._period
        if self._at is None or self._at[0] > t + off or self._at[0] < t - _NEAR * self._period:
            self._seek(t + off)
            if self._at is None or self._at[0] > t + off:  # key frames that are not marked
                self._seek(0.0)
        while self._at is not None and self._at[0] < t - off:
            self._next()
        return self._at[1] if self._at is not None and self._at[0] <= t + off else None

    def _seek(self, t: float) -> None:
        self._container.seek(int(t / self._base), stream=self._stream, backward=True)
        self._coming = self._container.decode(self._stream)
        self._next()

    def _next(self) -> None:
        frame = next(self._coming, None)
        while frame is not None and frame.pts is None:
            frame = next(self._coming, None)
        if frame is not None and (frame.height, frame.width) != (self._stream.height, self._stream.width):
            raise ValueError(f"a frame of {frame.width}x{frame.height}")
        self._at = None if frame is None else (frame.pts * self._base, frame)

    def close(self) -> None:
        """Once is enough."""
        self._container.close()


class VideoRows(Rows):
    """A camera's frames, uint8 (n, H, W, 3)."""

    seekable = True

    def __init__(
        self,
        key: str,
        files: Sequence[Path],
        ends: np.ndarray,
        times: np.ndarray,
        shape: tuple[int, ...],
        fps: float,
    ) -> None:
        """Nothing is opened yet.

        Args:
            key: for messages.
            files: each episode's; several may lie in one.
            ends: (n_episodes,) exclusive ends of their rows.
            times: (n,) seconds of each row in its file.
            shape: (H, W, 3).
            fps: frames per second.
        """
        self._paths = list(dict.fromkeys(files))
        number = {p: i for i, p in enumerate(self._paths)}
        self._file = np.repeat(np.array([number[p] for p in files]), np.diff(ends, prepend=0))
        self._times, self._fps = times, fps
        self.name = f"{files[0].parent.parent}: {key}"
        self.shape, self.dtype = (int(ends[-1]), *shape), np.dtype(np.uint8)
        self._last = np.full(len(self._paths), -np.inf)
        np.maximum.at(self._last, self._file, times)
        self._max_open = max(2, OPEN_BYTES // (_HELD * max(1, self.row_bytes // 2)))
        self._local = threading.local()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""
        out = np.empty((max(0, stop - start), *self.shape[1:]), np.uint8)
        self._decode(np.arange(start, stop), out, np.arange(len(out)))
        return out

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places; each is decoded once, in the order in which they lie."""
        wanted, places, back = np.unique(rows, return_index=True, return_inverse=True)
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        cuts = np.flatnonzero((np.diff(wanted) > _NEAR) | (np.diff(self._file[wanted]) != 0)) + 1
        workers = _workers() if len(cuts) else None
        if workers is None:
            self._decode(wanted, out, places)
        else:  # neighbours stay together
            n = min(len(cuts) + 1, 2 * workers._max_workers)
            bounds = [0, *(int(c) for c in cuts[np.arange(1, n) * (len(cuts) + 1) // n - 1]), len(wanted)]
            parts = [workers.submit(self._decode, wanted[a:b], out, places[a:b]) for a, b in pairwise(bounds)]
            for part in parts:
                part.result()
        again = np.flatnonzero(places[back] != np.arange(len(rows)))
        out[again] = out[places[back[again]]]
        return out

    def _decode(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            self._video(int(self._file[row])).frame(float(self._times[row]), out[place])

    def _video(self, number: int) -> Video:
        """Of this thread and process; the one that was used least lately gives way."""
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.pid, self._local.open = os.getpid(), OrderedDict()
        held: OrderedDict[int, Video] = self._local.open
        if number not in held:
            while len(held) >= self._max_open:
                held.popitem(last=False)[1].close()
            path = self._paths[number]
            held[number] = Video(path, self.shape[1:], 1 / self._fps, float(self._last[number]))
        held.move_to_end(number)
        return held[number]

    def stamps(self) -> list[Any]:
        """The files' sizes and times of change."""
        stats = [p.stat() for p in self._paths]
        return [self.shape, float(self._times.sum()), [[s.st_size, s.st_mtime_ns] for s in stats]]
