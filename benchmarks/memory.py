"""Memory: training on 50 GB of images within 4 GB of resident memory.

    python benchmarks/memory.py [--gigabytes 50] [--stored-gigabytes 0.4] [--batches 300]

Makes a store whose images are ``--gigabytes`` decoded, of which a part is really there (noise, spread over the whole
store) and the rest is zarr's fill value, so that the disk of a laptop is enough. Opens it as a training run does, with
the default memory budget, and takes gradient steps of a small convolutional network on random windows (To=2, H=16,
batch 64). Prints one JSON object: peak resident memory of the process, with torch and everything, against what loading
the images would take, and samples per second with and without the network.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numcodecs
import numpy as np
import torch
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.chunks import ChunkDataset, ChunkSampler
from data.episodes import EpisodeStore

HEIGHT, WIDTH, EPISODE, CHUNK = 240, 320, 500, 4
ROW = HEIGHT * WIDTH * 3
N_OBS_STEPS, HORIZON, BATCH = 2, 16, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=50.0, help="images, decoded (1e9 bytes)")
    parser.add_argument("--stored-gigabytes", type=float, default=0.4, help="of these really stored")
    parser.add_argument("--batches", type=int, default=300, help="to draw; a quarter as many are trained on")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="deft_memory_", dir=args.folder))
    try:
        print(json.dumps(measure(folder, args.gigabytes, args.stored_gigabytes, args.batches)))
    finally:
        shutil.rmtree(folder)


def make_store(path: Path, gigabytes: float, stored_gigabytes: float) -> None:
    """A Diffusion Policy store, most of whose image chunks are absent."""
    n_episodes = round(gigabytes * 1e9 / ROW / EPISODE)
    n = n_episodes * EPISODE
    rng = np.random.default_rng(0)
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    blosc = numcodecs.Blosc(cname="lz4", clevel=1, shuffle=0)
    shape, chunks = (n, HEIGHT, WIDTH, 3), (CHUNK, HEIGHT, WIDTH, 3)
    image = group.create_array("data/image", shape=shape, chunks=chunks, dtype="u1", compressors=blosc)
    for i in np.sort(rng.choice(n // CHUNK, int(stored_gigabytes * 1e9 / ROW / CHUNK), replace=False)):
        image[i * CHUNK : (i + 1) * CHUNK] = rng.integers(0, 256, (CHUNK, HEIGHT, WIDTH, 3), dtype=np.uint8)
    low = {"state": (9, 0.0), "action": (7, 0.1)}
    for key, (width, mean) in low.items():
        values = rng.normal(mean, 1, (n, width)).astype(np.float32)
        group.create_array(f"data/{key}", shape=values.shape, chunks=(8192, width), dtype="f4")[:] = values
    ends = np.arange(1, n_episodes + 1) * EPISODE
    group.create_array("meta/episode_ends", shape=ends.shape, chunks=ends.shape, dtype="i8")[:] = ends


def small_network() -> torch.nn.Module:
    """Images (N, 3, H, W) in [0, 1] to a chunk (N, H * 7): enough for gradients through every pixel."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 8, stride=8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 16, HORIZON * 7),
    )


def train(dataset: ChunkDataset, sampler: ChunkSampler, n_batches: int) -> float:
    """Gradient steps on random windows; samples per second."""
    network = small_network()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    start = time.perf_counter()
    for _ in range(n_batches):
        batch = dataset.batch(next(sampler))
        newest = batch.obs["image"][:, -1].permute(0, 3, 1, 2).float() / 255
        loss = (network(newest).view_as(batch.action) - batch.action).square()[~batch.is_pad].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return n_batches * BATCH / (time.perf_counter() - start)


def draw(dataset: ChunkDataset, sampler: ChunkSampler, n_batches: int) -> float:
    """Random windows alone; samples per second."""
    start = time.perf_counter()
    for _ in range(n_batches):
        dataset.batch(next(sampler))
    return n_batches * BATCH / (time.perf_counter() - start)


def measure(folder: Path, gigabytes: float, stored_gigabytes: float, n_batches: int) -> dict[str, float | str]:
    start = time.perf_counter()
    make_store(folder / "store.zarr", gigabytes, stored_gigabytes)
    made = time.perf_counter()
    store = EpisodeStore.open(folder / "store.zarr")
    dataset = ChunkDataset(store, obs_keys=["image", "state"], n_obs_steps=N_OBS_STEPS, horizon=HORIZON)
    loaded = time.perf_counter()
    sampler = ChunkSampler(len(dataset), BATCH, seed=0)
    drawn = draw(dataset, sampler, n_batches)
    trained = train(dataset, sampler, max(1, n_batches // 4))
    disk = sum(f.stat().st_blocks * 512 for f in folder.rglob("*") if f.is_file())
    images = store.n_steps * ROW
    return {
        "images_gb": round(images / 1e9, 2),
        "stored_gb": stored_gigabytes,
        "frames": store.n_steps,
        "batches": n_batches,
        "peak_resident_gb": round(status_kb("VmHWM") * 1024 / 1e9, 3),
        "naive_load_gb": round(images / 1e9, 2),
        "naive_windows_gb": round(images * N_OBS_STEPS / 1e9, 2),
        "disk_used_gb": round(disk / 1e9, 2),
        "make_store_s": round(made - start, 1),
        "open_and_cache_s": round(loaded - made, 1),
        "samples_per_s_drawing": round(drawn),
        "samples_per_s_training": round(trained),
    }


def status_kb(name: str) -> int:
    """A line of /proc/self/status in kB; VmHWM is the most that was ever resident, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    main()
