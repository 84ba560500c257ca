"""Classifier-free guidance (Ho & Salimans 2022): what a policy does with an observation, more so.

In training, some rows see a learned null token instead of their condition, so that one network knows both; sampling
follows  null + scale * (condition - null).  The condition is the whole observation, or the goal alone (BESO).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.rng import BatchRng


class Guidance(nn.Module):
    """A denoising network around another one: with and without the condition, in one pass of twice the rows.

    What it prepares has one more axis: (B, 1, ...) for the condition alone, (B, 2, ...) for condition and null.

    Args:
        network: see Network.
        mask: (L, C), the entries of the observation tokens that the null token replaces.
        scale: 1 follows the condition alone, at the cost of the bare network.
    """

    mask: Tensor

    def __init__(self, network: Any, mask: Bool[Tensor, "l c"], scale: float):
        super().__init__()
        self.network, self.scale = network, scale
        self.null = nn.Parameter(torch.zeros(mask.shape))
        self.register_buffer("mask", mask, persistent=False)

    def without(self, cond: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        """The tokens of rows that do not know their condition."""
        return torch.where(self.mask, self.null.to(cond.dtype), cond)

    def prepare(self, cond: Float[Tensor, "b l c"]) -> Tensor:
        """For sampling."""
        return self.prepare_both(cond, cond) if self.scale != 1 else self.network.prepare(cond).unsqueeze(1)

    def prepare_both(self, first: Float[Tensor, "b l c"], cond: Float[Tensor, "b l c"]) -> Tensor:
        """Of ``first``, and of ``cond`` without its condition."""
        return torch.stack(self.network.prepare(torch.cat([first, self.without(cond)])).chunk(2), 1)

    def drop(self, cond: Float[Tensor, "b l c"], p: float, rng: BatchRng) -> Float[Tensor, "b l c"]:
        """For training: every row loses its condition with probability p."""
        return torch.where((rng.rand(len(cond)) < p)[:, None, None], self.without(cond), cond)

    def hidden_blocks(self) -> list[tuple[nn.Module, int]]:
        """The network's."""
        return self.network.hidden_blocks()

    @property
    def embed_times(self) -> Callable[[Tensor], Tensor] | None:
        """The network's, where it has any."""
        return getattr(self.network, "embed_times", None)

    def forward(self, x: Float[Tensor, "b h da"], t: Tensor, prepared: Tensor) -> Float[Tensor, "b h da"]:
        """The network's answer; guided where ``prepared`` holds two."""
        if prepared.shape[1] == 1:
            return self.network(x, t, prepared[:, 0])
        rows = prepared.transpose(0, 1).flatten(0, 1)
        times = t.repeat(2, *[1] * (t.ndim - 1)) if len(t) == len(x) else t  # else one row for all
        condition, null = self.network(x.repeat(2, 1, 1), times, rows).chunk(2)
        return torch.lerp(null, condition, self.scale)
