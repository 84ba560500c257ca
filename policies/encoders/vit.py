"""A small vision transformer after Beyer et al. 2022 ("Better plain ViT baselines for ImageNet-1k")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, dim: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, fixed 2-D sinusoids for positions, pre-norm blocks, the mean of the tokens.

    Args:
        in_channels: of the image.
        patch: side of a patch, pixels; what is left over at the right and lower border is not seen.
        dim: width, divisible by 4 and by n_heads; 192 (tiny) and 384 (small) in the literature.
        n_layers, n_heads: of the transformer.
    """

    def __init__(self, in_channels: int = 3, *, patch: int = 8, dim: int = 192, n_layers: int = 6, n_heads: int = 3):
        super().__init__()
        if dim % 4 or dim % n_heads:
            raise ValueError(f"vit.dim={dim} must be a multiple of 4 and of vit.n_heads={n_heads}")
        self.embed = nn.Conv2d(in_channels, dim, patch, patch)
        self.blocks = nn.Sequential(*(_Block(dim, n_heads) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(dim)
        self.out_channels = dim

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1] -> features."""
        h = self.embed(x)
        tokens = h.flatten(2).transpose(1, 2) + positions_2d(h.shape[-2], h.shape[-1], h.shape[1]).to(h)
        return self.norm(self.blocks(tokens)).mean(1)


def positions_2d(height: int, width: int, dim: int) -> Float[Tensor, "l d"]:
    """Sines and cosines of x and y on a grid, row by row."""
    frequency = 10_000.0 ** -torch.linspace(0, 1, dim // 4)
    y, x = (grid.flatten()[:, None] * frequency for grid in torch.meshgrid(
        torch.arange(height).float(), torch.arange(width).float(), indexing="ij"
    ))  # fmt: skip
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)
