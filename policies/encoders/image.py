"""Diffusion Policy's image encoder: ResNet-18 with GroupNorm, spatial softmax, random crop (Chi et al. 2023, III-B)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from policies.rng import BatchRng


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 16), channels)


class _BasicBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = _norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = _norm(c_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), _norm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNet18(nn.Module):
    """He et al. 2016, with GroupNorm for BatchNorm (which does not go with EMA weights) and without pooling.

    Args:
        in_channels: 3 for colour, 1 for depth.
        width: channels of the first stage; 64 is the paper's.
    """

    def __init__(self, in_channels: int = 3, width: int = 64):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, 2, 3, bias=False), _norm(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(_BasicBlock(a, b, 1 if i == 0 else 2), _BasicBlock(b, b, 1))
                for i, (a, b) in enumerate(pairwise(widths))
            )
        )
        self.out_channels = widths[-1]

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Feature map at 1/32 of the resolution."""
        return self.stages(self.stem(x))


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of K learned feature points (Finn et al. 2016), in [-1, 1]."""

    def __init__(self, channels: int, n_keypoints: int):
        super().__init__()
        self.to_keypoints = nn.Conv2d(channels, n_keypoints, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """(N, 2 K): x and y of every keypoint."""
        logits = self.to_keypoints(x)
        h, w = logits.shape[-2:]
        p = logits.flatten(2).softmax(-1).view_as(logits)
        ys = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)
        xs = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype)
        return torch.cat([(p.sum(2) * xs).sum(-1), (p.sum(3) * ys).sum(-1)], dim=-1)


def crop(x: Shaped[Tensor, "n c h w"], top: Tensor, left: Tensor, size: tuple[int, int]) -> Shaped[Tensor, "n c h2 w2"]:
    """One window per image; top and left (N,) in pixels."""
    rows = top[:, None] + torch.arange(size[0], device=x.device)
    cols = left[:, None] + torch.arange(size[1], device=x.device)
    n = torch.arange(len(x), device=x.device)
    return x.permute(0, 2, 3, 1)[n[:, None, None], rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


class ImageEncoder(nn.Module):
    """(B, To, H, W, C) -> (B, To, out_dim).

    Args:
        in_channels: 3 (uint8 or float colour in 0..255) or 1 (depth in metres).
        out_dim: features per frame.
        n_keypoints: of the spatial softmax.
        width: of the ResNet.
        crop_ratio: side of the crop over side of the image: random in training (the same for all To frames of a
            sample, so that motion stays visible), central otherwise. 76 of 84 pixels in Diffusion Policy.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        out_dim: int = 64,
        n_keypoints: int = 32,
        width: int = 64,
        crop_ratio: float = 0.905,
    ):
        super().__init__()
        self.backbone = ResNet18(in_channels, width)
        self.pool = SpatialSoftmax(self.backbone.out_channels, n_keypoints)
        self.projection = nn.Linear(2 * n_keypoints, out_dim)
        self.in_channels, self.crop_ratio, self.out_dim = in_channels, crop_ratio, out_dim

    def forward(self, x: Tensor, rng: BatchRng | None = None) -> Float[Tensor, "b to d"]:
        """Colour is scaled from 0..255 to [-1, 1] here, depth is used in metres."""
        if self.in_channels == 1 and x.ndim == 4:
            x = x.unsqueeze(-1)
        b, to, height, width = x.shape[:4]
        size = (round(height * self.crop_ratio), round(width * self.crop_ratio))
        room = torch.tensor([height - size[0], width - size[1]], device=x.device)
        if self.training and rng is not None:
            offset = (rng.rand(b, 2).to(x.device) * (room + 1)).long()
        else:
            offset = (room // 2).expand(b, 2)
        offset = offset.repeat_interleave(to, 0)
        image = crop(x.flatten(0, 1).permute(0, 3, 1, 2), offset[:, 0], offset[:, 1], size).float()
        if self.in_channels == 3:
            image = image / 127.5 - 1.0
        return self.projection(self.pool(self.backbone(image))).unflatten(0, (b, to))
