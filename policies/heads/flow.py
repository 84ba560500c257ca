"""Flow matching with straight paths (Lipman et al. 2023; pi0's action head), integrated by Euler steps.

z_t = (1 - t) A + t eps,   v = dz/dt = eps - A,   L = E ||v_theta(z_t, t | o) - v||^2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.heads.head import Head
from policies.rng import BatchRng


class FlowHead(Head):
    """Rectified flow from noise (t = 1) to the action chunk (t = 0).

    Args:
        t_distribution: of training times. "uniform", or "logit_normal" (mean 0, std 1), which prefers the middle.
        common: the rest of Head's.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        n_inference_steps: int = 10,
        t_distribution: Literal["uniform", "logit_normal"] = "uniform",
        **common: Any,
    ):
        super().__init__(network, n_inference_steps=n_inference_steps, **common)
        if t_distribution not in ("uniform", "logit_normal"):
            raise ValueError(f"t_distribution must be uniform or logit_normal, not {t_distribution!r}")
        self.t_distribution = t_distribution

    def objective(self, action: Tensor, rng: BatchRng, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Interpolant z_t, time t, velocity eps - A."""
        t = rng.rand(n) if self.t_distribution == "uniform" else torch.sigmoid(rng.randn(n))
        eps = rng.randn(n, *action.shape[1:])
        z = torch.lerp(action, eps, t[:, None, None])
        return z, t, eps - action

    def sample(self, cond: Float[Tensor, "b l c"], noise: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """K Euler steps of length 1/K."""
        k = self.n_inference_steps
        return self.integrate(cond, noise, [1.0 - i / k for i in range(k)])
