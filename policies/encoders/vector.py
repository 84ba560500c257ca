"""Encoders of plain vectors: states, goals, and embeddings of instructions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data.errors import ConfigError


class StateEncoder(nn.Module):
    """An MLP on one frame of low-dimensional state, (..., D) -> (..., out_dim); no layers pass it through unchanged.

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

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... c"]:
        """Normalised state -> features."""
        return self.mlp(x)


class LanguageEncoder(nn.Module):
    """A frozen text encoder's embedding through one trained layer; embeddings come in all scales, so LayerNorm first.

    Args:
        in_dim: D of the observation.
        out_dim: features.
        path: a .npy file or a .safetensors file of one tensor: (D,) for one instruction, or (N, D), of which the
            observation, then one integer, chooses a row. null: the observation is the embedding.
        table: (N, D) in checkpoints, which hold the table among their weights.
    """

    table: Tensor | None

    def __init__(self, in_dim: int, *, out_dim: int = 64, path: str | None = None, table: Sequence[int] | None = None):
        super().__init__()
        embeddings = None
        if table is not None:
            embeddings = torch.zeros(*table)
        elif path is not None:
            embeddings = read_embeddings(Path(path))
        if embeddings is not None and in_dim != 1:
            raise ValueError(f"path={path} holds the embeddings, so the observation must be their number, (1,)")
        self.register_buffer("table", embeddings)
        self.resolved = {} if embeddings is None else {"table": list(embeddings.shape)}
        dim = in_dim if embeddings is None else embeddings.shape[1]
        self.project = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out_dim))
        self.out_dim = out_dim

    def forward(self, x: Shaped[Tensor, "... d"]) -> Float[Tensor, "... c"]:
        """An embedding, or the number of one."""
        return self.project(x if self.table is None else self.table[x[..., 0].long()])


def read_embeddings(path: Path) -> Float[Tensor, "n d"]:
    """The array of a .npy or .safetensors file, (N, D).

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            if len(tensors) != 1:
                raise ConfigError(f"encoder.language.path={path} holds {sorted(tensors)}; one tensor was expected.")
            array = next(iter(tensors.values())).float()
        else:
            array = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError, SafetensorError) as e:
        raise ConfigError(f"encoder.language.path={path} cannot be read: {e}.") from e
    if array.ndim not in (1, 2) or not array.isfinite().all():
        raise ConfigError(f"encoder.language.path={path} is {tuple(array.shape)}; expected finite (D,) or (N, D).")
    return array.reshape(-1, array.shape[-1])
