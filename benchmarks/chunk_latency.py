"""Chunk latency: observation to actions at batch 1, ten DDIM steps, Deft against LeRobot's DiffusionPolicy.

    .venv-peers/bin/python benchmarks/chunk_latency.py [--down-dims 64,128,256 512,1024,2048] [--chunks 200]

The same network with the same weights, float32; two observations in environment units in, eight actions in
environment units out, normalisation included on both sides. LeRobot's side is its leanest path (its own
``generate_actions``; the queue of ``select_action`` costs more). The sides take turns, chunk by chunk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lerobot_pair import Ours, Theirs, machine, settings, share_weights, write_for_lerobot

BUDGET_S = 60.0  # for one network; large ones get fewer chunks
WARM_UP = 3


def measure(ours: Ours, theirs: Theirs, n_chunks: int) -> tuple[dict[str, np.ndarray], float]:
    """Milliseconds of every chunk, the first few left out; how far the chunks lie apart, environment units."""
    policies = (ours.policy.eval(), theirs.run.policy.eval())
    n_obs_steps, horizon, spec = policies[0].n_obs_steps, policies[0].horizon, policies[0].spec
    states = ours.store.array("state")[:100]
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {"ours": [], "lerobot": []}
    apart, end = 0.0, time.perf_counter() + BUDGET_S
    for i in range(n_chunks + WARM_UP):
        window = np.ascontiguousarray(states[i % 90 : i % 90 + n_obs_steps])
        noise = torch.randn(1, horizon, policies[0].action_dim, generator=generator)
        sides = [("ours", ours), ("lerobot", theirs)]
        chunks = []
        for name, side in sides if i % 2 else reversed(sides):
            start = time.perf_counter()
            chunks.append(side.chunk(window, noise))
            times[name].append(1e3 * (time.perf_counter() - start))
        first, second = (np.clip(c, spec.action_low, spec.action_high) for c in chunks)  # as ours are already
        apart = max(apart, float(np.abs(first - second).max()))
        if time.perf_counter() > end and i >= WARM_UP:
            break
    return {name: np.array(t[WARM_UP:]) for name, t in times.items()}, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down-dims", nargs="+", default=["64,128,256", "512,1024,2048"], metavar="A,B,C")
    parser.add_argument("--chunks", type=int, default=200, help="of each side and network, at most")
    parser.add_argument("--task", default="window-close-v3")
    parser.add_argument("--demos", type=int, default=20)
    parser.add_argument("--data-root", default="data_cache")
    args = parser.parse_args()
    print(machine())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        for dims in args.down_dims:
            down_dims = [int(d) for d in dims.split(",")]
            config = settings(args.task, args.demos, args.data_root, down_dims, batch_size=64)
            ours = Ours(config)
            if not root.exists():
                write_for_lerobot(ours.store, args.demos, root)
            theirs = Theirs(config, root)
            share_weights(ours, theirs)
            print(f"down_dims {down_dims}: ours {ours.n_parameters():,}, LeRobot {theirs.n_parameters():,} parameters")
            times, apart = measure(ours, theirs, args.chunks)
            (a50, a99), (b50, b99) = (np.percentile(times[side], (50, 99)) for side in ("ours", "lerobot"))
            print(
                f"  p50: ours {a50:.1f} ms, LeRobot {b50:.1f} ms, ratio {b50 / a50:.2f}; "
                f"p99: ours {a99:.1f} ms, LeRobot {b99:.1f} ms, ratio {b99 / a99:.2f} "
                f"({len(times['ours'])} chunks each, at most {apart:.1e} apart)",
                flush=True,
            )
            numbers = {"ours_p50": a50, "lerobot_p50": b50, "ours_p99": a99, "lerobot_p99": b99, "ratio": b50 / a50}
            rows.append({"down_dims": down_dims, **{k: round(float(v), 2) for k, v in numbers.items()}})
            del ours, theirs
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
