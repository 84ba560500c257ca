"""Pictures into mp4 files, for formats that keep them there."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.formats.video_rows import import_av
from data.zarr_read import reason

# A key frame at every second frame: bigger files, but a window costs two or three frames, as in LeRobot's own.
CODECS = {
    "h264": ("libx264", {"crf": "18", "g": "2", "bf": "0", "preset": "fast"}),
    "av1": ("libsvtav1", {"crf": "30", "g": "2", "preset": "12"}),
}


class VideoFile:
    """One file that frames are appended to; complete after ``close``."""

    def __init__(self, path: Path, shape: tuple[int, ...], fps: float, codec: str) -> None:
        """An empty file at ``path`` for pictures (H, W, 3). Raises DataError: the codec takes no such pictures."""
        av = import_av(path)
        name, options = CODECS[codec]
        os.environ.setdefault("SVT_LOG", "1")  # errors only
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.n_frames, self._av = path, 0, av
        self._container = av.open(str(path), "w", format="mp4")
        self._rate = Fraction(fps).limit_denominator(1000)
        self._stream = self._container.add_stream(name, rate=self._rate, options=dict(options))
        self._stream.height, self._stream.width, self._stream.pix_fmt = shape[0], shape[1], "yuv420p"
        if shape[0] % 2 or shape[1] % 2:
            raise DataError(f"{path}: video has no pictures of {shape[1]}x{shape[0]}; pictures=png keeps any size.")

    def append(self, frames: np.ndarray, first: bool) -> None:
        """(n, H, W, 3) uint8; ``first`` makes the first one a key frame (an episode begins)."""
        for i, picture in enumerate(frames):
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self.n_frames, 1 / self._rate
            if first and i == 0:
                frame.pict_type = self._av.video.frame.PictureType.I
            self._mux(frame)
            self.n_frames += 1

    def _mux(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except Exception as e:
            h, w = self._stream.height, self._stream.width
            raise DataError(
                f"{self.path}: {self._stream.codec_context.name} cannot encode {w}x{h} pictures ({reason(e)}); "
                "pictures=png keeps any size."
            ) from e

    def close(self) -> None:
        """Writes what the encoder has held back."""
        self._mux(None)
        self._container.close()

    def abandon(self) -> None:
        """Leaves a file that is not complete."""
        with contextlib.suppress(Exception):
            self._container.close()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def described(self) -> dict[str, Any]:
        """What LeRobot says of it in info.json."""
        codec = self._stream.codec_context
        return {
            "video.height": codec.height, "video.width": codec.width, "video.channels": 3,
            "video.codec": {"libx264": "h264", "libsvtav1": "av1"}[codec.name], "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False, "video.fps": as_number(float(self._rate)), "has_audio": False,
        }  # fmt: skip


def as_number(fps: float) -> int | float:
    """LeRobot's frames per second are whole where they can be."""
    return int(fps) if fps == int(fps) else fps
