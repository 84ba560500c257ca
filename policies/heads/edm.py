"""EDM (Karras et al. 2022) for action chunks, as BESO (Reuss et al. 2023) and Consistency Policy's teacher use it.

x_sigma = A + sigma eps. The network F is preconditioned (table 1), with d = sigma_data and t the place of log sigma
between sigma_min and sigma_max:

    D(x, sigma) = d^2 / (sigma^2 + d^2) x + sigma d / sqrt(sigma^2 + d^2) F(x / sqrt(sigma^2 + d^2), t)
    L = E (sigma^2 + d^2) / (sigma d)^2 ||D(A + sigma eps, sigma) - A||^2  = E ||F - target||^2

Sampling follows dx/dsigma = (x - D) / sigma from sigma_max to 0, at Karras' sigmas (eq. 5, rho = 7).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from policies.heads.head import Head, per_row
from policies.rng import BatchRng


class EDMHead(Head):
    """Few deterministic steps.

    Args:
        n_inference_steps: network evaluations; Heun's steps take two, but for the last one, so it is odd there.
        sampler: "ddim" (exponential steps; BESO's 3) or "heun" (second order).
        sigma_data, sigma_min, sigma_max, rho: see the module. Actions lie in [-1, 1]: from 80 (Karras'; Consistency
            Policy) few steps get nowhere near them. BESO takes 1.
        sigma_mean, sigma_std: of log sigma in training, a normal distribution cut off at sigma_min and sigma_max.
        common: the rest of Head's.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        n_inference_steps: int = 3,
        sampler: Literal["ddim", "heun"] = "ddim",
        sigma_data: float = 0.5,
        sigma_min: float = 0.02,
        sigma_max: float = 3.0,
        rho: float = 7.0,
        sigma_mean: float = -1.2,
        sigma_std: float = 1.2,
        **common: Any,
    ):
        super().__init__(network, n_inference_steps=n_inference_steps, **common)
        if sampler not in ("ddim", "heun"):
            raise ValueError(f"sampler must be ddim or heun, not {sampler!r}")
        if sampler == "heun" and n_inference_steps % 2 == 0:
            raise ValueError(f"n_inference_steps={n_inference_steps} must be odd with sampler=heun")
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min} must lie between 0 and sigma_max={sigma_max}")
        self.sampler, self.sigma_data, self.rho = sampler, sigma_data, rho
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.sigma_mean, self.sigma_std = sigma_mean, sigma_std

    def time(self, sigma: float) -> float:
        """The place of log sigma, 0 at sigma_min and 1 at sigma_max."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (math.log(sigma) - low) / (high - low)

    def path(self, t: float) -> tuple[float, float]:
        """(1, sigma)."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return 1.0, math.exp(low + t * (high - low))

    def time_at(self, ratio: float) -> float:
        """``ratio`` is sigma."""
        return self.time(min(max(ratio, self.sigma_min), self.sigma_max))

    def schedule(self) -> list[float]:
        """Karras' sigmas; Heun's first evaluations."""
        return [self.time(sigma) for sigma in self.sigmas(self.n_steps)]

    def start(self, noise: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """noise * sigma_max."""
        return noise * self.sigmas(self.n_steps)[0]

    def clean(
        self, z: Float[Tensor, "b h da"], t: float | Float[Tensor, " b"], prepared: Any, *, clip: bool = True
    ) -> Float[Tensor, "b h da"]:
        """D."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        sigma = (low + per_row(t) * (high - low)).exp() if isinstance(t, Tensor) else self.path(t)[1]
        return self.denoise(z, sigma, self.instant(t, z), prepared)

    @property
    def n_steps(self) -> int:
        """Of the sampler; Heun's take two evaluations, but for the last one."""
        return (self.n_inference_steps + 1) // 2 if self.sampler == "heun" else self.n_inference_steps

    def objective(self, action: Tensor, rng: BatchRng, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled noisy chunk, time, and what F has to say for D to be the clean chunk."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        log_sigma = (self.sigma_mean + self.sigma_std * rng.randn(n)).clamp(low, high)
        sigma, d = log_sigma.exp()[:, None, None], self.sigma_data
        x = action + sigma * rng.randn(n, *action.shape[1:])
        norm = (sigma.square() + d * d).sqrt()
        target = (action - (d / norm).square() * x) * norm / (sigma * d)
        return x / norm, (log_sigma - low) / (high - low), target

    def denoise(self, x: Tensor, sigma: Any, t: Tensor, prepared: Any) -> Tensor:
        """D; sigma a number, or (B, 1, 1)."""
        d = self.sigma_data
        norm = (sigma * sigma + d * d) ** 0.5
        return (d / norm) ** 2 * x + sigma * d / norm * self.network(x / norm, t, prepared)

    def sigmas(self, n: int) -> list[float]:
        """Karras' n noise levels, from sigma_max to sigma_min."""
        a, b = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [(a + i / max(n - 1, 1) * (b - a)) ** self.rho for i in range(n)]

    def sample(self, cond: Float[Tensor, "b l c"], noise: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """From noise * sigma_max to a clean chunk."""
        prepared = self.network.prepare(cond)
        heun = self.sampler == "heun"
        sigmas = self.sigmas(self.n_steps)
        times = self.network_times([self.time(s) for s in sigmas], noise)
        x = self.start(noise)
        for i, (sigma, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
            clean = self.denoise(x, sigma, times[i], prepared)
            slope = (x - clean) / sigma
            ahead = x + (after - sigma) * slope
            if heun and after:
                again = (ahead - self.denoise(ahead, after, times[i + 1], prepared)) / after
                ahead = x + (after - sigma) * (slope + again) / 2
            x = ahead
        return x
