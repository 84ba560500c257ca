"""Every head with the same budget: success against network evaluations, and against the time of a chunk.

    python benchmarks/heads.py [--heads flow meanflow ...] [--episodes 200] [--jobs 2] [-- overrides of the training]

By default on the toy whose demonstrations pass the obstacle on either side, so that a head that gives the mean of what
was demonstrated runs into it. Every head is trained once, ``consistency`` and ``ctm`` from the trained flow
(algo=distill), and evaluated with several numbers of evaluations on the same seeds, on which no choice was made.
Resumes where it was stopped; writes table.md and heads.png into --root.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chain import ROOT, check_root, ensure_evaluation, ensure_run, errorbars, interval, percent, side_by_side
from records import read

TOY = ["task=toy", "task.either_side=true", "task.speed=0.03", "task.episode_length=140", "obs=state"]
BUDGET = ["network.hidden_dim=256", "data.n_demos=100", "algo.train_steps=2500", "eval.n_videos=0", "eval.n_envs=1"]
EVALUATIONS = {
    "flow": (1, 2, 4, 10),
    "diffusion": (1, 2, 4, 10),
    "edm": (1, 3, 10),
    "meanflow": (1, 2, 4),
    "flowpolicy": (1, 2, 4),
    "shortcut": (1, 2, 4, 8),
    "consistency": (1, 3),
    "ctm": (1, 3),
}
DISTILLED = ("consistency", "ctm")
TEACHER = "flow"
COLOURS = ["#00798c", "#d1495b", "#7768ae", "#edae49", "#66a182", "#30638e", "#444444", "#c17817"]
HEADER = """| head | network evaluations | success, % | 95 % interval | ms a chunk | minutes of training |
|---|---|---|---|---|---|"""


def cell(root: Path, head: str, n: int) -> Path:
    """Folder of one evaluation."""
    return root / f"{head}-eval{n}"


def job(root: Path, head: str, episodes: int, overrides: Sequence[str]) -> None:
    """Trains a head and evaluates it."""
    if all(read(cell(root, head, n)) for n in EVALUATIONS[head]):
        return
    task = [] if any(o.startswith("task=") for o in overrides) else TOY
    if head in DISTILLED:
        base = root / TEACHER
        ensure_run(base, [*task, *BUDGET, f"policy={TEACHER}", *overrides], checkpoint=True)
        few = [o for o in BUDGET if o.startswith("eval.")]
        ensure_run(root / head, ["algo=distill", f"base={base}", f"policy={head}", *few], checkpoint=True)
    else:
        ensure_run(root / head, [*task, *BUDGET, f"policy={head}", *overrides], checkpoint=True)
    for n in EVALUATIONS[head]:
        argv = [f"checkpoint={root / head}", f"n_episodes={episodes}", "seed=20000", "n_envs=1", "n_videos=0"]
        ensure_evaluation(cell(root, head, n), [*argv, f"policy.n_inference_steps={n}"])


def row(root: Path, head: str, n: int) -> str:
    result, trained = read(cell(root, head, n)), read(root / head)
    if result is None or trained is None:
        return f"| {head} | {n} | - | - | - | - |"
    values = [percent(result["success_rate"]), interval(result["success_ci95"])]
    times = [f"{result['chunk_latency_ms_p50']:.1f}", f"{trained['train_minutes']:.1f}"]
    return "| " + " | ".join([head, str(n), *values, *times]) + " |"


def plot(root: Path, heads: Sequence[str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    by_number, by_time = figure.subplots(1, 2, sharey=True)
    lowest = 1.0
    for head, colour in zip(EVALUATIONS, COLOURS, strict=True):
        found = [(n, r) for n in EVALUATIONS[head] if head in heads and (r := read(cell(root, head, n)))]
        lowest = min([lowest, *(r["success_ci95"][0] for _, r in found)])
        if found:
            errorbars(by_number, found, colour, head)
            errorbars(by_time, [(r["chunk_latency_ms_p50"], r) for _, r in found], colour, head)
    by_number.set(xlabel="network evaluations a chunk", ylabel="success (95 % interval)", xscale="log")
    by_number.set_ylim(max(0.0, lowest - 0.1), 1.01)
    by_number.set_xticks([1, 2, 3, 4, 8, 10], ["1", "2", "3", "4", "8", "10"])
    by_number.minorticks_off()
    by_time.set(xlabel="ms a chunk, one thread", xscale="log")
    by_time.xaxis.set_major_formatter("{x:g}")
    by_time.xaxis.set_minor_formatter("{x:.1g}")
    for axes in (by_number, by_time):
        axes.grid(alpha=0.3)
    by_time.legend(fontsize="small", loc="lower right")
    figure.savefig(root / "heads.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=list(EVALUATIONS), choices=list(EVALUATIONS))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "heads")
    parser.add_argument("--report", action="store_true", help="print what is there and run nothing")
    parser.add_argument(
        "overrides", nargs="*", help="after --: options of train.py, e.g. task=metaworld task.name=... obs=state"
    )
    args = parser.parse_args()
    check_root(parser, args)
    root = args.root.resolve()
    root.mkdir(parents=True, exist_ok=True)

    def report() -> None:
        table = "\n".join([HEADER, *(row(root, head, n) for head in args.heads for n in EVALUATIONS[head])])
        (root / "table.md").write_text(table + "\n")
        plot(root, args.heads)
        print("\n" + table, flush=True)

    if args.report:
        report()
        return
    # Students wait for their teacher; two of them must not train it at once.
    alone = [[head] for head in args.heads if head not in DISTILLED and head != TEACHER]
    together = [head for head in (TEACHER, *DISTILLED) if head in args.heads]

    def chain(heads: Sequence[str]) -> None:
        for head in heads:
            job(root, head, args.episodes, args.overrides)

    side_by_side([partial(chain, heads) for heads in [together, *alone]], args.jobs, report)


if __name__ == "__main__":
    main()
