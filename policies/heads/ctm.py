"""Consistency trajectory models (Kim et al. 2024) for action chunks (Consistency Policy, Prasad et al. 2024).

From any point of a path to any later one. On z_t = alpha_t A + sigma_t eps, with x = z / alpha and r = sigma / alpha
(the papers' x and t, where alpha is 1) and g the denoiser's estimate of A from a network that sees t and s,

    G(x, t, s) = (r_s / r_t) x + (1 - r_s / r_t) g(x, t, s)
    L_CTM = d( G_sg(G(z_t, t, s), s, 0), G_sg(G_sg(z_u, u, s), s, 0) ),      s <= u < t, z_u on the path of z_t
    L_DSM = d( G(z_t, t, 0), A ),      L = L_CTM + dsm L_DSM
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.heads.consistency import Ask, ConsistencyHead, Level
from policies.heads.head import Head
from policies.rng import BatchRng


class TrajectoryHead(ConsistencyHead):
    """The network sees (t, s).

    Args:
        skip: levels from t to u; 1 in Consistency Policy.
        dsm: weight of L_DSM; 1 in Consistency Policy. On a mixture of two modes single jumps then missed the rarer one.
        common: the rest of ConsistencyHead's.
    """

    n_times = 2

    def __init__(
        self,
        network: nn.Module,
        *,
        denoiser: Head,
        n_levels: int = 80,
        skip: int = 1,
        dsm: float = 0.0,
        **common: Any,
    ):
        super().__init__(network, denoiser=denoiser, n_levels=n_levels, skip=skip, **common)
        self.dsm = dsm

    def jump(self, z: Float[Tensor, "n h da"], now: Level, then: Level, ask: Ask) -> Float[Tensor, "n h da"]:
        """alpha_s G: DDIM's step with g in the place of the clean chunk."""
        (t, alpha, sigma), (s, alpha_s, sigma_s) = now, then
        both: Ask = lambda x, when: ask(x, torch.stack([when, torch.as_tensor(s).to(when).expand_as(when)], 1))  # noqa: E731
        clean = self.denoised(z, t, both)
        if not isinstance(sigma, Tensor):
            return alpha_s * clean + sigma_s / sigma * (z - alpha * clean)
        moved = alpha_s * clean + sigma_s / sigma.clamp(min=1e-12) * (z - alpha * clean)
        return torch.where(sigma > 0, moved, z)

    def to_data(self, z: Float[Tensor, "n h da"], now: Level, ask: Ask) -> Float[Tensor, "n h da"]:
        """G(z_t, t, 0)."""
        return self.jump(z, now, (0.0, 1.0, 0.0), ask)

    def error(self, action: Float[Tensor, "n h da"], prepared: Tensor, rng: BatchRng) -> Float[Tensor, "n h da"]:
        """By element, of L_CTM and L_DSM."""
        n = len(action)
        eps = rng.randn(n, *action.shape[1:])
        i = rng.randint(self.n_levels, n)
        j = (i + 1 + (rng.rand(n) * (self.n_levels - i)).long()).clamp(max=self.n_levels)
        now, via, then = self.level(i), self.level(torch.minimum(i + self.skip, j)), self.level(j)
        z, ask, still = self.noisy(action, eps, now), self.ask(prepared), self.still(prepared)
        with torch.no_grad():
            ahead = self.ahead(action, eps, z, now, via)
            goal = self.to_data(self.jump(ahead, via, then, still), then, still)
        error = self.distance(self.to_data(self.jump(z, now, then, ask), then, still) - goal)
        if self.dsm:
            error = error + self.dsm * self.distance(self.to_data(z, now, ask) - action)
        return error
