"""Actions that are executed already, as a part of the observation: real-time chunking that is trained.

Training-time action conditioning (Black et al. 2025, arXiv 2512.05964): chunks that come late are trained to go on from
the actions that will have been executed by then, so that nothing has to be inpainted when it matters. The paper gives
those actions clean to a network with a time of its own for every action; here they are tokens beside the observation's,
which every head and network takes as it is, one-step heads included, at no further network evaluation.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.errors import ConfigError
from policies.rng import BatchRng

PREFIX = "action_prefix"  # the key of a chunk's first actions among observations: (B, n, Da) normalised, NaN unknown


class Prefix(nn.Module):
    """The first n of a chunk's actions, as far as they are known -> tokens (B, L, C).

    Args:
        longest: P, the largest n.
        action_dim: Da.
        width: C, of the observation's tokens.
        hidden: of the map.
    """

    def __init__(self, longest: int, action_dim: int, width: int, hidden: int = 128):
        super().__init__()
        self.longest, self.action_dim, self.width = longest, action_dim, width
        size = longest * (action_dim + 1)
        self.n_tokens = math.ceil(min(size, hidden) / width)
        self.map = nn.Sequential(nn.Linear(size, hidden), nn.Mish(), nn.Linear(hidden, self.n_tokens * width))

    def forward(self, actions: Float[Tensor, "b n da"]) -> Float[Tensor, "b l c"]:
        """Of normalised actions; NaN where they are not known, n = 0 where none is.

        Raises:
            ConfigError: more of them than it was trained on.
        """
        n = actions.shape[1]
        if n > self.longest:
            raise ConfigError(
                f"{n} actions will have been executed when the chunk arrives; the policy was trained to go on from "
                f"{self.longest} at most: lower the delay, or train with policy.prefix={n}."
            )
        known = actions.isfinite().all(2, keepdim=True)
        seen = torch.cat([torch.where(known, actions, 0.0), known.to(actions)], 2)
        padded = nn.functional.pad(seen, (0, 0, 0, self.longest - n))
        return self.map(padded.flatten(1)).unflatten(1, (self.n_tokens, self.width))

    def none(self, b: int) -> Float[Tensor, "b l c"]:
        """Tokens of chunks that follow nothing."""
        return self(torch.zeros(b, 0, self.action_dim, device=next(self.parameters()).device))

    def drawn(self, action: Float[Tensor, "b h da"], past: int, rng: BatchRng) -> Float[Tensor, "b p da"]:
        """What is known of chunks in training: their first 0 .. P actions, each length as often.

        In half of the chunks without the ``past`` actions before the observation, which a robot's plan may not hold.
        """
        lengths, skips = rng.randint(self.longest + 1, len(action)), rng.randint(2, len(action))
        i = torch.arange(self.longest, device=action.device)
        known = (i < lengths[:, None]) & (i >= past * skips[:, None])
        return torch.where(known[..., None], action[:, : self.longest], torch.nan)
