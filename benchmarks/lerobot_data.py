"""Image windows from a LeRobot v3.0 data set, loading alone: Deft in place and from its own store, against LeRobot.

    .venv-peers/bin/python benchmarks/lerobot_data.py [--codec libsvtav1|h264] [--episodes 20] [--length 150]

LeRobot's own recorder writes a data set of two cameras. Every side then draws random windows, To observations of both
cameras and the state, H actions: LeRobot by LeRobotDataset with delta_timestamps in a DataLoader (the number of worker
processes that is fastest here, measured first), decoded by torchcodec; Deft by ChunkDataset on that folder, no frame
kept (each is decoded whenever it is asked for) and with half of them kept, and on its own store. The sides take turns,
and medians are compared. Before that, some windows are checked to be the same on both sides.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "peers"), str(Path(__file__).parents[1])]
from lerobot_data import open_dataset, with_ffmpeg, write  # noqa: E402

TO, H, SIZE, FPS = 2, 16, 224, 30


def make(root: Path, n_episodes: int, length: int, codec: str) -> None:
    """Two cameras that show something with texture that moves, and noise, as cameras do."""
    import cv2
    import numpy as np

    rng, n = np.random.default_rng(0), n_episodes * length
    rows = {
        "observation.state": rng.normal(size=(n, 14)).cumsum(0).astype("f4"),
        "action": rng.uniform(-1, 1, (n, 14)).astype("f4"),
    }
    for camera in ("top", "wrist"):
        room = cv2.resize(rng.integers(0, 256, (24, 24, 3)).astype("u1"), (2 * SIZE, 2 * SIZE), interpolation=3)
        out = np.empty((n, SIZE, SIZE, 3), np.uint8)
        for t in range(n):
            y, x = (int(SIZE / 2 * (1 + np.sin(t / k))) for k in (31, 47))
            seen = room[y : y + SIZE, x : x + SIZE].astype(np.int16) + rng.integers(-4, 5, (SIZE, SIZE, 1))
            out[t] = np.clip(seen, 0, 255)
        rows[f"observation.images.{camera}"] = out
    write(root, rows, [length] * n_episodes, FPS, codec, "video")


def lerobot(root: Path, batch: int, workers: int, seed: int = 0) -> Callable[[], object]:
    """Draws one batch."""
    import torch
    from lerobot.datasets import video_utils

    video_utils._default_decoder_cache.clear()  # loader processes may not share its open files
    past, chunk = [i / FPS for i in range(1 - TO, 1)], [i / FPS for i in range(1 - TO, H - TO + 1)]
    keys = ("observation.images.top", "observation.images.wrist", "observation.state")
    data = open_dataset(root, {**dict.fromkeys(keys, past), "action": chunk})
    loader = torch.utils.data.DataLoader(
        data, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True,
        generator=torch.Generator().manual_seed(seed), persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
    )  # fmt: skip

    def forever():
        while True:
            yield from loader

    batches = forever()
    return lambda: next(batches)


def ours(path: Path, batch: int, memory_gb: float) -> tuple[Callable[[], object], object]:
    from data.chunks import ChunkDataset, ChunkSampler
    from data.opening import open_episodes

    keys = ["rgb_top", "rgb_wrist", "state"]
    data = ChunkDataset(
        open_episodes(path), obs_keys=keys, n_obs_steps=TO, horizon=H, memory_budget_bytes=int(memory_gb * 1e9)
    )
    sampler = iter(ChunkSampler(len(data), batch, seed=0))
    return lambda: data.batch(next(sampler)), data


def check_same(root: Path, data: object) -> None:
    """The windows of a few frames, on both sides."""
    import torch

    past, chunk = [i / FPS for i in range(1 - TO, 1)], [i / FPS for i in range(1 - TO, H - TO + 1)]
    theirs = open_dataset(root, {"observation.images.top": past, "observation.state": past, "action": chunk})
    for i in (0, 77, len(theirs) - 1):
        a, b = data.batch(torch.tensor([i])), theirs[i]  # type: ignore[attr-defined]
        assert torch.equal(a.action[0], b["action"])
        assert torch.equal(a.obs["state"][0], b["observation.state"])
        pictures = (b["observation.images.top"] * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        assert torch.equal(a.obs["rgb_top"][0], pictures)


def rate(step: Callable[[], object], batch: int, n: int, ahead: int = 1) -> float:
    """Windows per second, once what was loaded ``ahead`` (batches) is used up."""
    for _ in range(ahead):
        step()
    start = time.perf_counter()
    for _ in range(n):
        step()
    return n * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="libsvtav1", help="LeRobot's default; or h264")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--length", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=7, help="turns of each side")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="LeRobot's, to try")
    parser.add_argument("--data", type=Path, help="a data set that an earlier run has written; kept")
    args = parser.parse_args()
    with_ffmpeg()
    logging.disable(logging.WARNING)
    import torch

    from data.convert import convert
    from data.opening import open_episodes

    batch, load = args.batch_size, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root = args.data or Path(folder) / "theirs"
        if not root.exists():
            make(root, args.episodes, args.length, args.codec)
        source = open_episodes(root)
        frames = source.n_steps * source.array("rgb_top").row_bytes * 2 / 1e9
        convert(source, Path(folder) / "ours.zarr", "deft")
        print(f"{source.n_episodes} episodes, {source.n_steps} steps, {frames:.2f} GB of decoded frames; {args.codec}")
        in_place, data = ours(root, batch, 0.0)
        check_same(root, data)
        rates = {w: rate(lerobot(root, batch, w), batch, 6, max(1, 2 * w)) for w in args.workers}
        best = max(rates, key=lambda w: rates[w])
        told = ", ".join(f"{w}: {r:.0f}" for w, r in rates.items())
        print(f"LeRobot, windows/s by loader processes: {told}; taking {best}", flush=True)
        sides = {
            "LeRobotDataset + DataLoader": lerobot(root, batch, best, 1),
            "Deft in place, no frame kept": in_place,
            "Deft in place, memory_gb for half": ours(root, batch, frames / 2)[0],
            "Deft's own store, from its decoded file": ours(Path(folder) / "ours.zarr", batch, 0.0)[0],
            "Deft's own store, in memory": ours(Path(folder) / "ours.zarr", batch, 2 * frames)[0],
        }
        for _ in range(max(2, source.n_steps // batch // 2)):
            sides["Deft in place, memory_gb for half"]()  # until it is full
        seen: dict[str, list[float]] = {k: [] for k in sides}
        for _ in range(args.blocks):
            for name, step in sides.items():
                theirs = name.startswith("LeRobot")
                seen[name].append(rate(step, batch, 20 if "own" in name else 4, 2 * best if theirs else 1))
                if theirs and best:  # its processes load ahead; nobody else's turn pays for it
                    time.sleep(2 * best * batch / seen[name][-1] + 0.2)
        theirs = statistics.median(seen["LeRobotDataset + DataLoader"])
        print("| | windows/s | ratio | from | to |\n|---|---|---|---|---|")
        for name, values in seen.items():
            mid = statistics.median(values)
            print(f"| {name} | {mid:.0f} | {mid / theirs:.1f} | {min(values):.0f} | {max(values):.0f} |")
        print(
            f"load {load:.1f} to {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        )


if __name__ == "__main__":
    main()
