"""The base's unexecuted actions: kept outside the policy, one queue for every environment."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policies.policy import Obs, Policy


class BaseQueue:
    """What is left of the base's chunk in each of N environments, for methods that decide more often than the base."""

    def __init__(self, base: Policy, n: int):
        self.chunk = torch.zeros(n, base.n_action_steps, base.action_dim)
        self.at = torch.full((n,), base.n_action_steps)

    def clear(self, rows: Bool[Tensor, " n"]) -> None:
        """Forgets the chunks of the chosen environments: their episodes have ended."""
        self.at[rows] = self.chunk.shape[1]

    def next(
        self,
        base: Policy,
        obs: Obs,
        generator: torch.Generator | None,
        rows: Bool[Tensor, " n"] | None = None,
        steps: int = 1,
        temperature: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n steps da"]:
        """The base's next ``steps`` actions; environments (of ``rows``) without any are asked for a new chunk.

        ``steps`` divides the chunk's length; ``temperature`` multiplies the base's noise. Outside ``rows`` nothing
        moves, and what comes back means nothing.
        """
        rows = torch.ones(len(self.at), dtype=torch.bool) if rows is None else rows
        empty = (rows & (self.at >= self.chunk.shape[1])).nonzero()[:, 0]
        if len(empty):
            noise = base.draw_noise(len(empty), generator)
            if temperature is not None:
                noise = noise * temperature[empty].view(-1, *[1] * (noise.ndim - 1)).to(noise)
            chunk = base.act({k: v[empty.to(v.device)] for k, v in obs.items()}, noise=noise)
            self.chunk[empty] = chunk.to(self.chunk.device)
            self.at[empty] = 0
        at = self.at.clamp(max=self.chunk.shape[1] - steps)
        self.at[rows] += steps
        return self.chunk[torch.arange(len(at))[:, None], at[:, None] + torch.arange(steps)]

    def state_dict(self) -> dict[str, Tensor]:
        """Chunks and positions."""
        return {"chunk": self.chunk.clone(), "at": self.at.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of ``state_dict``."""
        self.chunk, self.at = state["chunk"].clone(), state["at"].clone()
