"""Imitation methods side by side: point clouds, 10 demonstrations, the same seeds and the same budget of updates.

    python benchmarks/metaworld_table.py [--size small] [--methods mp1 deft] [--tasks hammer-v3 ...] [--seeds 0 1 2]

Resumes where it was stopped, and goes on from what benchmarks/results holds (records.py); --report prints what is there
and runs nothing; writes table.md, and success against latency as a plot, beside the runs; ms is the median time of one
chunk on one thread. Success is that of the final checkpoint over 100 episodes with its Wilson interval.
"top 5" is the mean of the five best of all evaluations during training (six of 10 episodes with --size small, fifteen
of 20 otherwise), the figure that DP3 and its successors publish: it is the more favourable, and printed for comparison
only. With --size small, dp takes 16 DDIM steps, as Diffusion Policy does on robots, instead of 100 of DDPM.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from chain import ROOT, check_root, ensure_run, interval, percent, side_by_side
from records import read

from configs.loader import load_config

TASKS = ["lever-pull-v3", "peg-unplug-side-v3", "hammer-v3", "push-wall-v3", "assembly-v3", "disassemble-v3"]
LEVELS = {
    "lever-pull-v3": "easy", "peg-unplug-side-v3": "easy", "hammer-v3": "medium", "push-wall-v3": "medium",
    "assembly-v3": "hard", "disassemble-v3": "very hard",
}  # fmt: skip
METHODS = ["dp", "dp3", "simple_dp3", "flowpolicy", "mp1", "omp", "deft"]
DISTILLED = {"consistency": "dp3"}  # these start from another one's policy
EVALUATIONS = {"small": (6, 10), "paper": (15, 20)}  # during training, and their episodes
CHEAPER = {("small", "dp"): ["policy.sampler=ddim", "policy.n_inference_steps=16"]}
HEADER = (
    "| task | level | method | seed | success, % | 95 % interval | top 5 | ms a chunk | minutes |\n" + "|---" * 9 + "|"
)


def job(
    root: Path, size: str, task: str, seed: int, method: str, overrides: list[str], *, checkpoint: bool = False
) -> None:
    """One run, and the one it starts from."""
    options = [f"experiment={method}_metaworld", f"seed={seed}", *overrides]
    folder = root / f"{task}-{method}-s{seed}"
    if method in DISTILLED:
        if read(folder) is None:
            job(root, size, task, seed, DISTILLED[method], overrides, checkpoint=True)
        options.append(f"base={root / f'{task}-{DISTILLED[method]}-s{seed}'}")
    else:
        options += [f"task.name={task}", f"size={size}"]
    n, episodes = EVALUATIONS[size]
    updates = load_config("train", options)["algo"]["train_steps"]
    evaluation = [f"eval.every={updates // n}", f"eval.every_n_episodes={episodes}", "eval.n_episodes=100"]
    few = ["eval.n_videos=0", "eval.n_envs=1", *CHEAPER.get((size, method), [])]
    ensure_run(folder, [*options, *evaluation, *few], checkpoint=checkpoint)


def top5(result: dict[str, Any]) -> float | None:
    """Mean of the five best evaluations during training."""
    rates = sorted(rate for _, rate in result["evaluations"])
    return mean(rates[-5:]) if len(rates) >= 5 else None


def row(root: Path, task: str, seed: int, method: str) -> str:
    result = read(root / f"{task}-{method}-s{seed}")
    cells = [task, LEVELS.get(task, "?"), method, str(seed)]
    if result is None:
        return "| " + " | ".join([*cells, *["-"] * 5]) + " |"
    cells += [percent(result["success_rate"]), interval(result["success_ci95"]), percent(top5(result))]
    return "| " + " | ".join([*cells, f"{result['chunk_latency_ms_p50']:.1f}", f"{result['train_minutes']:.1f}"]) + " |"


def averages(root: Path, tasks: list[str], seeds: list[int], methods: list[str]) -> dict[str, dict[str, float]]:
    """Means of every method that has ended on all tasks and seeds."""
    out: dict[str, dict[str, float]] = {}
    for method in methods:
        found = [r for t in tasks for s in seeds if (r := read(root / f"{t}-{method}-s{s}"))]
        if len(found) == len(tasks) * len(seeds):
            best = [top5(r) for r in found]
            out[method] = {
                "success": mean(r["success_rate"] for r in found),
                "ms": mean(r["chunk_latency_ms_p50"] for r in found),
                "top5": mean(b if b is not None else float("nan") for b in best),
            }
    return out


def matrix(root: Path, tasks: list[str], seeds: list[int], methods: list[str]) -> list[str]:
    """Lines of methods against tasks, success in %, and what ``averages`` says."""
    found = averages(root, tasks, seeds, methods)
    lines = ["| method | " + " | ".join([*(t.removesuffix("-v3") for t in tasks), "mean", "top 5", "ms"]) + " |"]
    lines.append("|---" * (len(tasks) + 4) + "|")
    for method in methods:
        cells = []
        for task in tasks:
            results = [read(root / f"{task}-{method}-s{s}") for s in seeds]
            rates = [r["success_rate"] for r in results if r is not None]
            cells.append(percent(mean(rates)) if len(rates) == len(seeds) else "-")
        if (n := found.get(method)) is not None:
            cells += [percent(n["success"]), percent(n["top5"]), f"{n['ms']:.1f}"]
        else:
            cells += ["-"] * 3
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return lines


def plot(root: Path, found: dict[str, dict[str, float]]) -> None:
    """Average success against latency."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for method, numbers in found.items():
        axes.scatter(numbers["ms"], numbers["success"], s=40)
        axes.annotate(method, (numbers["ms"], numbers["success"]), xytext=(5, 3), textcoords="offset points")
    axes.set(xscale="log", xlabel="ms a chunk, one thread", ylabel="success, mean over tasks", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.savefig(root / "success_latency.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=[*METHODS, *DISTILLED])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--size", default="small", choices=["small", "paper"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--root", type=Path, default=None, help="of the runs; runs/table-SIZE")
    parser.add_argument("--report", action="store_true", help="print what is there and run nothing")
    parser.add_argument("overrides", nargs="*", help="after --: options of train.py")
    args = parser.parse_args()
    check_root(parser, args)
    root = (args.root or ROOT / "runs" / f"table-{args.size}").resolve()
    root.mkdir(parents=True, exist_ok=True)
    cases = [(t, s, m) for s in args.seeds for t in args.tasks for m in args.methods]

    def report() -> None:
        lines = [HEADER, *(row(root, *case) for case in cases), ""]
        lines += matrix(root, args.tasks, args.seeds, args.methods)
        (root / "table.md").write_text("\n".join(lines) + "\n")
        plot(root, averages(root, args.tasks, args.seeds, args.methods))
        print("\n" + "\n".join(lines), flush=True)

    if args.report:
        report()
        return
    jobs = [partial(job, root, args.size, *case, args.overrides) for case in cases]
    side_by_side(jobs, args.jobs, report)


if __name__ == "__main__":
    main()
