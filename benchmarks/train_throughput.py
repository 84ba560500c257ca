"""Training throughput: Diffusion Policy's U-Net on state, Deft against LeRobot's DiffusionPolicy, loading included.

    .venv-peers/bin/python benchmarks/train_throughput.py [--down-dims 64 128 256] [--batch-size 64] [--steps 300]

Real demonstrations of a Meta-World task, written in both formats; the same network from the same weights, float32.
LeRobot gets the number of loader processes that is fastest here (measured first). Then the sides take turns, a block
of updates each, and the medians over the blocks are compared; a second comparison leaves loading out. Both losses are
printed along the way. Last comes one row with Diffusion Policy's published sizes, a few updates long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from lerobot_pair import Ours, Theirs, loaders_paused, machine, settings, share_weights, write_for_lerobot

ROUND_OF_WORKERS = 15  # updates to choose the number of loader processes by
PAPER_DIMS = [256, 512, 1024]


def block(side: Ours | Theirs, n: int, batch: object = None) -> tuple[float, list[float]]:
    """(samples per second, losses) of n updates."""
    start, samples, losses = time.perf_counter(), 0, []
    for _ in range(n):
        count, loss = side.step(batch)  # type: ignore[arg-type]
        samples += count
        losses.append(loss)
    return samples / (time.perf_counter() - start), losses


def fastest_workers(config: dict, root: Path, choices: list[int]) -> int:
    """LeRobot's best number of loader processes."""
    rates = {}
    for workers in choices:
        side = Theirs(config, root, workers)
        block(side, 3)
        rates[workers] = block(side, ROUND_OF_WORKERS)[0]
    best = max(rates, key=lambda w: rates[w])
    told = ", ".join(f"{w}: {rate:.0f}" for w, rate in rates.items())
    print(f"LeRobot, samples/s by loader processes: {told}; taking {best}", flush=True)
    return best


def pair(config: dict, root: Path, workers: int) -> tuple[Ours, Theirs]:
    ours, theirs = Ours(config), Theirs(config, root, workers)
    apart = share_weights(ours, theirs)
    print(
        f"parameters: ours {ours.n_parameters():,}, LeRobot's {theirs.n_parameters():,}; "
        f"same weights: outputs agree within {apart:.1e}"
    )
    return ours, theirs


def interleaved(
    ours: Ours, theirs: Theirs, n_blocks: int, n: int, *, loading: bool = True, budget_s: float = 60.0
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Blocks of n updates in turn, after one update each: samples per second of every block, loss of every update.

    Ends early, after at least two blocks, when ``budget_s`` is spent.
    """
    rates: dict[str, list[float]] = {"ours": [], "lerobot": []}
    losses: dict[str, list[float]] = {"ours": [], "lerobot": []}
    batches = (None, None) if loading else (ours.load(), theirs.load())
    losses["lerobot"] += block(theirs, 1, batches[1])[1]
    with loaders_paused():
        losses["ours"] += block(ours, 1, batches[0])[1]
    end = time.perf_counter() + budget_s
    for i in range(n_blocks):
        if i >= 2 and time.perf_counter() > end:
            break
        with loaders_paused():
            rate, loss = block(ours, n, batches[0])
        rates["ours"].append(rate)
        losses["ours"] += loss
        rate, loss = block(theirs, n, batches[1])
        rates["lerobot"].append(rate)
        losses["lerobot"] += loss
    return rates, losses


def report(label: str, rates: dict[str, list[float]]) -> dict[str, float | str]:
    ours, theirs = statistics.median(rates["ours"]), statistics.median(rates["lerobot"])
    print(
        f"{label}: ours {ours:.0f} samples/s, LeRobot {theirs:.0f} samples/s, ratio {ours / theirs:.2f} "
        f"(medians of {len(rates['ours'])} blocks each)",
        flush=True,
    )
    return {"row": label, "ours": round(ours, 1), "lerobot": round(theirs, 1), "ratio": round(ours / theirs, 2)}


def report_losses(losses: dict[str, list[float]], n_points: int = 6) -> None:
    """Means over equal spans of updates, and their difference in standard errors."""
    print("| updates | loss, ours | loss, LeRobot | difference | standard errors |\n|---|---|---|---|---|")
    span = len(losses["ours"]) // n_points
    for i in range(n_points):
        a, b = (np.array(losses[side][i * span : (i + 1) * span]) for side in ("ours", "lerobot"))
        # Within a span the loss falls; neighbours' differences leave the noise.
        error = np.sqrt(sum(np.square(np.diff(x)).mean() / 2 / len(x) for x in (a, b)))
        gap = a.mean() - b.mean()
        where = f"{i * span + 1}-{(i + 1) * span}"
        print(f"| {where} | {a.mean():.4f} | {b.mean():.4f} | {gap:+.4f} | {gap / error:+.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down-dims", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300, help="updates of each side")
    parser.add_argument("--budget", type=float, default=240, help="seconds for them; a busy machine does fewer updates")
    parser.add_argument("--block", type=int, default=10, help="updates before the other side's turn")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4], help="LeRobot's loader processes to try")
    parser.add_argument("--paper-steps", type=int, default=6, help=f"updates with down_dims {PAPER_DIMS}; 0: none")
    parser.add_argument("--task", default="window-close-v3")
    parser.add_argument("--demos", type=int, default=20)
    parser.add_argument("--data-root", default="data_cache")
    args = parser.parse_args()
    print(machine())

    def config(down_dims: list[int]) -> dict:
        return settings(args.task, args.demos, args.data_root, down_dims, args.batch_size)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        small = config(args.down_dims)
        root = write_for_lerobot(Ours(small).store, args.demos, Path(folder) / "data")
        workers = fastest_workers(small, root, args.workers)
        ours, theirs = pair(small, root, workers)
        rates, losses = interleaved(ours, theirs, max(1, args.steps // args.block), args.block, budget_s=args.budget)
        label = f"down_dims {args.down_dims}, batch {args.batch_size}"
        rows.append(report(f"{label}, with loading", rates))
        report_losses(losses)
        rates, _ = interleaved(ours, theirs, 6, max(1, args.block // 2), loading=False)
        rows.append(report(f"{label}, one batch over and over", rates))
        del ours, theirs
        if args.paper_steps:
            ours, theirs = pair(config(PAPER_DIMS), root, workers)
            rates, _ = interleaved(ours, theirs, max(1, args.paper_steps // 2), 2)
            rows.append(report(f"down_dims {PAPER_DIMS}, batch {args.batch_size}, with loading", rates))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
