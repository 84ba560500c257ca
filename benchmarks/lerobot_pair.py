"""Deft and LeRobot's DiffusionPolicy side by side: the same demonstrations, the same network, the same settings.

Both start from the same weights (``share_weights``), and both networks are checked to be the same function before
anything is timed. Deft's side is put together as train.py does. Needs benchmarks/peers/install_lerobot.sh.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "peers")]

# ruff: noqa: E402
from launch.memory import keep_large_tensors

keep_large_tensors()  # as train.py does; LeRobot's side has the same process and gains as much

import datasets
import lerobot_diffusion as lerobot
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from algos.bc import BC
from configs.loader import load_config
from data.chunks import ChunkDataset, ChunkSampler
from data.episodes import EpisodeStore
from launch.demos import demonstrations
from policies.networks.unet1d import UNet1d
from policies.precision import large_products
from train import make_policy

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")
datasets.disable_progress_bars()

# LeRobot's DiffusionPolicy, in Deft's words. Its EMA-free training is compared with ours, EMA on.
SAME = [
    "obs=state",
    "encoder.state.hidden=[]",
    "network=unet1d",
    "policy=diffusion",
    "policy.prediction=epsilon",
    "policy.spacing=leading",
    "policy.noise_per_obs=1",
    "policy.n_inference_steps=10",
    "algo.lr=1e-4",
    "algo.lr_warmup_steps=500",
    "algo.grad_clip=10.0",
]
SCHEDULE = 100_000  # updates; only its warm-up is run


def settings(task: str, n_demos: int, data_root: str, down_dims: list[int], batch_size: int) -> dict:
    """Deft's configuration."""
    return load_config(
        "train",
        [
            *SAME,
            f"task.name={task}",
            f"data.n_demos={n_demos}",
            f"data.root={data_root}",
            f"network.down_dims={down_dims}",
            f"algo.batch_size={batch_size}",
            f"algo.train_steps={SCHEDULE}",
        ],
    )


class Ours:
    """Deft, as train.py runs it."""

    def __init__(self, config: dict):
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        self.store, task = demonstrations(config, accelerator)
        n = config["data"]["n_demos"]
        self.policy = make_policy(config, self.store, task, n)
        self.dataset = ChunkDataset(
            self.store,
            obs_keys=list(task.obs),
            n_obs_steps=config["n_obs_steps"],
            horizon=config["horizon"],
            episodes=np.arange(n),
        )
        self.batch_size = config["algo"]["batch_size"]
        self.sampler = ChunkSampler(len(self.dataset), self.batch_size, seed=0)
        options = {k: v for k, v in config["algo"].items() if k not in ("name", "batch_size", "save_every")}
        self.algo = BC(self.policy, accelerator, **options)

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.policy.parameters())

    def load(self) -> object:
        return self.dataset.batch(next(self.sampler))

    def step(self, batch: object = None) -> tuple[int, float]:
        """(samples, loss) of one update; without ``batch``, loading is part of it."""
        with large_products():  # as train.py does
            metrics = self.algo.update(self.load() if batch is None else batch)  # type: ignore[arg-type]
        return self.batch_size, float(metrics["loss"])

    def chunk(self, states: np.ndarray, noise: Tensor) -> np.ndarray:
        """(To, Ds) states -> (Ta, Da) actions, both in environment units."""
        return self.policy.act({"state": torch.from_numpy(states)[None]}, noise=noise)[0].numpy()


class Theirs:
    """LeRobot, as its train script runs it, on the episodes of ``store`` with Deft's settings."""

    def __init__(self, config: dict, root: Path, num_workers: int = 0):
        torch.manual_seed(0)
        peer = lerobot.make_config(
            config["network"]["down_dims"],
            n_obs_steps=config["n_obs_steps"],
            horizon=config["horizon"],
            n_action_steps=config["n_action_steps"],
            num_inference_steps=config["policy"]["n_inference_steps"],
        )
        peer.drop_n_last_frames = 0  # every window, as ours
        self.batch_size = config["algo"]["batch_size"]
        self.run = lerobot.make_training(root, peer, self.batch_size, num_workers, steps=SCHEDULE)

    def n_parameters(self) -> int:
        return lerobot.count_parameters(self.run)

    def load(self) -> dict:
        return lerobot.next_batch(self.run)

    def step(self, batch: dict | None = None) -> tuple[int, float]:
        """(samples, loss) of one update; an epoch's last batch is smaller."""
        batch = self.load() if batch is None else batch
        return len(batch["action"]), lerobot.train_step(self.run, batch)

    def chunk(self, states: np.ndarray, noise: Tensor) -> np.ndarray:
        return lerobot.predict_chunk(self.run, states, noise)


def write_for_lerobot(store: EpisodeStore, n_demos: int, root: Path) -> Path:
    """The same episodes in LeRobot's format.

    Numbers that never change, many in Meta-World's state, are 0 after our normalisation and -1 after LeRobot's, which
    would be another input and another loss. A range around them in LeRobot's statistics makes them 0 there too.
    """
    episodes = [store.episode(i, ["state", "action"]) for i in range(n_demos)]
    lerobot.make_dataset(root, episodes, fps=round(store.task.control_hz) or 10)  # type: ignore[union-attr]
    file = root / "meta" / "stats.json"
    stats = json.loads(file.read_text())
    for key in (lerobot.STATE, lerobot.ENV_STATE, lerobot.ACTION):
        low, high = np.array(stats[key]["min"]), np.array(stats[key]["max"])
        width = 1.0 * (high - low < 1e-4)
        stats[key]["min"], stats[key]["max"] = (low - width).tolist(), (high + width).tolist()
    file.write_text(json.dumps(stats))
    return root


@torch.no_grad()
def share_weights(ours: Ours, theirs: Theirs) -> float:
    """Gives LeRobot's network our initial weights; returns how far their outputs then lie apart on random input."""
    a, b = ours.policy.head.network, theirs.run.policy.diffusion.unet
    assert isinstance(a, UNet1d)
    if abs(ours.n_parameters() - theirs.n_parameters()) > 0.01 * theirs.n_parameters():
        raise RuntimeError(f"Not the same network: {ours.n_parameters()} and {theirs.n_parameters()} parameters.")
    _copy(a.time.mlp[0], b.diffusion_step_encoder[1])
    _copy(a.time.mlp[2], b.diffusion_step_encoder[3])
    pairs = [(r, s) for x, y in zip(a.down, b.down_modules, strict=True) for r, s in zip(x[:2], y[:2], strict=True)]
    pairs += list(zip(a.mid, b.mid_modules, strict=True))
    pairs += [(r, s) for x, y in zip(a.up, b.up_modules, strict=True) for r, s in zip(x[:2], y[:2], strict=True)]
    film = torch.cat([a.film_time.weight, a.film_cond.weight], dim=1)
    sizes = [r.c_out for r, _ in pairs]
    weights = [part.split(sizes) for part in film.chunk(2)]  # scales of all blocks, then biases of all blocks
    biases = [part.split(sizes) for part in a.film_time.bias.chunk(2)]
    for i, (r, s) in enumerate(pairs):
        for block, other in ((r.block1, s.conv1.block), (r.block2, s.conv2.block)):
            _copy(block.conv, other[0])
            _copy(block.norm, other[1])
        s.cond_encoder[1].weight.copy_(torch.cat([weights[0][i], weights[1][i]]))
        s.cond_encoder[1].bias.copy_(torch.cat([biases[0][i], biases[1][i]]))
        if isinstance(r.skip, nn.Linear):
            _copy(r.skip, s.residual_conv)
    for x, y in zip([*a.down, *a.up], [*b.down_modules, *b.up_modules], strict=True):
        if not isinstance(x[2], nn.Identity):
            _copy(x[2], y[2])
    _copy(a.final[0].conv, b.final_conv[0].block[0])
    _copy(a.final[0].norm, b.final_conv[0].block[1])
    _copy(a.final[1], b.final_conv[1])
    x, k = torch.randn(3, ours.policy.horizon, ours.policy.action_dim), torch.tensor([0, 37, 99])
    cond = torch.randn(3, 1, a.film_cond.in_features)
    apart = (a(x, k / 100, a.prepare(cond)) - b(x, k, cond.flatten(1))).abs().max().item()
    if apart > 1e-4:
        raise RuntimeError(f"Not the same network: outputs differ by {apart}.")
    return apart


def _copy(ours: nn.Module, theirs: nn.Module) -> None:
    weight: Tensor = ours.weight  # type: ignore[assignment]
    if weight.ndim == 3:  # ours (K, C_in, C_out)
        weight = weight.permute(1, 2, 0) if isinstance(theirs, nn.ConvTranspose1d) else weight.permute(2, 1, 0)
    theirs.weight.copy_(weight.reshape(theirs.weight.shape))  # type: ignore[union-attr,operator]
    theirs.bias.copy_(ours.bias)  # type: ignore[union-attr,operator]


@contextlib.contextmanager
def loaders_paused() -> Iterator[None]:
    """Stops LeRobot's loader processes meanwhile: they must neither slow us down nor load ahead in our time."""
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)  # type: ignore[arg-type]


def machine() -> str:
    """Processor, cores, versions and how busy the machine is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vector = next((name for name in ("avx512f", "avx2") if name in flags), "no AVX2")
    return (
        f"{model}, {os.cpu_count()} cores, {vector}; torch {torch.__version__} on {torch.get_num_threads()} threads, "
        f"LeRobot {lerobot.version()}; load {os.getloadavg()[0]:.1f}"
    )
