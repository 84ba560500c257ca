"""What on-policy fine-tuners learn from: the decisions of N environments since the last update, rewards to scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class RewardScale:
    """The running standard deviation of discounted returns, which rewards are divided by (Engstrom et al. 2020).

    Nothing is subtracted: a mean taken off a sparse reward would pay for staying alive.
    """

    def __init__(self, n_envs: int, device: torch.device | str = "cpu"):
        self.returns = torch.zeros(n_envs, device=device)  # so far in the present episodes
        self.carry = torch.zeros(n_envs, device=device)  # discount of the last decision; 0 after an episode's end
        self.moments = torch.zeros(3, dtype=torch.float64)  # number, mean, sum of squared deviations (Welford)

    def update(self, reward: Float[Tensor, " n"], discount: Float[Tensor, " n"], done: Bool[Tensor, " n"]) -> None:
        """One decision of every environment."""
        self.returns = self.carry * self.returns + reward
        self.carry = discount * (~done)
        new = self.returns.double().cpu()
        n, mean, m2 = self.moments
        total, shift = n + len(new), new.mean() - mean
        m2 = m2 + (new - new.mean()).square().sum() + shift.square() * n * len(new) / total
        self.moments = torch.stack([total, mean + shift * len(new) / total, m2])

    @property
    def std(self) -> float:
        """1 until two returns differ."""
        n, _, m2 = self.moments.tolist()
        return (m2 / n) ** 0.5 if m2 > 1e-12 * n and n else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        """Returns under way and moments."""
        return {"returns": self.returns.clone(), "carry": self.carry.clone(), "moments": self.moments.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state_dict``."""
        self.returns = state["returns"].to(self.returns.device, copy=True)
        self.carry = state["carry"].to(self.carry.device, copy=True)
        self.moments = state["moments"].clone()


class Rollout:
    """T decisions of N environments; every entry (T, N, ...), made when its first row arrives."""

    def __init__(self, n_steps: int):
        self.n_steps, self.at = n_steps, 0
        self.data: dict[str, Tensor] = {}

    @property
    def full(self) -> bool:
        """T decisions are there."""
        return self.at == self.n_steps

    def add(self, row: Mapping[str, Tensor]) -> None:
        """One decision of every environment, (N, ...) per key; the first one after ``clear`` overwrites."""
        for key, value in row.items():
            if key not in self.data:
                self.data[key] = torch.zeros(self.n_steps, *value.shape, dtype=value.dtype, device=value.device)
            self.data[key][self.at] = value
        self.at += 1

    def clear(self) -> None:
        """Begins anew."""
        self.at = 0

    def __getitem__(self, key: str) -> Tensor:
        return self.data[key]

    def flat(self, key: str) -> Tensor:
        """(T * N, ...)."""
        return self.data[key].flatten(0, 1)

    def state_dict(self) -> dict[str, Any]:
        """What has been filled."""
        return {"at": self.at, "data": {k: v[: self.at].clone() for k, v in self.data.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.at, self.data = 0, {}
        for t in range(state["at"]):
            self.add({k: v[t] for k, v in state["data"].items()})
