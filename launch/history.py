"""What a reinforcement-learning run reports about itself: dip, steps to 90 and 95 %, time, recent episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

SMOOTHED_OVER = 3  # evaluations


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, now]."""
    return now // every > before // every


def smoothed(rates: list[float]) -> list[float]:
    """Means over ``SMOOTHED_OVER`` evaluations in a row; of all of them where there are fewer."""
    k = min(SMOOTHED_OVER, len(rates))
    return [sum(rates[i : i + k]) / k for i in range(len(rates) - k + 1)] if rates else []


class History:
    """Counts as the run goes; part of its state."""

    def __init__(self) -> None:
        self.base: Mapping[str, Any] = {}
        self.steps: list[int] = []  # of the evaluations during training
        self.rates: list[float] = []
        self.seconds = 0.0  # acting and learning, without evaluations
        self.recent: deque[bool] = deque(maxlen=50)  # successes of the last training episodes
        self.episodes = 0

    def begin(self, base: Mapping[str, Any]) -> None:
        """``base``: the summary of the base's evaluation on the seeds used during training."""
        self.base = {k: base[k] for k in ("success_rate", "success_ci95")}

    def add(self, step: Any, seconds: float) -> None:
        """One decision (a ChunkStep) and how long it took with its updates."""
        self.seconds += seconds
        for i in (step.terminated | step.truncated).nonzero()[:, 0].tolist():
            self.recent.append(bool(step.success[i]))
            self.episodes += 1

    def evaluated(self, step: int, rate: float) -> None:
        """One evaluation during training."""
        self.steps.append(step)
        self.rates.append(rate)

    def numbers(self) -> dict[str, float]:
        """For a line of metrics."""
        rate = sum(self.recent) / len(self.recent) if self.recent else 0.0
        return {"train_success": round(rate, 4), "episodes": self.episodes, "seconds": round(self.seconds, 2)}

    def note(self) -> str:
        """For the progress bar."""
        last = f", evaluated {self.rates[-1]:.2f}" if self.rates else ""
        return f"success of the last {len(self.recent)} episodes {self.numbers()['train_success']:.2f}{last}"

    def dip(self) -> float | None:
        """Base minus the worst smoothed evaluation, in success rate; below 0 where it never fell under its base."""
        if not self.rates or not self.base:
            return None
        return round(self.base["success_rate"] - min(smoothed(self.rates)), 4)

    def as_good_as(self, rate: float | None) -> bool:
        """Whether the last ``SMOOTHED_OVER`` evaluations had this mean success; never where there are fewer."""
        return rate is not None and len(self.rates) >= SMOOTHED_OVER and smoothed(self.rates)[-1] >= rate - 1e-9

    def steps_to(self, rate: float) -> int | None:
        """Environment steps at the first evaluation that reached ``rate``."""
        return next((s for s, r in zip(self.steps, self.rates, strict=True) if r >= rate), None)

    def facts(self) -> dict[str, Any]:
        """For eval.json."""
        return {
            "base_success_rate": self.base.get("success_rate"),
            "base_success_ci95": self.base.get("success_ci95"),
            "dip": self.dip(),
            "env_steps_to_90": self.steps_to(0.9),
            "env_steps_to_95": self.steps_to(0.95),
            "train_seconds": round(self.seconds, 1),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {
            "base": dict(self.base),
            "steps": list(self.steps),
            "rates": list(self.rates),
            "seconds": self.seconds,
            "recent": list(self.recent),
            "episodes": self.episodes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.base, self.steps, self.rates = state["base"], list(state["steps"]), list(state["rates"])
        self.seconds, self.episodes = state["seconds"], state["episodes"]
        self.recent = deque(state["recent"], maxlen=50)
