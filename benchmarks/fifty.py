"""All fifty Meta-World tasks: 10 demonstrations, behaviour cloning from state, then experiment=residual_long.

    python benchmarks/fifty.py [--jobs 2] [--tasks ...] [-- overrides of the fine-tuning]

All bases come first. Resumes where it was stopped, and goes on from what benchmarks/results holds (records.py); after
every run it writes runs/fifty/table.md and fifty.png from what is there. A base whose interval lies above 95 % already
is left as it is. Training ends before its 250k steps when the last three evaluations, of the same 100 episodes,
had a mean success of 99 %; the final evaluation is of others.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from chain import ROOT, check_root, ensure_run, interval, percent, side_by_side
from records import read

from envs.metaworld import task_names

BASE = ["obs=state", "data.n_demos=10", "policy.n_inference_steps=4", "eval.n_episodes=200", "eval.n_videos=0"]
TUNED = ["experiment=residual_long", "eval.n_videos=0", "eval.n_envs=1"]
GOAL = 0.95
HEADER = """| task | base, % | 95 % interval | final, % | 95 % interval | dip | steps | minutes |
|---|---|---|---|---|---|---|---|"""


def clone(root: Path, task: str) -> None:
    """The base; its checkpoint too, where it is to be improved."""
    base = read(root / task)
    improved = base is not None and final(root, task) is not None
    ensure_run(root / task, [f"task.name={task}", "eval.n_envs=1", *BASE], checkpoint=not improved)


def improve(root: Path, task: str, overrides: list[str]) -> None:
    """Fine-tuning, where the base is not good enough already."""
    base = read(root / task)
    if base is not None and not enough(base):
        ensure_run(root / f"{task}-residual", [*TUNED, f"base={root / task}", *overrides])


def enough(result: dict[str, Any]) -> bool:
    """Whether there is nothing to improve."""
    return result["success_ci95"][0] >= GOAL


def final(root: Path, task: str) -> dict[str, Any] | None:
    """Of the policy handed out: the base, where it is good enough."""
    base = read(root / task)
    return base if base is not None and enough(base) else read(root / f"{task}-residual")


def row(root: Path, task: str) -> str:
    base, tuned = read(root / task), final(root, task)
    cells = [task]
    for result in (base, tuned):
        cells += ["-", "-"] if result is None else [percent(result["success_rate"]), interval(result["success_ci95"])]
    if tuned is None or "train_seconds" not in tuned:
        cells += ["-", "-", "-"]
    else:
        cells += [f"{100 * tuned['dip']:.0f}", str(tuned.get("step", "-")), f"{tuned['train_seconds'] / 60:.1f}"]
    return "| " + " | ".join(cells) + " |"


def plot(root: Path, tasks: list[str]) -> None:
    """Base and final success of every task that has ended, with their intervals, best bases first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [(t, base, last) for t in tasks if (base := read(root / t)) and (last := final(root, t))]
    found.sort(key=lambda row: row[1]["success_rate"])
    figure = Figure(figsize=(8, 1 + 0.2 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, (_, base, last) in enumerate(found):
        tuned = not enough(base)
        if tuned:
            axes.plot([base["success_rate"], last["success_rate"]], [y, y], color="#d1495b", alpha=0.25, lw=5)
        for result, colour in ((base, "#777777"), (last, "#d1495b"))[: 1 + tuned]:
            axes.plot(result["success_ci95"], [y, y], color=colour, lw=1.5)
            axes.plot([result["success_rate"]], [y], "o", ms=4, color=colour)
    axes.plot([], [], "o-", ms=4, color="#777777", label="10 demonstrations, behaviour cloning")
    axes.plot([], [], "o-", ms=4, color="#d1495b", label="and residual RL")
    axes.axvline(GOAL, color="black", lw=0.8, ls=":")
    axes.set(yticks=range(len(found)), yticklabels=[t.removesuffix("-v3") for t, *_ in found], xlim=(0, 1.02))
    axes.set(xlabel="success (95 % interval)", ylim=(-1, len(found)))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(root / "fifty.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=task_names())
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "fifty")
    parser.add_argument("--report", action="store_true", help="print what is there and run nothing")
    parser.add_argument("overrides", nargs="*", help="after --: options of train.py for the fine-tuning runs")
    args = parser.parse_args()
    check_root(parser, args)
    args.root.mkdir(parents=True, exist_ok=True)

    def report() -> None:
        table = "\n".join([HEADER, *(row(args.root, t) for t in args.tasks)])
        (args.root / "table.md").write_text(table + "\n")
        plot(args.root, args.tasks)
        print("\n" + table, flush=True)

    if args.report:
        report()
        return
    side_by_side([partial(clone, args.root, t) for t in args.tasks], args.jobs, report)
    side_by_side([partial(improve, args.root, t, args.overrides) for t in args.tasks], args.jobs, report)


if __name__ == "__main__":
    main()
