"""MeanFlow (Geng et al. 2025) for action chunks (MP1, Sheng et al. 2026): one network evaluation from noise to data.

On the straight path z_t = (1 - t) A + t eps, v = eps - A, the network learns the average velocity from t down to r,

    u(z_t, r, t) = 1 / (t - r) * integral of v from r to t,        so that  z_r = z_t - (t - r) u.

Differentiating (t - r) u by t gives the identity that it is trained on (MeanFlow, eq. 6):

    u_tgt = v - (t - r) du/dt,   du/dt = v d_z u + d_t u  (r fixed),      L = E || u_theta - sg(u_tgt) ||^2

OMP (Fang et al. 2026) adds the directional alignment -log((cos(u, v) + 1) / 2) and takes du/dt as a difference.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from policies.heads.guidance import Guidance
from policies.heads.head import Head
from policies.rng import BatchRng


class MeanFlowHead(Head):
    """The network sees (t, t - r). du/dt goes through its embedding of the times, so this must be smooth: sinusoids of
    t and t - r themselves (``policy.time_scale=1``, as in MP1), not of DDPM's integer steps, which drown it.

    Guidance is part of what is learned and costs nothing in sampling. MP1's released code takes the network's answer
    under the condition itself for that under the null token: cfg_scale=2 with cfg_dropout=0.

    Args:
        t_mean, t_std: of the normal distribution that t and r are drawn from, before a sigmoid; the larger one is t.
        flow_ratio: part of the rows with r = t, where the target is v alone.
        adaptive_power: p; rows are weighted by (mean (u - u_tgt)^2 + 1e-3)^-p. 0 is the plain squared error. The mean
            is MP1's own; a sum would let the dispersive loss count the more, the longer the chunk.
        derivative: "jvp" (forward mode) or "difference" (central, over 2 ``difference_step``: OMP's).
        alignment: weight of the directional alignment; 0 in MP1.
        common: the rest of Head's.
    """

    n_times = 2
    guided_target = True

    def __init__(
        self,
        network: nn.Module,
        *,
        n_inference_steps: int = 1,
        t_mean: float = 0.0,
        t_std: float = 1.6,
        flow_ratio: float = 0.5,
        adaptive_power: float = 1.0,
        derivative: Literal["jvp", "difference"] = "jvp",
        difference_step: float = 0.005,
        alignment: float = 0.0,
        **common: Any,
    ):
        super().__init__(network, n_inference_steps=n_inference_steps, **common)
        if derivative not in ("jvp", "difference"):
            raise ValueError(f"derivative must be jvp or difference, not {derivative!r}")
        self.t_mean, self.t_std, self.flow_ratio = t_mean, t_std, flow_ratio
        self.adaptive_power, self.derivative, self.difference_step = adaptive_power, derivative, difference_step
        self.alignment = alignment

    def error(self, action: Float[Tensor, "n h da"], prepared: Tensor, rng: BatchRng) -> Float[Tensor, "n h da"]:
        """Weighted squared error against u_tgt, and the alignment."""
        n = len(action)
        eps = rng.randn(n, *action.shape[1:])
        drawn = torch.sigmoid(self.t_mean + self.t_std * rng.randn(n, 2))
        t, r = drawn.amax(1), drawn.amin(1)
        gap = torch.where(rng.rand(n) < self.flow_ratio, 0.0, t - r)
        z = torch.lerp(action, eps, t[:, None, None])
        v, prepared = self.guide(z, eps - action, t, prepared)
        u = self.network(z, torch.stack([t, gap], 1), prepared)
        difference = u - self.target(z, v, t, gap, prepared)
        square = difference.square()
        weight = (square.detach().mean((1, 2), keepdim=True) + 1e-3) ** -self.adaptive_power
        error = weight * square
        if self.alignment:
            cosine = F.cosine_similarity(u.flatten(1), v.flatten(1))
            error = error - self.alignment * torch.log((cosine + 1).clamp(min=1e-4) / 2)[:, None, None]
        return error

    @torch.no_grad()
    def guide(self, z: Tensor, v: Tensor, t: Tensor, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """w v + (1 - w) u(z_t, t, t | null), which takes the place of v, and what belongs to the condition itself."""
        reference = prepared
        if isinstance(self.network, Guidance):
            prepared, reference = prepared[:, :1], prepared[:, 1:]
        if self.cfg_scale == 1:
            return v, prepared
        known = self.network(z, torch.stack([t, torch.zeros_like(t)], 1), reference).to(v.dtype)
        return torch.lerp(known, v, self.cfg_scale), prepared

    @torch.no_grad()
    def target(
        self,
        z: Float[Tensor, "n h da"],
        v: Float[Tensor, "n h da"],
        t: Float[Tensor, " n"],
        gap: Float[Tensor, " n"],
        prepared: Tensor,
    ) -> Float[Tensor, "n h da"]:
        """u_tgt; rows without a gap cost nothing."""
        rows = gap > 0
        target = v.clone()
        if rows.any():
            slope = self.total_derivative(z[rows], v[rows], t[rows], gap[rows], prepared[rows])
            target[rows] = v[rows] - gap[rows][:, None, None] * slope
        return target

    def total_derivative(self, z: Tensor, v: Tensor, t: Tensor, gap: Tensor, prepared: Tensor) -> Tensor:
        """du/dt along the path, r fixed: z moves with v, t and t - r with 1."""
        if self.derivative == "difference":
            e, prepared = self.difference_step, prepared.to(z.dtype)
            with torch.autocast(z.device.type, enabled=False):  # bf16 has not the digits for differences
                ahead = self.network(z + e * v, torch.stack([t + e, gap + e], 1), prepared)
                behind = self.network(z - e * v, torch.stack([t - e, gap - e], 1), prepared)
            return (ahead - behind) / (2 * e)
        with forward_ad.dual_level():
            times = torch.stack([t, gap], 1)
            moving = (forward_ad.make_dual(z, v), forward_ad.make_dual(times, torch.ones_like(times)))
            network: Any = self.network
            slope = forward_ad.unpack_dual(network.forward(*moving, prepared)).tangent  # called compiled, it has none
        assert slope is not None
        return slope

    def sample(self, cond: Float[Tensor, "b l c"], noise: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """K jumps of length 1 / K."""
        k = self.n_inference_steps
        return self.integrate(cond, noise, [(1.0 - i / k, 1.0 / k) for i in range(k)])
