"""ResNet-18 and -34 (He et al. 2016), with GroupNorm, or with the frozen BatchNorm of pre-trained weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """Sixteen channels a group: BatchNorm does not go with EMA weights (Chi et al. 2023, III-B)."""
    return nn.GroupNorm(max(1, channels // 16), channels)


class FrozenBatchNorm(nn.Module):
    """BatchNorm with the statistics and the affine map that came with pre-trained weights; none of them is trained."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """(x - mean) / sqrt(var + eps) * weight + bias."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


class _BasicBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, norm: Norm):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = norm(c_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), norm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """Without pooling and classifier.

    Args:
        in_channels: 3 for colour, 1 for depth, 4 for both.
        width: channels of the first stage; 64 is the paper's.
        blocks: of each of the four stages, see BLOCKS.
        norm: channels -> normalisation.
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 64,
        blocks: Sequence[int] = BLOCKS["resnet18"],
        norm: Norm = group_norm,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, 2, 3, bias=False), norm(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(_BasicBlock(b if j else a, b, 2 if i > 0 and j == 0 else 1, norm) for j in range(blocks[i]))
                )
                for i, (a, b) in enumerate(pairwise(widths))
            )
        )
        self.out_channels = widths[-1]

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Feature map at 1/32 of the resolution."""
        return self.stages(self.stem(x))


def from_torchvision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's ResNet-18 or -34 under the names of ``ResNet``.

    The classifier is left out, and so is what R3M (Nair et al. 2022) keeps beside its "module.convnet.": the language
    encoder and its reward heads.

    Raises:
        ValueError: they are not such weights.
    """
    prefixes = [p for p in ("module.convnet.", "convnet.", "module.") if any(k.startswith(p) for k in weights)]
    prefix = prefixes[0] if prefixes else ""
    plain = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    if "conv1.weight" not in plain or "layer4.0.conv2.weight" not in plain:
        raise ValueError("are not a ResNet's in torchvision's layout (conv1, bn1, layer1.0.conv1, ...)")
    if "layer1.0.conv3.weight" in plain:
        raise ValueError("are of a ResNet with bottlenecks (50 layers or more); use ResNet-18 or -34")
    names = {"conv1": "stem.0", "bn1": "stem.1"}
    parts = {"conv1": "conv1", "bn1": "norm1", "conv2": "conv2", "bn2": "norm2", "downsample": "skip"}
    out = {}
    for key, value in plain.items():
        head, *rest = key.split(".")
        if head in names and rest[-1] != "num_batches_tracked":
            out[".".join([names[head], *rest])] = value
        elif head.startswith("layer") and rest[-1] != "num_batches_tracked":
            out[".".join(["stages", str(int(head[5:]) - 1), rest[0], parts[rest[1]], *rest[2:]])] = value
    return out


def torchvision_name(name: str) -> str:
    """What torchvision calls the weight that ``ResNet`` calls ``name``."""
    head, *rest = name.split(".")
    if head == "stem":
        return ".".join([{"0": "conv1", "1": "bn1"}[rest[0]], *rest[1:]])
    parts = {"conv1": "conv1", "norm1": "bn1", "conv2": "conv2", "norm2": "bn2", "skip": "downsample"}
    stage, block, part, *last = rest
    return ".".join([f"layer{int(stage) + 1}", block, parts[part], *last])


def numbered_name(name: str) -> str:
    """The same, where torchvision's children go by their number, as in nn.Sequential(*resnet.children())."""
    head, rest = torchvision_name(name).split(".", 1)
    number = {"conv1": 0, "bn1": 1}.get(head)
    return f"{int(head[-1]) + 3 if number is None else number}.{rest}"
