"""Random shifts of images (DrQ, Yarats et al. 2021): critics on pixels overfit without them."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

from policies.encoders.image import crop


def random_shift(
    x: Shaped[Tensor, "b to h w c"], pad: int, generator: torch.Generator | None = None
) -> Shaped[Tensor, "b to h w c"]:
    """Every sample moved by up to ``pad`` pixels, all its frames alike; what comes in repeats the border."""
    b, to, height, width, _ = x.shape
    offset = torch.randint(2 * pad + 1, (2, b), generator=generator).repeat_interleave(to, 1).to(x.device)
    rows = torch.arange(-pad, height + pad, device=x.device).clamp(0, height - 1)
    cols = torch.arange(-pad, width + pad, device=x.device).clamp(0, width - 1)
    padded = x.flatten(0, 1)[:, rows][:, :, cols].permute(0, 3, 1, 2)
    return crop(padded, offset[0], offset[1], (height, width)).permute(0, 2, 3, 1).unflatten(0, (b, to))
