"""Fuses the encoders of all observation keys; which encoder a key gets follows from the task's shape metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data.errors import ConfigError, nearest
from data.spec import FieldSpec
from policies.encoders.image import ImageEncoder
from policies.encoders.pointcloud import PointCloudEncoder
from policies.rng import BatchRng


class StateEncoder(nn.Module):
    """An MLP on one frame of low-dimensional state, (N, D) -> (N, out_dim); no layers pass it through unchanged.

    Args:
        in_dim: D.
        hidden: widths of the layers, the last one is the output; (64, 64) in DP3.
    """

    def __init__(self, in_dim: int, *, hidden: list[int] | tuple[int, ...] = ()):
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise([in_dim, *hidden]):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.out_dim = hidden[-1] if hidden else in_dim

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Normalised state -> features."""
        return self.mlp(x)


def make_encoder(key: str, field: FieldSpec, options: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """The encoder for one observation key.

    Args:
        key: for messages.
        field: its shape and kind.
        options: keyword arguments per kind, e.g. {"pointcloud": {"out_dim": 64}}; a point cloud's ``relative_to`` is
            the ObsEncoder's and counts here as three more channels.
    """
    kwargs = dict(options.get(field.kind, {}))
    try:
        if field.kind == "state":
            return StateEncoder(field.shape[-1], **kwargs)
        if field.kind == "pointcloud":
            relative = kwargs.pop("relative_to", None) is not None
            return PointCloudEncoder(field.shape[-1] + 3 * relative, **kwargs)
        if field.kind in ("rgb", "depth"):
            encoder = ImageEncoder(3 if field.kind == "rgb" else 1, **kwargs)
            if min(field.shape[:2]) * encoder.crop_ratio <= 32:  # the spatial softmax of one cell is a constant
                raise ConfigError(f"Observation '{key}' {field.shape} is too small for ResNet-18: use 48 pixels.")
            return encoder
    except TypeError as e:
        raise ConfigError(f"encoder.{field.kind} (for observation '{key}'): {e}") from e
    raise ConfigError(f"No encoder for observation '{key}' of kind '{field.kind}'.")


class ObsEncoder(nn.Module):
    """Normalised observations (B, To, *shape) -> tokens (B, To, C): the keys' features side by side, one token a frame.

    Args:
        fields: the task's observations.
        options: see ``make_encoder``; ``pointcloud.relative_to`` see ``relative``.
    """

    def __init__(self, fields: Mapping[str, FieldSpec], options: Mapping[str, Mapping[str, Any]] | None = None):
        super().__init__()
        options = options or {}
        self.encoders = nn.ModuleDict({k: make_encoder(k, f, options) for k, f in fields.items()})
        self.out_dim = sum(int(e.out_dim) for e in self.encoders.values())  # type: ignore[arg-type]
        self.clouds = [k for k, f in fields.items() if f.kind == "pointcloud"]
        self.relative_to: str | None = options.get("pointcloud", {}).get("relative_to") if self.clouds else None
        if self.relative_to is not None and fields.get(self.relative_to, FieldSpec((0,), "", "state")).shape[0] < 3:
            raise ConfigError(
                f"encoder.pointcloud.relative_to='{self.relative_to}' must be an observation that starts with a "
                f"position (x, y, z); there are {sorted(fields)}. null turns it off."
            )

    def token_shape(self, n_obs_steps: int) -> tuple[int, int]:
        """(L, C) of what ``forward`` returns for windows of so many observations."""
        return n_obs_steps, self.out_dim

    def token_mask(self, keys: Sequence[str] | None, n_obs_steps: int) -> Bool[Tensor, "l c"]:
        """Which entries of the tokens come from ``keys``; None: all.

        Raises:
            ConfigError: a key that is not observed.
        """
        for key in keys or []:
            if key not in self.encoders:
                raise ConfigError(f"Unknown observation '{key}'. {nearest(key, list(self.encoders))}")
        parts = [torch.full((e.out_dim,), keys is None or key in keys) for key, e in self.encoders.items()]  # type: ignore[arg-type]
        return torch.cat(parts).expand(n_obs_steps, -1)

    def relative(self, obs: Mapping[str, Tensor], normalise: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Normalised clouds (B, To, P, C) with three more channels: the offset of each point from the gripper.

        Where the hand has to go depends on where things are from the hand; ten demonstrations are too few to learn
        that difference from absolute positions. DP3 leaves it to the network (``relative_to: null``).

        Args:
            obs: environment units; ``obs[relative_to][..., :3]`` is the gripper's position in the clouds' frame.
            normalise: (key, x) -> x in that key's normalised units.
        """
        if self.relative_to is None:
            return {}
        out = {}
        for key in self.clouds:
            points, gripper = normalise(key, obs[key]), obs[self.relative_to][..., None, :3]
            if points.shape[-1] > 3:  # colours have no origin
                gripper = torch.cat([gripper, obs[key][..., :1, 3:]], -1)
            out[key] = torch.cat([points, points[..., :3] - normalise(key, gripper)[..., :3]], -1)
        return out

    def forward(self, obs: Mapping[str, Tensor], rng: BatchRng | None = None) -> Float[Tensor, "b to c"]:
        """``rng`` drives the augmentation of images in training."""
        tokens = []
        for key, encoder in self.encoders.items():
            x = obs[key]
            if isinstance(encoder, ImageEncoder):
                tokens.append(encoder(x, rng))
            else:
                tokens.append(encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return torch.cat(tokens, dim=-1)
