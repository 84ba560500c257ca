"""How much of its noise a generative base is given: 1 samples what was demonstrated, 0 its most usual way.

Which is better differs from task to task by tens of points, and only trying tells. Training episodes try: Thompson
sampling (Thompson 1933) over a few temperatures, forgetting slowly, because what is learned meanwhile changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.errors import ConfigError
from policies.chunk_policy import ChunkPolicy
from policies.policy import Policy


class Temperature:
    """A bandit whose arms are factors on the base's noise.

    Args:
        base: one without noise of its own (not a ChunkPolicy) has the one temperature 1.
        arms: the temperatures; with one there is nothing to try.
        n_envs: N.
        forget: what counts of an earlier episode after one more.
    """

    def __init__(self, base: Policy, arms: Sequence[float], n_envs: int, forget: float = 0.98):
        if not arms or any(not 0 <= a <= 1 for a in arms):
            raise ConfigError(f"temperatures={list(arms)} must be numbers in [0, 1], at least one.")
        self.arms = [float(a) for a in arms] if isinstance(base, ChunkPolicy) else [1.0]
        self.forget = forget
        self.won, self.lost = np.zeros(len(self.arms)), np.zeros(len(self.arms))
        self.arm = np.zeros(n_envs, np.int64)  # of the present episodes

    @property
    def now(self) -> Float[Tensor, " n"]:
        """Of the present episodes."""
        return torch.tensor([self.arms[a] for a in self.arm])

    @property
    def best(self) -> float:
        """The one that surely did best of late: mean minus standard deviation of what is known of each (Beta)."""
        n = self.won + self.lost + 2
        mean = (self.won + 1) / n
        return self.arms[int(np.argmax(mean - np.sqrt(mean * (1 - mean) / (n + 1))))]

    @property
    def books(self) -> Float[Tensor, "2 a"]:
        """What every arm has won and lost, of late."""
        return torch.from_numpy(np.stack([self.won, self.lost]))

    @books.setter
    def books(self, told: Float[Tensor, "2 a"]) -> None:
        self.won, self.lost = told.numpy().copy()

    def begin(self, fresh: Bool[Tensor, " n"], generator: torch.Generator) -> None:
        """Draws those of the episodes that begin."""
        if len(self.arms) == 1:
            return
        for i in fresh.nonzero()[:, 0].tolist():
            rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
            self.arm[i] = np.argmax(rng.beta(self.won + 1, self.lost + 1))

    def add(self, env: int, success: bool) -> None:
        """How the episode of ``env`` ended."""
        self.won *= self.forget
        self.lost *= self.forget
        (self.won if success else self.lost)[self.arm[env]] += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {"won": self.won.tolist(), "lost": self.lost.tolist(), "arm": self.arm.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.won, self.lost, self.arm = (np.array(state[name]) for name in ("won", "lost", "arm"))
