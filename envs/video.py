"""Write pictures as a video or an animated GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError


def write_video(frames: Sequence[np.ndarray], path: str | Path, fps: float | int = 20.0) -> Path:
    """Write ``frames`` (H, W, 3) uint8 to ``path``: ".mp4" (H.264, plays in browsers) or ".gif" (loops).

    Raises:
        DataError: no frames, or another ending.
    """
    path = Path(path)
    if not len(frames):
        raise DataError(f"{path}: there are no frames to write.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        _write_mp4(frames, path, fps)
    elif path.suffix == ".gif":
        import imageio.v2 as imageio

        imageio.mimsave(path, [np.asarray(f) for f in frames], duration=1000.0 / fps, loop=0)
    else:
        raise DataError(f"{path}: videos end in .mp4 or .gif.")
    return path


def _write_mp4(frames: Sequence[np.ndarray], path: Path, fps: float | int) -> None:
    import imageio.v2 as imageio

    # H.264 wants even sides; 16-pixel macro blocks are the encoder's own business.
    options: dict[str, Any] = {"fps": fps, "codec": "libx264", "quality": 7, "macro_block_size": 2}
    with imageio.get_writer(path, **options) as writer:
        for frame in frames:
            writer.append_data(np.asarray(frame))  # type: ignore[attr-defined]
