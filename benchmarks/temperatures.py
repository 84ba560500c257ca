"""Success of policies whose noise is scaled: what algo.temperatures chooses from.

    python benchmarks/temperatures.py RUN [RUN ...] [--temperatures 1 0.5 0] [--episodes 60]

A row for each checkpoint, the same episodes for every temperature.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from torch import Tensor

from data.errors import ConfigError
from eval import evaluate_policy
from policies.checkpoint import load_policy
from policies.chunk_policy import ChunkPolicy
from policies.policy import Obs

SEED = 30_000


def sample(policy: ChunkPolicy, temperature: float, obs: Obs, *, noise: Tensor | None = None) -> Tensor:
    """``ChunkPolicy.sample`` with scaled noise."""
    drawn = policy.draw_noise(len(next(iter(obs.values())))) if noise is None else noise
    return ChunkPolicy.sample(policy, obs, noise=temperature * drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.5, 0.0])
    parser.add_argument("--episodes", type=int, default=60)
    args = parser.parse_args()
    seeds = [SEED + i for i in range(args.episodes)]
    print(f"| task | {' | '.join(f'{t:g}' for t in args.temperatures)} |\n|---|{'---|' * len(args.temperatures)}")
    for run in args.runs:
        policy = load_policy(run)
        if not isinstance(policy, ChunkPolicy):
            raise ConfigError(f"{run} holds a {type(policy).__name__}, which has no noise to scale.")
        rates = []
        for temperature in args.temperatures:
            policy.sample = partial(sample, policy, temperature)
            results = evaluate_policy(policy, policy.spec.env_args, seeds)
            rates.append(f"{100 * sum(r.success for r in results) / len(results):.0f}")
        print(f"| {policy.spec.name} | {' | '.join(rates)} |", flush=True)


if __name__ == "__main__":
    main()
