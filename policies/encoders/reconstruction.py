"""An auxiliary loss for encoders: the newest observation from its tokens (RL-100, Lei et al. 2025, stage 0; Crossway).

States by squared error, point clouds by the Chamfer distance, images and depth at 16 x 16 pixels by squared error.
Only training pays for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from data.spec import FieldSpec

SIDE = 16  # of reconstructed images
N_POINTS = 128  # of reconstructed clouds


def chamfer(a: Float[Tensor, "b n 3"], b: Float[Tensor, "b m 3"]) -> Float[Tensor, ""]:
    """Mean squared distance of each point to the nearest of the other cloud, both ways."""
    square = torch.cdist(a, b).square()
    return square.amin(2).mean() + square.amin(1).mean()


class Reconstruction(nn.Module):
    """One small decoder for each observation.

    Args:
        fields: the observations.
        cond_shape: (L, C) of the tokens.
        weight: of the loss.
        hidden: width of each decoder's layer.
    """

    def __init__(self, fields: Mapping[str, FieldSpec], cond_shape: tuple[int, int], weight: float, hidden: int = 256):
        super().__init__()
        self.weight = weight
        fields = {key: field for key, field in fields.items() if field.kind != "language"}  # that is known beforehand
        goal_images = {key: "rgb" for key, field in fields.items() if field.kind == "goal" and field.is_image}
        self.kinds = {**{key: field.kind for key, field in fields.items()}, **goal_images}

        def decoder(field: FieldSpec, kind: str) -> nn.Module:
            size = {"pointcloud": N_POINTS * 3, "rgb": 3 * SIDE**2, "depth": SIDE**2}
            out = size.get(kind, math.prod(field.shape))
            return nn.Sequential(nn.Linear(math.prod(cond_shape), hidden), nn.ReLU(), nn.Linear(hidden, out))

        self.decoders = nn.ModuleDict({key: decoder(field, self.kinds[key]) for key, field in fields.items()})

    def forward(self, tokens: Float[Tensor, "b l c"], obs: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Sum over the observations, unweighted.

        Args:
            tokens: what the encoder made of them.
            obs: normalised, (B, To, *shape); the last frame is the target.
        """
        flat = tokens.flatten(1)
        losses = []
        for key, decoder in self.decoders.items():
            out, kind = decoder(flat), self.kinds[key]
            target = obs[key][:, -1]
            if kind == "pointcloud":
                losses.append(chamfer(out.unflatten(1, (N_POINTS, 3)), target[..., :3]))
            else:
                losses.append(
                    F.mse_loss(out, (_small(target, kind) if kind in ("rgb", "depth") else target).flatten(1))
                )
        return torch.stack(losses).sum()


def _small(image: Tensor, kind: str) -> Float[Tensor, "b c h w"]:
    """(B, H, W[, C]) at 16 x 16; colour from 0..255 to [-1, 1]."""
    image = image.float().unsqueeze(-1) if image.ndim == 3 else image.float()
    image = F.adaptive_avg_pool2d(image.permute(0, 3, 1, 2), SIDE)
    return image / 127.5 - 1.0 if kind == "rgb" else image
