"""A residual MLP over the flattened chunk, as DPPO uses it for state policies (Ren et al. 2024, appendix)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.networks.embed import TimeEmbedding


class _Block(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.lin1 = nn.Linear(dim, dim)
        self.lin2 = nn.Linear(dim, dim)
        self.act = nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lin2(self.act(self.lin1(self.act(self.norm(x)))))


class ResidualMLP(nn.Module):
    """Denoises a whole chunk at once: [chunk, time, observation] -> chunk.

    Args:
        action_dim: Da.
        horizon: H.
        cond_shape: (L, C) of the observation tokens.
        hidden_dim: width of the residual stream.
        n_blocks: residual blocks of two layers each.
        time_dim: width of the time embedding.
        time_scale, n_times: see TimeEmbedding.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_shape: tuple[int, int],
        *,
        hidden_dim: int = 512,
        n_blocks: int = 3,
        time_dim: int = 64,
        time_scale: float = 100.0,
        n_times: int = 1,
    ):
        super().__init__()
        self.time = TimeEmbedding(time_dim, time_scale, n_times)
        self.input = nn.Linear(horizon * action_dim, hidden_dim)
        self.time_input = nn.Linear(time_dim, hidden_dim, bias=False)
        self.cond_input = nn.Linear(math.prod(cond_shape), hidden_dim, bias=False)
        self.blocks = nn.ModuleList([_Block(hidden_dim) for _ in range(n_blocks)])
        self.out_norm = nn.LayerNorm(hidden_dim)
        self.output = nn.Linear(hidden_dim, horizon * action_dim)

    def hidden_blocks(self) -> list[tuple[nn.Module, int]]:
        """Blocks whose outputs may be dispersed, and their batch axis: all but the last."""
        return [(block, 0) for block in list(self.blocks)[:-1]]

    def prepare(self, cond: Float[Tensor, "b l c"]) -> Tensor:
        """What depends on the observation alone; computed once per chunk, not once per denoising step."""
        return self.cond_input(cond.flatten(1))

    def forward(
        self, x: Float[Tensor, "b h da"], t: Float[Tensor, " b"] | Float[Tensor, "b n"], prepared: Any
    ) -> Float[Tensor, "b h da"]:
        """x noisy chunk, t in [0, 1], prepared = ``prepare(cond)`` -> prediction of the head's target."""
        h = self.input(x.flatten(1)) + self.time_input(self.time(t)) + prepared
        for block in self.blocks:
            h = block(h)
        return self.output(torch.nn.functional.mish(self.out_norm(h))).view_as(x)
