"""The encoders of Diffusion Policy's image policies, written down once more under the published names."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.policies.diffusion_policy_parts import IMAGENET

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class Block(nn.Module):
    def __init__(self, a, b, stride, norm):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), norm(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), norm(b)
        self.downsample = None if a == b else nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), norm(b))

    def forward(self, x):
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (h + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """As torchvision's, up to the classifier."""

    def __init__(self, name, group):
        super().__init__()
        norm: Callable[[int], nn.Module] = (lambda n: nn.GroupNorm(n // 16, n)) if group else nn.BatchNorm2d
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        a = 64
        for i, (b, n) in enumerate(zip((64, 128, 256, 512), BLOCKS[name], strict=True)):
            blocks = [Block(a if j == 0 else b, b, 2 if i and j == 0 else 1, norm) for j in range(n)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            a = b

    def forward(self, x):
        return nn.Sequential(*self.children())(x).mean((2, 3))


class Resnet18Conv(nn.Module):
    def __init__(self, group):
        super().__init__()
        self.nets = nn.Sequential(*ResNet("resnet18", group).children())

    def forward(self, x):
        return self.nets(x)


class Keypoints(nn.Module):
    def __init__(self, h, w):
        super().__init__()
        self.nets = nn.Conv2d(512, 32, 1)
        self.register_buffer("temperature", torch.ones(1))
        y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        self.register_buffer("pos_x", x.reshape(1, -1))
        self.register_buffer("pos_y", y.reshape(1, -1))

    def forward(self, x):
        p = (self.nets(x).flatten(2) / self.temperature).softmax(-1)
        return torch.stack([(p * self.pos_x).sum(-1), (p * self.pos_y).sum(-1)], -1)  # (N, K, 2)


class VisualCore(nn.Module):
    def __init__(self, size, group):
        super().__init__()
        self.backbone, self.pool = Resnet18Conv(group), Keypoints(*(-(-n // 32) for n in size))
        self.nets = nn.Sequential(self.backbone, self.pool, nn.Flatten(), nn.Linear(64, 64))

    def forward(self, x):
        return self.nets(x)


def central(x, size):
    """torchvision's crop."""
    top, left = (round((n - m) / 2) for n, m in zip(x.shape[-2:], size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]


class Robomimic(nn.Module):
    """robomimic's ObservationEncoder of colours and vectors."""

    def __init__(self, policy):
        super().__init__()
        self.crop, self.obs_nets, self.vectors = policy["crop_shape"], nn.ModuleDict(), []
        self.fields = policy["shape_meta"]["obs"]
        for name, field in self.fields.items():
            if field.get("type") == "rgb":
                core = VisualCore(self.crop or field["shape"][1:], policy["obs_encoder_group_norm"])
                self.obs_nets[name] = core.eval()

    def forward(self, obs):
        out = []
        for name in self.fields:
            x = obs[name]
            if name in self.obs_nets:
                x = self.obs_nets[name](central(x, self.crop) if self.crop else x).relu()
            out.append(x)
        return torch.cat(out, -1)


class MultiImage(nn.Module):
    """MultiImageObsEncoder.

    Args:
        options: cfg.policy.obs_encoder.
        resnet: (name, GroupNorm or not) -> images to features.
        transform: (images, options) -> what the network sees of them.
    """

    def __init__(self, options, resnet=ResNet, transform=None):
        super().__init__()
        self.options, self.key_model_map = options, nn.ModuleDict()
        self.transform = transform or seen
        fields = options["shape_meta"]["obs"]
        self.images = sorted(name for name, field in fields.items() if field.get("type") == "rgb")
        self.vectors = sorted(set(fields) - set(self.images))
        for name in ["rgb"] if options["share_rgb_model"] else self.images:
            group = options["use_group_norm"] and not options["share_rgb_model"]
            self.key_model_map[name] = resnet(options["rgb_model"]["name"], group).eval()
        self._dummy_variable = nn.Parameter(torch.empty(0))

    def forward(self, obs):
        nets = {name: self.key_model_map["rgb" if self.options["share_rgb_model"] else name] for name in self.images}
        features = [net(self.transform(obs[name], self.options)) for name, net in nets.items()]
        return torch.cat(features + [obs[name] for name in self.vectors], -1)


def seen(x, options):
    if options["resize_shape"]:
        x = F.interpolate(x, options["resize_shape"], mode="bilinear")
    if options["crop_shape"]:
        x = central(x, options["crop_shape"])
    if options["imagenet_norm"]:
        x = (x - torch.tensor(IMAGENET["mean"])[:, None, None]) / torch.tensor(IMAGENET["std"])[:, None, None]
    return x


def width(policy):
    """Features of a frame."""
    fields = policy["shape_meta"]["obs"].values()
    image = 512 if "obs_encoder" in policy else 64
    return sum(image if field.get("type") == "rgb" else field["shape"][0] for field in fields)
