"""The pictures a run ends with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def learning_curve(records: Sequence[dict[str, Any]], path: Path, title: str, unit: str = "updates") -> None:
    """Training loss (or success of the training episodes) and evaluated success, with its Wilson interval.

    Args:
        records: lines of metrics.jsonl; "loss" or "train_success", "success_rate" and "base_success_rate" are drawn.
        path: PNG to write.
        title: of the figure.
        unit: of the steps: "updates" or "environment steps".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
    if losses:
        left.semilogy(*zip(*losses, strict=True), lw=1, color="#30638e")
        left.set(ylabel="training loss")
    training = [(r["step"], r["train_success"]) for r in records if "train_success" in r]
    if training:
        left.plot(*zip(*training, strict=True), lw=1, color="#30638e")
        left.set(ylabel="success of the last 50 training episodes", ylim=(-0.02, 1.05))
    evaluations = [r for r in records if "success_rate" in r]
    if evaluations:
        steps = [r["step"] for r in evaluations]
        rates = [r["success_rate"] for r in evaluations]
        low = [max(0.0, r["success_rate"] - r["success_ci95"][0]) for r in evaluations]
        high = [max(0.0, r["success_ci95"][1] - r["success_rate"]) for r in evaluations]
        right.errorbar(steps, rates, yerr=[low, high], fmt="o-", capsize=3, color="#d1495b")
    for record in records[:1]:
        if record.get("base_success_rate") is not None:
            right.axhline(record["base_success_rate"], color="#666666", ls="--", lw=1, label="base")
            right.legend(loc="lower right")
    right.set(ylabel="success rate (95 % interval)", ylim=(-0.02, 1.05))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xlabel(unit)
        axes.set_xlim(left=0, right=1.03 * max((r["step"] for r in records if r["step"]), default=1))
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
