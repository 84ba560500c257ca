"""Time embeddings shared by the denoising networks."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Sinusoid(nn.Module):
    """Sines, then cosines of t, (B,) or (B, n_times) -> (B, n_times * dim).

    Args:
        dim: width, even.
        scale: t in [0, 1] is multiplied by this first; with the number of training steps it is DDPM's integer k.
        n_times: times of one row, for heads that look ahead (MeanFlow's t and t - r); their sinusoids side by side.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float, n_times: int = 1):
        super().__init__()
        self.n_times = n_times
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10_000.0) / (half - 1)))
        self.register_buffer("frequencies", scale * frequencies, persistent=False)

    def forward(self, t: Float[Tensor, " b"] | Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """t in [0, 1]."""
        angle = t.view(len(t), self.n_times, 1) * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)


class TimeEmbedding(Sinusoid):
    """A sinusoid of t followed by a two-layer MLP, as in Diffusion Policy's U-Net; arguments as of Sinusoid."""

    def __init__(self, dim: int, scale: float, n_times: int = 1):
        super().__init__(dim, scale, n_times)
        self.mlp = nn.Sequential(nn.Linear(n_times * dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))

    def forward(self, t: Float[Tensor, " b"] | Float[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """t in [0, 1], (B,) or (B, n_times) -> (B, dim)."""
        return self.mlp(super().forward(t))
