"""Before any update, a fine-tuner must be as good as its base: what public code gets quietly wrong is refused here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from data.errors import TrainingError


@runtime_checkable
class Outcome(Protocol):
    """What the gate looks at of an episode."""

    success: bool
    length: int
    digest: str


def check_gate(base: Sequence[Outcome], start: Sequence[Outcome], *, exact: bool) -> None:
    """Compares a fine-tuner at its start with its base on the same seeds.

    Args:
        base, start: outcomes of the same episodes under the base and under the untrained fine-tuner.
        exact: the fine-tuner must take exactly the base's actions in every episode; else its success must lie within
            what chance allows (a two-sided test of two proportions at 1 %).

    Raises:
        TrainingError: with the two success rates.
    """
    n = len(base)
    a, b = sum(r.success for r in base), sum(r.success for r in start)
    numbers = f"{a}/{n} episodes succeed under the base, {b}/{len(start)} under the untrained fine-tuner"
    if exact:
        different = [
            i
            for i, (x, y) in enumerate(zip(base, start, strict=True))
            if (x.digest, x.success, x.length) != (y.digest, y.success, y.length)
        ]
        if different:
            raise TrainingError(
                f"Before any update the fine-tuner does not act as its base: {numbers}, and {len(different)} of {n} "
                f"episodes are acted differently (the first is number {different[0]}). A residual or a steering of "
                "zero must change nothing: look at the base's queue at episode ends, at the noise, at the scale."
            )
        return
    pooled = (a + b) / (n + len(start))
    spread = math.sqrt(max(pooled * (1 - pooled), 1e-12) * (1 / n + 1 / len(start)))
    if abs(a / n - b / len(start)) > 2.576 * spread + 1 / n:
        raise TrainingError(
            f"Before any update the fine-tuner is not as good as its base: {numbers}, more apart than chance allows. "
            "Look at the distribution of its noise, at its bound, and at how the base is queried."
        )
