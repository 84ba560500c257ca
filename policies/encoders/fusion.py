"""How the features of several observations become the tokens (B, L, C) that denoising networks are conditioned on."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Features = Mapping[str, Tensor]  # (B, To, C_key), or (B, 1, C_key) of what does not change within an episode


class Concat(nn.Module):
    """Side by side, one token a frame: (B, To, sum C_key).

    Args:
        widths: C_key of every key, in the order of the features.
        constant: keys with one frame; repeated in every token.
    """

    def __init__(self, widths: Mapping[str, int], constant: Collection[str] = ()):
        super().__init__()
        self.widths, self.constant = dict(widths), set(constant)

    def token_shape(self, n_obs_steps: int) -> tuple[int, int]:
        """(L, C)."""
        return n_obs_steps, sum(self.widths.values())

    def token_mask(self, keys: Collection[str], n_obs_steps: int) -> Bool[Tensor, "l c"]:
        """Which entries of the tokens are features of ``keys``."""
        row = torch.cat([torch.full((width,), key in keys) for key, width in self.widths.items()])
        return row.expand(n_obs_steps, -1).clone()

    def forward(self, features: Features, n_obs_steps: int) -> Float[Tensor, "b l c"]:
        """Tokens."""
        return torch.cat([features[key].expand(-1, n_obs_steps, -1) for key in self.widths], -1)


class Gated(Concat):
    """Concat, where the force features also say how much of every other feature counts: x * 2 sigmoid(W f + b).

    This is FiLM (Perez et al. 2018) with a scale through a sigmoid and no shift. W and b start at zero, so that it
    starts as Concat. A gate multiplies whatever else is seen; it cannot be outvoted by the number of image features.

    Args:
        widths, constant: see Concat.
        force: the keys that gate.
    """

    def __init__(self, widths: Mapping[str, int], constant: Collection[str], force: Collection[str]):
        super().__init__(widths, constant)
        self.force = [key for key in self.widths if key in force]
        self.others = [key for key in self.widths if key not in force]
        if not self.force or not self.others:
            raise ValueError("fusion=gated needs an observation of kind force, and one of another kind")
        n_force, n_others = (sum(self.widths[key] for key in keys) for keys in (self.force, self.others))
        self.gate = nn.Linear(n_force, n_others)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, features: Features, n_obs_steps: int) -> Float[Tensor, "b l c"]:
        """Tokens."""
        gates = 2 * torch.sigmoid(self.gate(torch.cat([features[key] for key in self.force], -1)))
        parts = gates.split([self.widths[key] for key in self.others], -1)
        scaled = {key: features[key] * part for key, part in zip(self.others, parts, strict=True)}
        return super().forward({**features, **scaled}, n_obs_steps)


class Tokens(nn.Module):
    """A token of its own for every key and frame, all of one width: (B, To * n_changing + n_constant, dim).

    Each is a linear map of the key's features, normalised, plus an embedding of the key and a sinusoid of the frame's
    age. Frame by frame, oldest first, the keys in order; then the keys that do not change.

    Args:
        widths, constant: see Concat.
        dim: C, even.
    """

    frequencies: Tensor

    def __init__(self, widths: Mapping[str, int], constant: Collection[str] = (), *, dim: int = 64):
        super().__init__()
        if dim % 2 or dim < 4:
            raise ValueError(f"token_dim={dim} must be even, at least 4")
        self.changing = [key for key in widths if key not in constant]
        self.constant = [key for key in widths if key in constant]
        self.dim = dim
        self.project = nn.ModuleDict(
            {k: nn.Sequential(nn.Linear(n, dim), nn.LayerNorm(dim)) for k, n in widths.items()}
        )
        self.keys = nn.Parameter(0.02 * torch.randn(len(widths), dim))
        self.register_buffer("frequencies", 10_000.0 ** -torch.linspace(0, 1, dim // 2), persistent=False)

    def token_shape(self, n_obs_steps: int) -> tuple[int, int]:
        """(L, C)."""
        return n_obs_steps * len(self.changing) + len(self.constant), self.dim

    def token_mask(self, keys: Collection[str], n_obs_steps: int) -> Bool[Tensor, "l c"]:
        """Which entries of the tokens are features of ``keys``: whole tokens."""
        rows = [key in keys for key in self.changing] * n_obs_steps + [key in keys for key in self.constant]
        return torch.tensor(rows)[:, None].expand(-1, self.dim).clone()

    def forward(self, features: Features, n_obs_steps: int) -> Float[Tensor, "b l c"]:
        """Tokens."""
        embedding = dict(zip([*self.changing, *self.constant], self.keys, strict=True))
        each = {key: self.project[key](features[key]) + embedding[key] for key in embedding}
        parts = [each[key] for key in self.constant]
        if self.changing:
            age = torch.arange(n_obs_steps - 1, -1, -1, device=self.frequencies.device)
            angle = age[:, None] * self.frequencies
            frames = torch.stack([each[key] for key in self.changing], 2)  # (B, To, K, C)
            frames = frames + torch.cat([angle.sin(), angle.cos()], 1)[:, None]
            parts = [frames.flatten(1, 2), *parts]
        return torch.cat(parts, 1)
