"""A diffusion transformer over action tokens, told of time and observation in one of two ways.

"adaln": AdaLN-Zero (Peebles & Xie 2023): they choose shift, scale and gate of every block, as DiT policies have it.
"in_context": they are tokens before the actions', all in one causal sequence (Dita, Hou et al. 2025).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from policies.networks.attention import (
    Block,
    Dropout,
    FeedForward,
    SelfAttention,
    causal_mask,
    check_heads,
    init_weights,
)
from policies.networks.embed import TimeEmbedding


class _AdaLNBlock(nn.Module):
    """Attention and feed-forward, each shifted and scaled before and gated after."""

    def __init__(self, dim: int, n_heads: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention, self.feed = SelfAttention(dim, n_heads, dropout), FeedForward(dim, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        h, _ = self.attention(torch.addcmul(shift1, self.norm(x), scale1), mask)
        x = torch.addcmul(x, gate1, self.dropout(h))
        h = self.feed(torch.addcmul(shift2, self.norm(x), scale2))
        return torch.addcmul(x, gate2, self.dropout(h))


class DiT(nn.Module):
    """Self-attention over the chunk, a token an action.

    AdaLN's modulation is a linear map of SiLU([time, observation]), where Peebles & Xie have SiLU(time + class): it
    falls into a part that is computed once per observation and one that is computed once per denoising step. Its
    weights and the output's are 0 at the start, so that every block is the identity.

    In context, tokens see what comes before them, the observation first: its keys and values in every layer, all that
    time and actions see of it, are computed once per observation. Dita's blocks are LLaMA's; these are the usual ones,
    so that the two kinds differ in their conditioning only.

    Args:
        action_dim: Da.
        horizon: H.
        cond_shape: (L, C) of the observation tokens; flattened for adaln.
        conditioning: "adaln" or "in_context".
        width, n_layers, n_heads: of the blocks. Dita and DiT-B: 768, 12, 12.
        causal: whether actions see only the actions before them. None: as published, with in_context alone. In context
            without it, observation tokens all see each other, time and actions see everything.
        dropout: as in Transformer; Dita has 0.1 on attention weights.
        time_scale, n_times: see TimeEmbedding.
    """

    mask: Tensor | None
    cond_mask: Tensor | None

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_shape: tuple[int, int],
        *,
        conditioning: Literal["adaln", "in_context"] = "adaln",
        width: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        causal: bool | None = None,
        dropout: float = 0.0,
        time_scale: float = 100.0,
        n_times: int = 1,
    ):
        super().__init__()
        if conditioning not in ("adaln", "in_context"):
            raise ValueError(f"conditioning must be adaln or in_context, not {conditioning!r}")
        check_heads(width, n_heads)
        self.in_context = conditioning == "in_context"
        self.width, self.n_heads = width, n_heads
        n_cond = cond_shape[0] if self.in_context else 0
        n_tokens = horizon + 1 if self.in_context else horizon  # with the time's
        masked = self.in_context if causal is None else causal
        self.register_buffer("mask", causal_mask(n_tokens, n_cond + n_tokens, n_cond) if masked else None, False)
        self.register_buffer("cond_mask", causal_mask(n_cond, n_cond) if masked else None, False)
        self.input, self.output = nn.Linear(action_dim, width), nn.Linear(width, action_dim)
        self.position = nn.Parameter(torch.empty(n_tokens, width))
        self.time = TimeEmbedding(width, time_scale, n_times)
        self.cond_input = nn.Linear(cond_shape[1] if self.in_context else math.prod(cond_shape), width)
        self.norm = nn.LayerNorm(width, elementwise_affine=self.in_context)
        block = Block if self.in_context else _AdaLNBlock
        self.blocks = nn.ModuleList([block(width, n_heads, dropout) for _ in range(n_layers)])
        if self.in_context:
            self.position_cond = nn.Parameter(torch.empty(n_cond, width))
            init_weights(self)
        else:
            self._init_modulation(6 * n_layers + 2)  # shift, scale, gate twice a block; shift and scale at the end

    def _init_modulation(self, n: int) -> None:
        self.modulate_time = nn.Linear(self.width, n * self.width)
        self.modulate_cond = nn.Linear(self.width, n * self.width, bias=False)
        init_weights(self)
        for layer in (self.modulate_time, self.modulate_cond, self.output):
            nn.init.zeros_(layer.weight)
        with torch.no_grad():  # scales, the second of every three, are 1 at first
            self.modulate_time.bias.view(n, self.width)[1::3] = 1.0

    def hidden_blocks(self) -> list[tuple[nn.Module, int]]:
        """Blocks whose outputs may be dispersed, and their batch axis: all but the last."""
        return [(block, 0) for block in list(self.blocks)[:-1]]

    def prepare(self, cond: Float[Tensor, "b l c"]) -> Tensor:
        """The observation's part of every modulation (B, M); in context its keys and values (B, layers, 2, N, L, D)."""
        if not self.in_context:
            return self.modulate_cond(F.silu(self.cond_input(cond.flatten(1))))
        h, memory = self.cond_input(cond) + self.position_cond, []
        for block in self.blocks:
            h, keys_values = block.remembered(h, self.cond_mask)  # type: ignore[operator]
            memory.append(torch.stack(keys_values, 1))
        return torch.stack(memory, 1)

    def embed_times(self, t: Float[Tensor, " k"] | Float[Tensor, "k n"]) -> Float[Tensor, "k m"]:
        """The time's part of every modulation, or its token; a sampler computes it for all its steps at once."""
        return self.time(t) if self.in_context else self.modulate_time(F.silu(self.time(t)))

    def forward(
        self, x: Float[Tensor, "b h da"], t: Float[Tensor, " b"] | Float[Tensor, "#b n"], prepared: Tensor
    ) -> Float[Tensor, "b h da"]:
        """x noisy chunk, t in [0, 1] or ``embed_times(t)``, prepared = ``prepare(cond)`` -> the head's target."""
        time = self.embed_times(t) if t.ndim == 1 or t.shape[1] == self.time.n_times else t
        if self.in_context:
            h = torch.cat([time.expand(len(x), -1).unsqueeze(1), self.input(x)], 1) + self.position
            for i, block in enumerate(self.blocks):
                h = block(h, self.mask, (prepared[:, i, 0], prepared[:, i, 1]))
            return self.output(self.norm(h[:, 1:]))
        parts = (time + prepared).unsqueeze(1).split(self.width, -1)
        h = self.input(x) + self.position
        for i, block in enumerate(self.blocks):
            h = block(h, parts[6 * i : 6 * i + 6], self.mask)
        return self.output(torch.addcmul(parts[-2], self.norm(h), parts[-1]))
