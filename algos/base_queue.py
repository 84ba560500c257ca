"""The base's unexecuted actions: kept outside the policy, one queue for every environment."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from data.chunks import executed_slice
from policies.chunk_policy import TOKENS, ChunkPolicy
from policies.policy import Obs, Policy


class BaseQueue:
    """What is left of the base's chunk in each of N environments, for methods that decide more often than the base.

    Args:
        base: who is asked.
        n: N.
        n_candidates: M chunks that are drawn each time, one of which is to be chosen.
    """

    def __init__(self, base: Policy, n: int, n_candidates: int = 1):
        self.chunks = torch.zeros(n, n_candidates, base.n_action_steps, base.action_dim)
        self.at = torch.full((n,), base.n_action_steps)

    def clear(self, rows: Bool[Tensor, " n"]) -> None:
        """Forgets the chunks of the chosen environments: their episodes have ended."""
        self.at[rows] = self.chunks.shape[2]

    def next(
        self,
        base: Policy,
        obs: Obs,
        generator: torch.Generator | None,
        rows: Bool[Tensor, " n"] | None = None,
        steps: int = 1,
    ) -> Float[Tensor, "n steps da"]:
        """``candidates`` where there is one only: the base's next ``steps`` actions."""
        return self.candidates(base, obs, generator, rows, steps)[:, 0]

    def candidates(
        self,
        base: Policy,
        obs: Obs,
        generator: torch.Generator | None,
        rows: Bool[Tensor, " n"] | None = None,
        steps: int = 1,
    ) -> Float[Tensor, "n m steps da"]:
        """The next ``steps`` actions of every candidate; environments (of ``rows``) without any are given new ones.

        ``steps`` divides the chunk's length. Outside ``rows`` nothing moves, and what comes back means nothing.
        """
        rows = torch.ones(len(self.at), dtype=torch.bool) if rows is None else rows
        empty = (rows & (self.at >= self.chunks.shape[2])).nonzero()[:, 0]
        if len(empty):
            m = self.chunks.shape[1]
            noise = base.draw_noise(len(empty) * m, generator).unflatten(0, (len(empty), m))
            chunks = several({k: v[empty.to(v.device)] for k, v in obs.items()}, base, noise)
            self.chunks[empty] = chunks.to(self.chunks.device)
            self.at[empty] = 0
        at = self.at.clamp(max=self.chunks.shape[2] - steps)
        self.at[rows] += steps
        index = at[:, None, None, None] + torch.arange(steps)[:, None]
        shape = (*self.chunks.shape[:2], steps, self.chunks.shape[3])
        return self.chunks.gather(2, index.expand(shape))

    def choose(self, rows: Bool[Tensor, " n"], candidate: Int64[Tensor, " n"]) -> None:
        """In the environments of ``rows`` the rest of the chunk is this candidate's."""
        chosen = self.chunks[rows, candidate[rows]]
        self.chunks[rows] = chosen[:, None].expand(-1, self.chunks.shape[1], -1, -1)

    def state_dict(self) -> dict[str, Tensor]:
        """Chunks and positions."""
        return {"chunks": self.chunks.clone(), "at": self.at.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of ``state_dict``."""
        self.chunks, self.at = state["chunks"].clone(), state["at"].clone()


def several(obs: Obs, base: Policy, noise: Float[Tensor, "n m ..."]) -> Float[Tensor, "n m ta da"]:
    """Chunks of ``base`` for M draws of noise per observation, environment units; the observation is encoded once."""
    n, m = noise.shape[:2]
    if m == 1 or not isinstance(base, ChunkPolicy):
        repeated = obs if m == 1 else {k: v.repeat_interleave(m, 0) for k, v in obs.items()}
        return base.act(repeated, noise=noise.flatten(0, 1)).unflatten(0, (n, m))
    base.check_obs(obs)
    with torch.no_grad():
        tokens = base.encode(obs).repeat_interleave(m, 0)
        chunk = base.unnormalise_action(base.sample({TOKENS: tokens}, noise=noise.flatten(0, 1)))
    return chunk[:, executed_slice(base.n_obs_steps, base.n_action_steps)].unflatten(0, (n, m))
