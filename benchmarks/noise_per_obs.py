"""Several noise draws per encoded observation against one: training time to the same validation loss, point clouds.

    python benchmarks/noise_per_obs.py [--draws 8] [--seconds 240] [key=value ...]

Three trainings of the same policy from the same weights take turns: ``draws`` draws for each of B observations; one
draw for each of B observations; one draw for each of B * draws observations (the same rows for the denoising network,
but all of them encoded). Demonstrations that none of them saw give the validation loss, always with the same noise.
What counts is the time spent in updates until the loss has come down to the lowest that both of a pair reach.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from chain import ROOT

from algos.bc import BC
from configs.loader import load_config
from data.chunks import ChunkBatch, ChunkDataset, ChunkSampler
from data.normaliser import Normaliser
from launch.demos import demonstrations
from policies.build import build_policy, normaliser_modes
from policies.precision import large_products
from policies.rng import BatchRng

TURN_S = 4.0
N_VALIDATION = 5


@dataclass
class Side:
    """One training and its curve of (seconds of updates, validation loss)."""

    algo: BC
    sampler: ChunkSampler
    seconds: float = 0.0
    updates: int = 0
    curve: list[tuple[float, float]] = field(default_factory=list)

    def train(self, dataset: ChunkDataset, seconds: float) -> None:
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            with large_products():
                self.algo.update(dataset.batch(next(self.sampler)))
            self.updates += 1
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def validate(self, batch: ChunkBatch) -> None:
        loss, _ = self.algo.policy.loss(batch, BatchRng(0))
        self.curve.append((self.seconds, float(loss)))

    @property
    def best(self) -> float:
        return min(loss for _, loss in self.curve)

    def time_to(self, target: float) -> float:
        return next((seconds for seconds, loss in self.curve if loss <= target), float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64, help="observations")
    parser.add_argument("--seconds", type=float, default=240, help="of updates, for each side")
    parser.add_argument("overrides", nargs="*", help="of train.py: task.name=..., policy=..., network=...")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config("train", ["obs=pointcloud", f"data.n_demos={10 + N_VALIDATION}", *args.overrides])
    config["data"]["root"] = str(ROOT / config["data"]["root"])
    accelerator = Accelerator(cpu=True)
    store, task = demonstrations(config, accelerator)
    episodes = np.arange(10 + N_VALIDATION)

    def dataset(chosen: np.ndarray) -> ChunkDataset:
        return ChunkDataset(
            store,
            obs_keys=list(task.obs),
            n_obs_steps=config["n_obs_steps"],
            horizon=config["horizon"],
            episodes=chosen,
        )

    seen, unseen = dataset(episodes[:10]), dataset(episodes[10:])
    validation = unseen.batch(torch.arange(len(unseen)))
    normaliser = Normaliser.fit(store, normaliser_modes(task), episodes=episodes[:10])

    def side(draws: int, batch_size: int) -> Side:
        torch.manual_seed(0)
        policy = build_policy({**config, "policy": {**config["policy"], "noise_per_obs": draws}}, task, normaliser)
        algo = BC(policy, accelerator, train_steps=10**9, lr=config["algo"]["lr"], lr_warmup_steps=100, seed=0)
        algo.policy.head.noise_per_obs = 8  # pyright: ignore[reportAttributeAccessIssue]  # the validation's, for all
        return Side(algo, ChunkSampler(len(seen), batch_size, 0))

    m, b = args.draws, args.batch_size
    sides = {f"{m} draws, {b} obs": side(m, b), f"1 draw, {b} obs": side(1, b), f"1 draw, {m * b} obs": side(1, m * b)}
    while min(s.seconds for s in sides.values()) < args.seconds:
        for s in sides.values():
            s.train(seen, TURN_S)
            s.validate(validation)
    ours = next(iter(sides.values()))
    print(f"{task.name}, until both reach the better loss of the worse of the two:")
    for name, s in sides.items():
        target = max(ours.best, s.best)
        print(
            f"  {name:18s} loss {target:.4f} after {s.time_to(target):6.1f} s of updates, "
            f"{s.time_to(target) / ours.time_to(target):5.2f} x ours; {1e3 * s.seconds / s.updates:.0f} ms an update"
        )
    print(json.dumps({name: s.curve for name, s in sides.items()}))


if __name__ == "__main__":
    main()
