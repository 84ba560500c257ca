"""LeRobot 0.4.4's own LeRobotDataset, as a peer of Deft's reader and writer: in tests and in a benchmark.

    .venv-peers/bin/python benchmarks/peers/lerobot_data.py read ROOT OUT.npz      every frame of a data set
    .venv-peers/bin/python benchmarks/peers/lerobot_data.py write ROOT IN.npz OPTIONS.json
    .venv-peers/bin/python benchmarks/peers/lerobot_data.py upgrade ROOT           v2.1 to v3.0, by LeRobot's script

`benchmarks/peers/install_lerobot.sh` makes the environment. Video is decoded by torchcodec, LeRobot's default.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", str(Path(tempfile.gettempdir()) / f"deft-peers-datasets-{os.getpid()}"))
os.environ.setdefault("SVT_LOG", "1")

import numpy as np

REPO_ID = "deft/peer"
FFMPEG = Path(sys.prefix) / "lib" / "ffmpeg"


def with_ffmpeg() -> None:
    """Start this program again where torchcodec finds FFmpeg, unless it does."""
    paths = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if str(FFMPEG) not in paths:
        env = {**os.environ, "LD_LIBRARY_PATH": ":".join([str(FFMPEG), *filter(None, paths)])}
        os.execve(sys.executable, [sys.executable, *sys.argv], env)


def _lerobot() -> Any:
    """Its data set class; a CUDA torchvision is let in on a CPU torch, as none of its operators is called."""
    import torch

    if "torchvision" not in sys.modules and torch.version.cuda is None:
        global _library
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):
                _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    datasets.disable_progress_bars()
    return LeRobotDataset


def open_dataset(root: str | Path, delta_timestamps: Mapping[str, Sequence[float]] | None = None) -> Any:
    return _lerobot()(REPO_ID, root=root, delta_timestamps=delta_timestamps and dict(delta_timestamps))


def read_all(root: str | Path) -> dict[str, np.ndarray]:
    """{feature: (T of all, *shape)}, pictures as (T, 3, H, W) float32 in [0, 1]; "task" as texts; "stats/..." too."""
    data = open_dataset(root)
    assert data.video_backend == "torchcodec"
    items = [data[i] for i in range(len(data))]
    out = {k: np.stack([np.asarray(item[k]) for item in items]) for k in items[0]}
    stats = {f"stats/{k}/{n}": v for k, s in data.meta.stats.items() for n, v in s.items()}
    return {**out, **stats, "fps": np.array(data.fps), "n_episodes": np.array(data.num_episodes)}


def write(
    root: str | Path, rows: Mapping[str, np.ndarray], lengths: Sequence[int], fps: int, vcodec: str, pictures: str
) -> None:
    """A v3.0 data set by LeRobot's own recorder; episodes are of the tasks "task 0" and "task 1" in turn."""
    features = {}
    for key, value in rows.items():
        seen = value.ndim == 4 and value.dtype == np.uint8
        names = ["height", "width", "channels"] if seen else None
        features[key] = {"dtype": pictures if seen else value.dtype.name, "shape": value.shape[1:], "names": names}
    data = _lerobot().create(REPO_ID, fps, features, root=root, use_videos=pictures == "video", vcodec=vcodec)
    at = 0
    for i, n in enumerate(lengths):
        for t in range(at, at + n):
            data.add_frame({**{k: v[t] for k, v in rows.items()}, "task": f"task {i % 2}"})
        data.save_episode(parallel_encoding=False)
        at += n
    data.finalize()


def upgrade(root: str | Path) -> None:
    _lerobot()
    from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset

    convert_dataset(Path(root).name, root=str(Path(root).parent), push_to_hub=False)


def main() -> None:
    with_ffmpeg()
    command, root, *more = sys.argv[1:]
    if command == "read":
        np.savez(more[0], **read_all(root))
    elif command == "write":
        write(root, dict(np.load(more[0])), **json.loads(more[1]))
    elif command == "upgrade":
        upgrade(root)
    else:
        sys.exit(f"unknown command {command}")


if __name__ == "__main__":
    main()
