"""Exponential moving average of a policy's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Diffusion Policy's warm-up: decay_n = min(max_decay, 1 - (1 + n)^-power) after n updates.

    Args:
        model: followed; its copy ``self.model`` holds the averaged weights and is in eval mode. Weights that are not
            trained are the same tensors in both.
        power: 0.75 reaches 0.999 after 10k updates, 0.9999 after 215k.
        max_decay: upper bound.
    """

    def __init__(self, model: nn.Module, *, power: float = 0.75, max_decay: float = 0.9999):
        trained = [p.requires_grad for p in model.parameters()]
        self.model = copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad}).eval()
        self.power, self.max_decay, self.n_updates = power, max_decay, 0
        self._averaged: list[Tensor] = [p for p, t in zip(self.model.parameters(), trained, strict=True) if t]
        self._source: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.model.requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the followed weights."""
        self.n_updates += 1
        decay = min(self.max_decay, 1 - (1 + self.n_updates) ** -self.power)
        torch._foreach_lerp_(self._averaged, self._source, 1 - decay)

    def state_dict(self) -> dict[str, Tensor | int | dict]:
        """Averaged weights and the number of updates."""
        return {"model": self.model.state_dict(), "n_updates": self.n_updates}

    def load_state_dict(self, state: dict) -> None:
        """Continues from ``state_dict``."""
        self.model.load_state_dict(state["model"])
        self.n_updates = state["n_updates"]
