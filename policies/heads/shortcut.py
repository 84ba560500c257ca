"""Shortcut models (Frans et al. 2025): one network for 1, 2, 4, ... 128 steps, trained without a teacher.

s(z_t, t, d) is the direction that a step of length d takes: z_{t-d} = z_t - d s. With d = 0 it is the velocity
eps - A of flow matching; a step of 2 d must arrive where two steps of d do (eq. 4):

    s(z_t, t, 2d) = ( s(z_t, t, d) + s(z_t - d s(z_t, t, d), t - d, d) ) / 2
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.heads.head import Head
from policies.rng import BatchRng


class ShortcutHead(Head):
    """The network sees (t, d).

    Args:
        n_inference_steps: a power of two, at most ``max_steps``.
        max_steps: the finest division, a power of two; a step half as long counts as d = 0.
        consistency_ratio: part of the rows trained on two steps making one.
        common: the rest of Head's.
    """

    n_times = 2

    def __init__(
        self,
        network: nn.Module,
        *,
        n_inference_steps: int = 1,
        max_steps: int = 128,
        consistency_ratio: float = 0.25,
        **common: Any,
    ):
        super().__init__(network, n_inference_steps=n_inference_steps, **common)
        if max_steps & (max_steps - 1) or n_inference_steps & (n_inference_steps - 1) or n_inference_steps > max_steps:
            raise ValueError(
                f"n_inference_steps={n_inference_steps} and max_steps={max_steps} must be powers of two, the first one "
                "not the larger"
            )
        self.max_steps, self.consistency_ratio = max_steps, consistency_ratio

    def error(self, action: Float[Tensor, "n h da"], prepared: Tensor, rng: BatchRng) -> Float[Tensor, "n h da"]:
        """Squared error against the velocity, or against the mean of two half steps."""
        n, levels = len(action), self.max_steps.bit_length() - 1
        eps = rng.randn(n, *action.shape[1:])
        twice = rng.rand(n) < self.consistency_ratio
        step = 0.5 ** rng.randint(max(levels, 1), n)  # of both half steps together: 1, 1/2, .. 2 / max_steps
        t = rng.rand(n)
        t = torch.where(twice, (torch.floor(t / step) + 1) * step, t).clamp(max=1.0)  # where a sampler may stand
        step = torch.where(twice, step, 0.0)
        z, target = torch.lerp(action, eps, t[:, None, None]), eps - action
        if twice.any():
            target[twice] = self.two_steps(z[twice], t[twice], step[twice] / 2, prepared[twice]).to(target.dtype)
        return (self.network(z, torch.stack([t, step], 1), prepared) - target).square()

    @torch.no_grad()
    def two_steps(self, z: Tensor, t: Tensor, half: Tensor, prepared: Tensor) -> Tensor:
        """The mean direction of two steps of length ``half``."""
        named = torch.where(half < 1.0 / self.max_steps, 0.0, half)
        first = self.network(z, torch.stack([t, named], 1), prepared)
        second = self.network(z - half[:, None, None] * first, torch.stack([t - half, named], 1), prepared)
        return (first + second) / 2

    def sample(self, cond: Float[Tensor, "b l c"], noise: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """K steps of length 1 / K."""
        k = self.n_inference_steps
        return self.integrate(cond, noise, [(1.0 - i / k, 1.0 / k) for i in range(k)])
