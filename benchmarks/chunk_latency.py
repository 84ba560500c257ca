"""Chunk latency: observation to actions at batch 1, ten DDIM steps, Deft against LeRobot's DiffusionPolicy.

    .venv-peers/bin/python benchmarks/chunk_latency.py [--down-dims 64,128,256 512,1024,2048] [--chunks 150]

The same network with the same weights, float32; two observations in environment units in, eight actions in
environment units out, normalisation included on both sides. LeRobot's side is its leanest path (its own
``generate_actions``; the queue of ``select_action`` costs more). At batch 1 more threads are not always faster, so
each side is measured with every number of threads and its best is compared. All take turns, a few chunks each.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lerobot_pair import Ours, Theirs, machine, settings, share_weights, write_for_lerobot

TURN = 3  # chunks
Times = dict[tuple[str, int], np.ndarray]  # (side, threads): milliseconds of every chunk


def measure(ours: Ours, theirs: Theirs, threads: list[int], n_chunks: int, budget_s: float) -> Times:
    """The first round of turns is left out. Raises where the sides' chunks are not the same."""
    policy, spec = ours.policy.eval(), ours.policy.spec
    theirs.run.policy.eval()
    states = ours.store.array("state")[:100]
    generator = torch.Generator().manual_seed(0)
    cases = [(name, n) for n in threads for name in ("ours", "lerobot")]
    times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    end = time.perf_counter() + budget_s
    for turn in range(1 + -(-n_chunks // TURN)):
        if turn >= 3 and time.perf_counter() > end:
            break
        at = 7 * turn % 90
        window = np.ascontiguousarray(states[at : at + policy.n_obs_steps])
        noise = torch.randn(1, policy.horizon, policy.action_dim, generator=generator)
        chunks = {}
        for case in cases if turn % 2 else reversed(cases):
            side = ours if case[0] == "ours" else theirs
            torch.set_num_threads(case[1])
            for _ in range(TURN):
                start = time.perf_counter()
                chunk = side.chunk(window, noise)
                times[case].append(1e3 * (time.perf_counter() - start))
            chunks[case] = np.clip(chunk, spec.action_low, spec.action_high)  # as ours are already
        for chunk in chunks.values():
            np.testing.assert_allclose(chunk, chunks[cases[0]], atol=1e-3)
    return {case: np.array(t[TURN:]) for case, t in times.items()}


def report(down_dims: list[int], times: Times) -> list[dict]:
    """Prints the table's rows; the ratio compares each side's best number of threads."""
    n = len(next(iter(times.values())))
    tail = "p99" if n >= 100 else "p99 (of few)"
    for (name, threads), t in times.items():
        p50, p99 = np.percentile(t, (50, 99))
        print(f"  {name:8s} {threads} threads: p50 {p50:.1f} ms, {tail} {p99:.1f} ms ({n} chunks)")
    rows = []
    for q in (50, 99):
        best = {
            side: min(np.percentile(t, q) for (s, _), t in times.items() if s == side) for side in ("ours", "lerobot")
        }
        ratio = best["lerobot"] / best["ours"]
        print(
            f"  p{q}, each at its best: ours {best['ours']:.1f} ms, LeRobot {best['lerobot']:.1f} ms, ratio {ratio:.2f}"
        )
        rows.append({"down_dims": down_dims, "percentile": q, **{k: round(float(v), 2) for k, v in best.items()}})
        rows[-1]["ratio"] = round(float(ratio), 2)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down-dims", nargs="+", default=["64,128,256", "512,1024,2048"], metavar="A,B,C")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--chunks", type=int, default=150, help="of each side, number of threads and network, at most")
    parser.add_argument("--budget", type=float, default=90, help="seconds for one network; large ones get fewer chunks")
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
            rows += report(down_dims, measure(ours, theirs, args.threads, args.chunks, args.budget))
            del ours, theirs
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
