"""Image encoders: augmentation, a backbone, pooling. By default Diffusion Policy's (Chi et al. 2023, III-B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from policies.encoders.augment import ColourJitter, crop, shift
from policies.encoders.pretrained import load_pretrained
from policies.encoders.resnet import BLOCKS, ResNet
from policies.encoders.vit import ViT
from policies.rng import BatchRng

BACKBONES = (*BLOCKS, "vit", "pretrained")


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


class ImageEncoder(nn.Module):
    """(B, To, H, W, C) -> (B, To, out_dim).

    Args:
        in_channels: 3 (uint8 or float colour in 0..255), 1 (depth in metres) or 4 (both).
        backbone: "resnet18", "resnet34" (GroupNorm, spatial softmax), "vit" (mean of the tokens) or "pretrained".
        out_dim: features per frame.
        n_keypoints: of the spatial softmax.
        width: of the ResNet.
        crop_ratio: side of the crop over side of the image: random in training (the same for all To frames of a
            sample, so that motion stays visible), central otherwise. 76 of 84 pixels in Diffusion Policy.
        shift: pixels that images are moved by at random in training (DrQ), their border repeated.
        jitter: strengths of ColourJitter, in training.
        vit: options of ViT.
        path: of pre-trained weights, see load_pretrained.
        frozen: whether pre-trained weights stay as they are.
        architecture: of a pre-trained backbone whose weights come from a checkpoint; written there, not by hand.
        twin: an encoder whose pre-trained, frozen backbone serves this one as well.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        backbone: str = "resnet18",
        out_dim: int = 64,
        n_keypoints: int = 32,
        width: int = 64,
        crop_ratio: float = 0.905,
        shift: int = 0,
        jitter: Mapping[str, float] | None = None,
        vit: Mapping[str, int] | None = None,
        path: str | None = None,
        frozen: bool = True,
        architecture: Mapping[str, Any] | None = None,
        twin: ImageEncoder | None = None,
    ):
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"backbone={backbone} must be one of {', '.join(BACKBONES)}")
        if backbone == "pretrained" and in_channels != 3:
            raise ValueError("backbone=pretrained sees colour only: leave with_depth off, and depth to a resnet18")
        if not 0 < crop_ratio <= 1 or shift < 0:
            raise ValueError(f"crop_ratio={crop_ratio} must lie in (0, 1], shift={shift} be at least 0")
        self.jitter = ColourJitter(**(jitter or {}))
        if self.jitter and in_channels == 1:
            raise ValueError("jitter is of colours; depth has none")
        self.in_channels, self.crop_ratio, self.shift, self.out_dim = in_channels, crop_ratio, shift, out_dim
        self.resolved: dict[str, Any] = {}  # options that a checkpoint adds to these
        self.frozen = backbone == "pretrained" and frozen
        self.pool: nn.Module = nn.Identity()
        if backbone == "pretrained":
            body = load_pretrained(path, architecture) if twin is None else twin.backbone
            self.resolved = {"architecture": body.architecture}
            self.backbone, width = body.requires_grad_(False) if frozen else body, body.out_channels
        elif backbone == "vit":
            self.backbone = ViT(in_channels, **(vit or {}))
            width = self.backbone.out_channels
        else:
            self.backbone = ResNet(in_channels, width, BLOCKS[backbone])
            self.pool, width = SpatialSoftmax(self.backbone.out_channels, n_keypoints), 2 * n_keypoints
        self.projection = nn.Linear(width, out_dim)

    def train(self, mode: bool = True) -> ImageEncoder:
        """What is frozen stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _window(self, x: Shaped[Tensor, "b to c h w"], rng: BatchRng | None) -> Shaped[Tensor, "n c h2 w2"]:
        """The crop of every frame, shifted; ``rng`` draws one for each sample, None takes the central one."""
        b, to, _, height, width = x.shape
        size = (round(height * self.crop_ratio), round(width * self.crop_ratio))
        room = torch.tensor([height - size[0], width - size[1]], device=x.device)
        pad = 0 if rng is None else self.shift
        offset = (room // 2).expand(b, 2)
        if rng is not None:
            offset = (rng.rand(b, 2).to(x.device) * (room + 1)).long()
            if pad:
                offset = offset + rng.randint(2 * pad + 1, b, 2).to(x.device)
        offset = offset.repeat_interleave(to, 0).T
        if pad:
            return shift(x.flatten(0, 1), offset, pad, size)
        return crop(x.flatten(0, 1), offset[0], offset[1], size)

    def forward(self, x: Tensor, rng: BatchRng | None = None, depth: Tensor | None = None) -> Float[Tensor, "b to d"]:
        """Colour is scaled from 0..255 to [-1, 1] here, depth is used in metres.

        Args:
            x: (B, To, H, W, 3), or (B, To, H, W) of depth.
            rng: drives the augmentation in training.
            depth: (B, To, H, W), the fourth channel.
        """
        rng = rng if self.training else None
        image = x.unsqueeze(2) if x.ndim == 4 else x.permute(0, 1, 4, 2, 3)
        if depth is not None:
            image = torch.cat([image.to(depth.dtype), depth.unsqueeze(2)], 2)
        image = self._window(image, rng).float()
        if self.in_channels >= 3:
            colour = image[:, :3]
            if rng is not None and self.jitter:
                colour = 255.0 * self.jitter((colour / 255.0).unflatten(0, x.shape[:2]), rng).flatten(0, 1)
            colour = colour / 127.5 - 1.0
            image = colour if self.in_channels == 3 else torch.cat([colour, image[:, 3:]], 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(image)
        return self.projection(self.pool(features)).unflatten(0, x.shape[:2])
