"""Augmentation of images on their device: crops, random shifts, colour jitter; the same for all frames of a sample."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from policies.rng import BatchRng

_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


def crop(x: Shaped[Tensor, "n c h w"], top: Tensor, left: Tensor, size: tuple[int, int]) -> Shaped[Tensor, "n c h2 w2"]:
    """One window per image; top and left (N,) in pixels."""
    rows = top[:, None] + torch.arange(size[0], device=x.device)
    cols = left[:, None] + torch.arange(size[1], device=x.device)
    n = torch.arange(len(x), device=x.device)
    return x.permute(0, 2, 3, 1)[n[:, None, None], rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def shift(
    x: Shaped[Tensor, "n c h w"], offset: Int[Tensor, "2 n"], pad: int, size: tuple[int, int] | None = None
) -> Shaped[Tensor, "n c h2 w2"]:
    """The window at ``offset`` (rows, columns; from 0) of every image, its border repeated ``pad`` pixels outwards.

    Args:
        x: images.
        offset: in pixels of the padded image.
        pad: see above.
        size: of the window; None for the image's own.
    """
    height, width = x.shape[-2:]
    rows = torch.arange(-pad, height + pad, device=x.device).clamp(0, height - 1)
    cols = torch.arange(-pad, width + pad, device=x.device).clamp(0, width - 1)
    return crop(x[:, :, rows][:, :, :, cols], offset[0], offset[1], size or (height, width))


def random_shift(
    x: Shaped[Tensor, "b to h w *c"], pad: int, generator: torch.Generator | None = None
) -> Shaped[Tensor, "b to h w *c"]:
    """Every sample moved by up to ``pad`` pixels, all its frames alike; what comes in repeats the border.

    DrQ (Yarats et al. 2021): critics on pixels overfit without it.
    """
    b, to = x.shape[:2]
    offset = torch.randint(2 * pad + 1, (2, b), generator=generator).repeat_interleave(to, 1).to(x.device)
    if x.ndim == 4:
        return shift(x.flatten(0, 1)[:, None], offset, pad)[:, 0].unflatten(0, (b, to))
    return shift(x.flatten(0, 1).permute(0, 3, 1, 2), offset, pad).permute(0, 2, 3, 1).unflatten(0, (b, to))


class ColourJitter:
    """Random brightness, contrast, saturation and hue, in this order, of colours in [0, 1].

    The first three are torchvision's: x is blended with black, with its mean luma, with its own luma, by a factor from
    [1 - s, 1 + s]. Hue turns the chroma plane of YIQ by up to s of a whole turn, a linear map of the colours.

    Args:
        brightness, contrast, saturation: s >= 0; 0 is off.
        hue: s in [0, 0.5]; 0 is off.
    """

    def __init__(self, *, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0):
        self.strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        for name, strength in self.strengths.items():
            if not 0 <= strength <= (0.5 if name == "hue" else math.inf):
                raise ValueError(f"jitter.{name}={strength} must be at least 0 (hue: at most 0.5)")

    def __bool__(self) -> bool:
        return any(self.strengths.values())

    def __call__(self, x: Float[Tensor, "b to 3 h w"], rng: BatchRng) -> Float[Tensor, "b to 3 h w"]:
        """Draws one number per sample and strength that is not 0."""
        factors = {
            name: strength * (2 * rng.rand(len(x)).to(x.device) - 1)
            for name, strength in self.strengths.items()
            if strength > 0
        }
        return jitter(x, factors)


def jitter(x: Float[Tensor, "b to 3 h w"], factors: dict[str, Float[Tensor, " b"]]) -> Float[Tensor, "b to 3 h w"]:
    """``ColourJitter`` with the drawn deviations (from a factor of 1, or of hue in turns), by name."""
    luma = x.new_tensor(_GREY).view(3, 1, 1)
    wide = {name: value.view(-1, 1, 1, 1, 1) for name, value in factors.items()}
    if "brightness" in wide:
        x = (x * (1 + wide["brightness"])).clamp(0, 1)
    if "contrast" in wide:
        mean = (x * luma).sum(2, keepdim=True).mean((1, 3, 4), keepdim=True)
        x = (mean + (x - mean) * (1 + wide["contrast"])).clamp(0, 1)
    if "saturation" in wide:
        grey = (x * luma).sum(2, keepdim=True)
        x = (grey + (x - grey) * (1 + wide["saturation"])).clamp(0, 1)
    if "hue" in factors:
        x = torch.einsum("bij,btjhw->btihw", hue_rotation(factors["hue"]), x).clamp(0, 1)
    return x


def hue_rotation(turns: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    """Maps of RGB that turn the IQ plane of YIQ and keep Y."""
    grey = torch.tensor(_GREY, dtype=torch.float64)
    yiq = torch.stack([grey, torch.tensor([0.5959, -0.2746, -0.3213]), torch.tensor([0.2115, -0.5227, 0.3112])])
    yiq[1:] -= yiq[1:].mean(1, keepdim=True)  # the published digits leave greys not quite without chroma
    angle = 2 * math.pi * turns.double().cpu()
    turn = torch.eye(3, dtype=torch.float64).repeat(len(turns), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    return (torch.linalg.inv(yiq) @ turn @ yiq).to(turns)
