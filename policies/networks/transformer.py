"""Diffusion Policy's transformer, an encoder-decoder with cross-attention (Chi et al. 2023, sec. III, appendix A)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.networks.attention import (
    Block,
    Dropout,
    FeedForward,
    SelfAttention,
    attend,
    causal_mask,
    check_heads,
    init_weights,
)
from policies.networks.embed import Sinusoid, TimeEmbedding


class _DecoderBlock(nn.Module):
    """Pre-LayerNorm self-attention, attention to the memory, feed-forward."""

    def __init__(self, dim: int, n_heads: int, dropout: float):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), SelfAttention(dim, n_heads, dropout)
        self.norm2, self.query, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm3, self.feed = nn.LayerNorm(dim), FeedForward(dim, dropout)
        self.dropout = Dropout(dropout)
        self.n_heads = n_heads

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], masks: tuple[Tensor | None, Tensor | None]) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), masks[0])[0])
        q = self.query(self.norm2(x)).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        seen = attend(q, *memory, masks[1], self.dropout.rate)
        x = x + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feed(self.norm3(x)))


class Transformer(nn.Module):
    """The noisy chunk, a token an action, attends to itself and to a memory of time and observation tokens.

    Without encoder layers the memory is an MLP of each token for itself, so that the observation's part of all layers'
    keys and values is computed once per observation and the time's part once per denoising step: equal to the paper's,
    but that the time token has an MLP of its own. With encoder layers the paper's time token takes part in the
    self-attention, and the memory has to be made anew at every step; here the observation tokens are encoded by
    themselves, so that they never see the time, unless ``encode_time``. The decoder sees both either way.

    Args:
        action_dim: Da.
        horizon: H.
        cond_shape: (L, C) of the observation tokens.
        width: of all tokens. The paper: 256, and 768 for kitchen and real robots.
        n_layers: of the decoder; 8 in the paper.
        n_heads: of all attention; 4 in the paper.
        n_cond_layers: of the observation's encoder; 0: an MLP, as in the paper's experiments.
        encode_time: whether the time, then a sinusoid without an MLP, is a token of the encoder's, as in the paper, and
            all tokens there see all others.
        causal: an action sees the actions before it and, taking token i for observation step i, the observations up to
            its own step; so do the encoder's without ``encode_time``, which the paper leaves unmasked. Not for tokens
            that are not steps.
        dropout: of attention weights, and after every attention and inside and after every feed-forward, as
            nn.TransformerDecoderLayer has it. The paper: 0.3 (robomimic), 0.01 (PushT).
        time_scale, n_times: see TimeEmbedding.
    """

    position: Tensor
    self_mask: Tensor | None
    memory_mask: Tensor | None
    cond_mask: Tensor | None

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_shape: tuple[int, int],
        *,
        width: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        n_cond_layers: int = 0,
        encode_time: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
        time_scale: float = 100.0,
        n_times: int = 1,
    ):
        super().__init__()
        check_heads(width, n_heads)
        if encode_time and (n_cond_layers == 0 or width % (2 * n_times)):
            raise ValueError(f"encode_time needs n_cond_layers >= 1, and a width={width} that sinusoids can fill")
        n_tokens, token_dim = cond_shape
        self.n_layers, self.n_heads, self.encode_time = n_layers, n_heads, encode_time
        self.input = nn.Linear(action_dim, width)
        self.position = nn.Parameter(torch.empty(horizon, width))
        if encode_time:
            self.time: Sinusoid = Sinusoid(width // n_times, time_scale, n_times)
            self.position_time = nn.Parameter(torch.empty(1, width))
        else:
            self.time = TimeEmbedding(width, time_scale, n_times)
        self.cond_input = nn.Linear(token_dim, width)
        self.position_cond = nn.Parameter(torch.empty(n_tokens, width))
        self.encoder = nn.ModuleList([Block(width, n_heads, dropout) for _ in range(n_cond_layers)])
        mlp = [nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)]
        self.mlp = nn.Sequential(*mlp) if n_cond_layers == 0 else nn.Identity()
        self.memory = nn.Linear(width, n_layers * 2 * width)  # keys and values of every decoder layer
        self.decoder = nn.ModuleList([_DecoderBlock(width, n_heads, dropout) for _ in range(n_layers)])
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, action_dim)
        masks = {
            "self_mask": causal_mask(horizon, horizon),
            "memory_mask": causal_mask(horizon, 1 + n_tokens, offset=1),  # the time comes first
            "cond_mask": causal_mask(n_tokens, n_tokens),
        }
        for name, mask in masks.items():
            self.register_buffer(name, mask if causal else None, persistent=False)
        init_weights(self)

    def hidden_blocks(self) -> list[tuple[nn.Module, int]]:
        """Blocks whose outputs may be dispersed, and their batch axis: the decoder's, but for the last."""
        return [(block, 0) for block in list(self.decoder)[:-1]]

    def prepare(self, cond: Float[Tensor, "b l c"]) -> Float[Tensor, "b l m"]:
        """The observation tokens' keys and values in every decoder layer; with ``encode_time`` the encoder's input."""
        h = self.cond_input(cond) + self.position_cond
        if self.encode_time:
            return h
        for block in self.encoder:
            h = block(h, self.cond_mask)
        return self.memory(self.mlp(h))

    def embed_times(self, t: Float[Tensor, " k"] | Float[Tensor, "k n"]) -> Float[Tensor, "k m"]:
        """The time token's; a sampler computes them for all its steps at once."""
        if self.encode_time:
            return self.time(t) + self.position_time
        return self.memory(self.time(t))

    def forward(
        self,
        x: Float[Tensor, "b h da"],
        t: Float[Tensor, " b"] | Float[Tensor, "#b n"],
        prepared: Float[Tensor, "b l m"],
    ) -> Float[Tensor, "b h da"]:
        """x noisy chunk, t in [0, 1] or ``embed_times(t)``, prepared = ``prepare(cond)`` -> the head's target."""
        time = self.embed_times(t) if t.ndim == 1 or t.shape[1] == self.time.n_times else t
        memory = torch.cat([time.expand(len(x), -1).unsqueeze(1), prepared], 1)
        if self.encode_time:
            for block in self.encoder:
                memory = block(memory)
            memory = self.memory(memory)
        memory = memory.unflatten(-1, (self.n_layers, 2, self.n_heads, -1)).permute(2, 3, 0, 4, 1, 5)
        h = self.input(x) + self.position
        for block, (k, v) in zip(self.decoder, memory.unbind(0), strict=True):
            h = block(h, (k, v), (self.self_mask, self.memory_mask))
        return self.output(self.norm(h))
