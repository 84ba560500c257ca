"""An episode in rerun (https://rerun.io), its viewer for time series, pictures and clouds."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.source import Episodes

QUALITY = 90  # of pictures, as JPEG


def log_episode(source: Episodes, i: int, out: Path | None) -> None:
    """Episode ``i`` into a recording at ``out``; without one, served to the browser until interrupted.

    Pictures, depth and clouds are entities of their key's name, vectors scalars; times are the steps, and seconds where
    the rate is known.

    Raises:
        DataError: rerun is not installed, or rows that cannot be read.
    """
    try:
        import rerun  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise DataError("rerun=true needs rerun's package: pip install 'deft[rerun]'.") from e
    if not 0 <= i < source.n_episodes:
        raise DataError(f"{source.path} has {source.n_episodes} episodes; there is no episode {i}.")
    stream = rerun.RecordingStream("deft", recording_id=f"{source.path.name} episode {i}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        stream.save(out)
    else:
        rerun.serve_web_viewer(connect_to=stream.serve_grpc())
    start, stop = int(source.episode_starts[i]), int(source.episode_ends[i])
    hz = source.task.control_hz if source.task else 0.0
    for key, spec in source.fields.items():
        rows = source.array(key)
        for a, b, _ in rows.blocks(start, stop):
            for step, value in enumerate(rows.read(a, b), a - start):
                stream.set_time("step", sequence=step)
                if hz:
                    stream.set_time("time", duration=step / hz)
                stream.log(key, _shown(rerun, spec.kind, np.asarray(value)))
    stream.flush()
    if out is not None:
        stream.disconnect()
        return
    print("rerun is in the browser; Ctrl-C ends it", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(1)


def _shown(rerun: Any, kind: str, value: np.ndarray) -> Any:
    if kind == "rgb" or (kind == "goal" and value.ndim == 3):
        return rerun.Image(value).compress(jpeg_quality=QUALITY)
    if kind == "depth":
        return rerun.DepthImage(value.astype(np.float32), meter=1.0)
    if kind == "pointcloud":
        colors = value[:, 3:] if value.shape[1] == 6 else None
        if colors is not None and colors.max() <= 1:
            colors = (255 * colors).clip(0, 255).astype(np.uint8)
        return rerun.Points3D(value[:, :3], colors=colors)
    return rerun.Scalars(value.reshape(-1).astype(np.float64))
