"""Image encoders: augmentation, a backbone, pooling. By default Diffusion Policy's (Chi et al. 2023, III-B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from policies.encoders.augment import ColourJitter, crop, shift
from policies.encoders.pretrained import load_pretrained
from policies.encoders.resnet import BLOCKS, FrozenBatchNorm, Norm, ResNet, group_norm
from policies.encoders.vit import ViT
from policies.rng import BatchRng

BACKBONES = (*BLOCKS, "vit", "pretrained")
NORMS: dict[str, Norm] = {"group": group_norm, "frozen_batch": FrozenBatchNorm}


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
        backbone: "resnet18", "resnet34" (with ``pool``), "vit" (mean of the tokens) or "pretrained".
        out_dim: features per frame; None for the backbone's own, without a layer behind it.
        relu: of the features, as in LeRobot.
        pool: of the ResNet: "keypoints" (spatial softmax) or "mean", as in the original ResNet.
        n_keypoints: of the spatial softmax.
        width: of the ResNet.
        norm: of the ResNet: "group", or "frozen_batch" for weights that were trained with BatchNorm.
        normalised: the policy's normaliser scales the colours, instead of this encoder.
        resize: (height, width) in pixels that images are brought to first.
        antialias: of ``resize``.
        crop: (height, width) of the crop in pixels, instead of crop_ratio.
        crop_ratio: side of the crop over side of the image: random in training (the same for all To frames of a
            sample, so that motion stays visible), central otherwise, to the pixel as torchvision's. 76 of 84 pixels in
            Diffusion Policy.
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
        out_dim: int | None = 64,
        relu: bool = False,
        pool: str = "keypoints",
        n_keypoints: int = 32,
        width: int = 64,
        norm: str = "group",
        normalised: bool = False,
        resize: Sequence[int] | None = None,
        antialias: bool = True,
        crop: Sequence[int] | None = None,
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
        if norm not in NORMS:
            raise ValueError(f"norm={norm} must be one of {', '.join(NORMS)}")
        if pool not in ("keypoints", "mean"):
            raise ValueError(f"pool={pool} must be keypoints or mean")
        self.jitter = ColourJitter(**(jitter or {}))
        if self.jitter and in_channels == 1:
            raise ValueError("jitter is of colours; depth has none")
        if self.jitter and normalised:
            raise ValueError("jitter is of colours in 0..255, and these are normalised")
        self.normalised, self.relu = normalised, relu
        self.resize, self.crop = _pair(resize, "resize"), _pair(crop, "crop")
        self.in_channels, self.crop_ratio, self.shift, self.antialias = in_channels, crop_ratio, shift, antialias
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
            self.backbone = ResNet(in_channels, width, BLOCKS[backbone], NORMS[norm])
            width = self.backbone.out_channels
            if pool == "keypoints":
                self.pool, width = SpatialSoftmax(width, n_keypoints), 2 * n_keypoints
            else:
                self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_dim = out_dim or width
        self.projection = nn.Linear(width, out_dim) if out_dim else nn.Identity()

    def train(self, mode: bool = True) -> ImageEncoder:
        """What is frozen stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def window(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the backbone sees of an image.

        Raises:
            ValueError: the crop is larger than the image.
        """
        height, width = self.resize or (height, width)
        size = self.crop or (round(height * self.crop_ratio), round(width * self.crop_ratio))
        if size[0] > height or size[1] > width:
            raise ValueError(f"crop={list(size)} is larger than the image, {[height, width]}")
        return size

    def _window(self, x: Shaped[Tensor, "b to c h w"], rng: BatchRng | None) -> Shaped[Tensor, "n c h2 w2"]:
        """The crop of every frame, shifted; ``rng`` draws one for each sample, None takes the central one."""
        size = self.window(*x.shape[-2:])
        if self.resize is not None:
            frames = F.interpolate(x.flatten(0, 1).float(), self.resize, mode="bilinear", antialias=self.antialias)
            x = frames.unflatten(0, x.shape[:2])
        b, to, _, height, width = x.shape
        room = torch.tensor([height - size[0], width - size[1]], device=x.device)
        pad = 0 if rng is None else self.shift
        centre = torch.tensor([round((height - size[0]) / 2), round((width - size[1]) / 2)], device=x.device)
        offset = centre.expand(b, 2)
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
            if not self.normalised:
                colour = colour / 127.5 - 1.0
            image = colour if self.in_channels == 3 else torch.cat([colour, image[:, 3:]], 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(image)
        out = self.projection(self.pool(features))
        return (F.relu(out) if self.relu else out).unflatten(0, x.shape[:2])


def _pair(size: Sequence[int] | None, name: str) -> tuple[int, int] | None:
    if size is None:
        return None
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name}={list(size)} must be a height and a width in pixels")
    return int(size[0]), int(size[1])
