"""Consistency flow matching (Yang et al. 2024) for action chunks (FlowPolicy, Zhang et al. 2025).

The straight path is cut into segments. From any point of one, going on at the network's velocity must lead to the same
end of the segment as from a point a little further on the same path:

    f(t, z_t) = z_t - (t - t_end) v_theta(z_t, t),      v = eps - A
    L = || f(t, z_t) - sg f(t', z_t') ||^2 + alpha || v_theta(z_t, t) - sg v_theta(z_t', t') ||^2,    t' = t - delta

Where t' is beyond the segment, the true end takes the place of f(t', z_t'), and v's that of v_theta(z_t', t').
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.heads.head import Head
from policies.rng import BatchRng


class FlowPolicyHead(Head):
    """Sampled like a flow, by Euler steps; straight enough for one.

    Args:
        n_segments: of the path.
        delta: distance of the two points.
        alpha: weight of the velocities' agreement.
        common: the rest of Head's.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        n_inference_steps: int = 1,
        n_segments: int = 2,
        delta: float = 0.01,
        alpha: float = 1e-5,
        **common: Any,
    ):
        super().__init__(network, n_inference_steps=n_inference_steps, **common)
        self.n_segments, self.delta, self.alpha = n_segments, delta, alpha

    def error(self, action: Float[Tensor, "n h da"], prepared: Tensor, rng: BatchRng) -> Float[Tensor, "n h da"]:
        """Disagreement about the segment's end, and about the velocity."""
        n = len(action)
        eps, t = rng.randn(n, *action.shape[1:]), 1 - rng.rand(n)  # (0, 1]
        later = (t - self.delta).clamp(min=0)
        end = (torch.ceil(t * self.n_segments) - 1) / self.n_segments

        def at(time: Tensor) -> Tensor:
            return torch.lerp(action, eps, time[:, None, None])

        v = self.network(at(t), t, prepared)
        with torch.no_grad():
            inside = (later > end)[:, None, None]
            v_later = torch.where(inside, self.network(at(later), later, prepared), eps - action)
            goal = torch.where(inside, at(later) - (later - end)[:, None, None] * v_later, at(end))
        reached = at(t) - (t - end)[:, None, None] * v
        return (reached - goal).square() + self.alpha * (v - v_later).square()

    def sample(self, cond: Float[Tensor, "b l c"], noise: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """K Euler steps of length 1 / K."""
        k = self.n_inference_steps
        return self.integrate(cond, noise, [1.0 - i / k for i in range(k)])
