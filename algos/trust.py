"""No dip: what a fine-tuner learns is deployed only when its own training episodes say that it is better than its base.

Every method that follows a learned critic passes through a time when the critic is wrong: the public code of DSRL falls
from 40 to 15-25 % success before it recovers. The learner may go through that; the policy it hands out need not: until
the evidence is there, that policy is the base itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any


class Trust:
    """Successes of the fine-tuned episodes of training, against the base's rate.

    Args:
        window: episodes looked back on.
        z: standard deviations: trusted when the Wilson lower bound of the recent episodes passes the base's rate, no
            longer trusted when their upper bound falls below it.

    Training episodes carry exploration noise that deployment does not, so the comparison is on the careful side.
    """

    def __init__(self, window: int = 40, z: float = 1.0):
        self.z = z
        self.recent: deque[bool] = deque(maxlen=window)
        self.base_successes = self.base_episodes = 0
        self.active = False
        self.measures = False  # the base was not measured beforehand: its episodes in training have to do

    def base(self, successes: int, episodes: int) -> None:
        """More episodes of the base alone; none at all leaves it to training to measure it."""
        self.measures |= episodes == 0
        self.base_successes += successes
        self.base_episodes += episodes

    @property
    def base_rate(self) -> float:
        """Success of the base; unknown is 1, which nothing passes."""
        return self.base_successes / self.base_episodes if self.base_episodes else 1.0

    def add(self, success: bool) -> bool:
        """One fine-tuned episode; returns whether the fine-tuned policy is trusted now."""
        self.recent.append(success)
        n, k = len(self.recent), sum(self.recent)
        if n * 2 < (self.recent.maxlen or 2):
            return self.active
        p, z = k / n, self.z
        middle, scale = p + z * z / (2 * n), 1 + z * z / n
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        if (middle - half) / scale > self.base_rate:
            self.active = True
        elif (middle + half) / scale < self.base_rate:
            self.active = False
        return self.active

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {
            "recent": list(self.recent),
            "base": (self.base_successes, self.base_episodes),
            "active": self.active,
            "measures": self.measures,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.recent = deque(state["recent"], maxlen=self.recent.maxlen)
        self.base_successes, self.base_episodes = state["base"]
        self.active, self.measures = state["active"], state.get("measures", False)
