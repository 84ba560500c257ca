"""The pictures a run ends with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def learning_curve(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Loss and success against updates; success with its Wilson interval.

    Args:
        records: lines of metrics.jsonl; those with "loss" and those with "success_rate" are drawn.
        path: PNG to write.
        title: of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
    if losses:
        left.semilogy(*zip(*losses, strict=True), lw=1, color="#30638e")
    left.set(xlabel="updates", ylabel="training loss")
    evaluations = [r for r in records if "success_rate" in r]
    if evaluations:
        steps = [r["step"] for r in evaluations]
        rates = [r["success_rate"] for r in evaluations]
        low = [max(0.0, r["success_rate"] - r["success_ci95"][0]) for r in evaluations]
        high = [max(0.0, r["success_ci95"][1] - r["success_rate"]) for r in evaluations]
        right.errorbar(steps, rates, yerr=[low, high], fmt="o-", capsize=3, color="#d1495b")
    right.set(xlabel="updates", ylabel="success rate (95 % interval)", ylim=(-0.02, 1.05))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0, right=1.03 * max((r["step"] for r in records if r["step"]), default=1))
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
