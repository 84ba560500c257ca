"""Temporal ensembling (ACT, Zhao et al. 2023): the mean of all chunks that have an action for a control step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def ensemble(
    chunks: Sequence[Float[Tensor, "b h da"]], ages: Sequence[int], decay: float = 0.01
) -> Float[Tensor, "b h da"]:
    """A chunk in the newest one's place whose actions are means with weights exp(-decay i), i = 0 for the oldest chunk.

    Args:
        chunks: the oldest first.
        ages: control steps since each was sampled, falling to 0; at age n a chunk's action i + n is for step i.
        decay: ACT's m, 0.01 there; the larger, the more an old chunk counts.
    """
    horizon = chunks[-1].shape[1]
    total, weight = torch.zeros_like(chunks[-1]), torch.zeros(horizon, 1).to(chunks[-1])
    seen = torch.zeros_like(weight)  # chunks that have counted at each step
    for chunk, age in zip(chunks, ages, strict=True):
        n = horizon - age
        if n > 0:
            w = torch.exp(-decay * seen[:n])
            total[:, :n] += w * chunk[:, age:]
            weight[:n] += w
            seen[:n] += 1
    return total / weight
