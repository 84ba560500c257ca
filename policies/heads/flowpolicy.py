"""Consistency flow matching (Yang et al. 2024) for action chunks (FlowPolicy, Zhang et al. 2025).

The straight path is cut into segments. From any point of one, going on at the network's velocity must lead to the same
end of the segment as from a point a little further on the same path:

    f(t, z_t) = z_t - (t - t_end) v_theta(z_t, t),      v = eps - A
    L = || f(t, z_t) - sg f(t', z_t') ||^2 + alpha || v_theta(z_t, t) - sg v_theta(z_t', t') ||^2,    t' = t - delta

Where t' is beyond the segment, the true end takes the place of f(t', z_t'), and v's that of v_theta(z_t', t').
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.heads.flow import FlowHead
from policies.rng import BatchRng


class FlowPolicyHead(FlowHead):
    """Sampled like a flow, by Euler steps; straight enough for one.

    Args:
        n_segments: of the path.
        delta: distance of the two points.
        alpha: weight of the velocities' agreement.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        n_inference_steps: int = 1,
        noise_per_obs: int = 1,
        mask_padding: bool = False,
        n_segments: int = 2,
        delta: float = 0.01,
        alpha: float = 1e-5,
    ):
        super().__init__(
            network, n_inference_steps=n_inference_steps, noise_per_obs=noise_per_obs, mask_padding=mask_padding
        )
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
