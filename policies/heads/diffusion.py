"""Denoising diffusion (Ho et al. 2020), sampled by DDPM, DDIM (Song et al. 2021) or DPM-Solver++ (Lu et al. 2022).

z_k = sqrt(abar_k) A + sqrt(1 - abar_k) eps;  L = E ||eps_theta - eps||^2 ("epsilon", Diffusion Policy) or
E ||A_theta - A||^2 ("sample", DP3). The network sees t = k / n_train_steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from policies.heads.head import Head
from policies.rng import BatchRng

Spacing = Literal["leading", "trailing", "linspace"]


def alphas_cumprod(n_train_steps: int, beta_schedule: str) -> Tensor:
    """abar_k for k = 0 .. n_train_steps - 1, float32, as diffusers' DDPMScheduler defines them."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=n_train_steps, beta_schedule=beta_schedule).alphas_cumprod  # type: ignore[arg-type]


def inference_timesteps(n_train_steps: int, n_inference_steps: int, spacing: Spacing) -> list[int]:
    """The integer steps k visited at inference, from noise to data (Lin et al. 2024, table 2).

    "trailing" starts at the last training step, so that the first step really starts from noise; Diffusion Policy used
    "leading", which does not, and fails at one step.
    """
    n, m = n_train_steps, n_inference_steps
    if not 1 <= m <= n:
        raise ValueError(f"n_inference_steps={m} must lie in 1..n_train_steps={n}")
    if spacing == "leading":
        return [i * (n // m) for i in reversed(range(m))]
    if spacing == "trailing":
        return [round(n - i * n / m) - 1 for i in range(m)]
    return [round(float(k)) for k in torch.linspace(n - 1, 0, m, dtype=torch.float64)]


class DiffusionHead(Head):
    """DDPM training; DDIM or DDPM sampling.

    Args:
        n_train_steps: diffusion steps in training.
        beta_schedule: a name diffusers knows; "squaredcos_cap_v2" in Diffusion Policy and DP3.
        prediction: what the network predicts: the noise ("epsilon"), the clean chunk ("sample"), or
            sqrt(abar) eps - sqrt(1 - abar) A ("v", Salimans & Ho 2022).
        sampler: "ddim" (eta = 0, a function of one noise tensor), "dpmpp" (DPM-Solver++ 2M, likewise) or "ddpm"
            (ancestral; one noise tensor per step).
        spacing: see ``inference_timesteps``.
        clip_sample: clip every clean-chunk estimate to [-1, 1].
        common: the rest of Head's.
    """

    abar: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        n_inference_steps: int = 10,
        n_train_steps: int = 100,
        beta_schedule: str = "squaredcos_cap_v2",
        prediction: Literal["epsilon", "sample", "v"] = "epsilon",
        sampler: Literal["ddim", "dpmpp", "ddpm"] = "ddim",
        spacing: Spacing = "trailing",
        clip_sample: bool = True,
        **common: Any,
    ):
        super().__init__(network, n_inference_steps=n_inference_steps, **common)
        if prediction not in ("epsilon", "sample", "v"):
            raise ValueError(f"prediction must be epsilon, sample or v, not {prediction!r}")
        if sampler not in ("ddim", "dpmpp", "ddpm"):
            raise ValueError(f"sampler must be ddim, dpmpp or ddpm, not {sampler!r}")
        if spacing not in ("leading", "trailing", "linspace"):
            raise ValueError(f"spacing must be leading, trailing or linspace, not {spacing!r}")
        self.n_train_steps, self.prediction, self.sampler = n_train_steps, prediction, sampler
        self.spacing: Spacing = spacing
        self.clip_sample = clip_sample
        abar = alphas_cumprod(n_train_steps, beta_schedule)
        self.register_buffer("abar", abar, persistent=False)
        self._abar = [*abar.tolist(), 1.0]  # python floats for the sampler; [-1] is abar before the first step

    @property
    def n_noise(self) -> int | None:
        """Ancestral sampling draws once to start and once after every step but the last."""
        return self.n_inference_steps if self.sampler == "ddpm" else None

    def path(self, t: float) -> tuple[float, float]:
        """(sqrt(abar_k), sqrt(1 - abar_k)) at k = t * n_train_steps."""
        abar = self._abar[self._k(t)]
        return abar**0.5, (1 - abar) ** 0.5

    def time_at(self, ratio: float) -> float:
        """That of the k which comes nearest, by the logarithm."""
        if math.isinf(ratio):
            return (self.n_train_steps - 1) / self.n_train_steps
        log_ratio = 0.5 * ((1 - self.abar.double()) / self.abar.double()).log()
        return int((log_ratio - math.log(max(ratio, 1e-12))).abs().argmin()) / self.n_train_steps

    def schedule(self) -> list[float]:
        """k / n_train_steps."""
        steps = inference_timesteps(self.n_train_steps, self.n_inference_steps, self.spacing)
        return [k / self.n_train_steps for k in steps]

    def clean(
        self, z: Float[Tensor, "b h da"], t: float | Float[Tensor, " b"], prepared: Any, *, clip: bool = True
    ) -> Float[Tensor, "b h da"]:
        """As the sampler estimates it."""
        if isinstance(t, Tensor):
            k = (t * self.n_train_steps).round().long().clamp(max=self.n_train_steps - 1)
            abar = self.abar[k][:, None, None]
            out = self.network(z, (k / self.n_train_steps).to(z.dtype), prepared)
            return self._clean_and_noise(z, out, abar.sqrt(), (1 - abar).sqrt(), clip=clip)[0]
        out = self.network(z, self.instant(self._k(t) / self.n_train_steps, z), prepared)
        return self._clean_and_noise(z, out, *self.path(t), clip=clip)[0]

    def _k(self, t: float) -> int:
        return min(round(t * self.n_train_steps), self.n_train_steps - 1)

    def objective(self, action: Tensor, rng: BatchRng, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy chunk z_k, time k / n_train_steps, noise or clean chunk."""
        k = rng.randint(self.n_train_steps, n)
        eps = rng.randn(n, *action.shape[1:])
        abar = self.abar[k][:, None, None]
        z = abar.sqrt() * action + (1 - abar).sqrt() * eps
        if self.prediction == "v":
            return z, k / self.n_train_steps, abar.sqrt() * eps - (1 - abar).sqrt() * action
        return z, k / self.n_train_steps, eps if self.prediction == "epsilon" else action

    def sample(self, cond: Float[Tensor, "b l c"], noise: Tensor) -> Float[Tensor, "b h da"]:
        """DDIM (eta = 0) and DPM-Solver++: noise (B, H, Da). DDPM: noise (B, K, H, Da)."""
        if self.sampler == "dpmpp":
            return self.multistep(cond, noise)
        if self.sampler == "ddim":
            return self.sample_chain(cond, noise)[-1]
        return self.sample_chain(cond, noise[:, 0], noise[:, 1:])[-1]

    def multistep(self, cond: Float[Tensor, "b l c"], z: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): clean chunks extrapolated over log(alpha / sigma).

        The first and the last step are of first order, as DDIM's.
        """
        prepared = self.network.prepare(cond)
        times = self.schedule()
        rows = self.network_times(times, z)
        before: tuple[Tensor, float] | None = None  # the last estimate, and the length of the step that followed
        for i, t in enumerate(times):
            alpha, sigma = self.path(t)
            clean, _ = self._clean_and_noise(z, self.network(z, rows[i], prepared), alpha, sigma)
            if i + 1 == len(times):
                return clean
            alpha_next, sigma_next = self.path(times[i + 1])
            step = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
            ahead = clean if before is None else torch.lerp(clean, before[0], -step / (2 * before[1]))
            z = sigma_next / sigma * z - alpha_next * math.expm1(-step) * ahead
            before = clean, step
        return z

    def sample_chain(
        self,
        cond: Float[Tensor, "b l c"],
        z: Float[Tensor, "b h da"],
        noise: Float[Tensor, "b m h da"] | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        eta: float = 0.0,
        min_std: float = 0.0,
    ) -> list[Tensor]:
        """The chunks that the sampler's steps ``start`` .. ``stop`` - 1 pass through: [z, ..., result], (B, H, Da).

        Args:
            cond: observation tokens.
            z: what step ``start`` begins with; pure noise for start = 0.
            noise: added after each step, scaled by its std; a step beyond the last of them takes its mean.
            start, stop: counted from noise to data, 0 .. K; all steps by default.
            eta, min_std: see ``step_dist``.
        """
        steps = inference_timesteps(self.n_train_steps, self.n_inference_steps, self.spacing)
        prepared = self.network.prepare(cond)
        times = self.network_times([k / self.n_train_steps for k in steps], z)
        chain = [z]
        for j, i in enumerate(range(len(steps))[start:stop]):
            *weights, std = self._weights(steps, i, eta, min_std)
            z = self._mean(z, self.network(z, times[i], prepared), weights)
            if noise is not None and j < noise.shape[1]:
                z = z + std * noise[:, j]
            chain.append(z)
        return chain

    def step_dist(
        self,
        z: Float[Tensor, "b h da"],
        step: Int64[Tensor, " b"],
        cond: Float[Tensor, "b l c"],
        *,
        eta: float = 0.0,
        min_std: float = 0.0,
    ) -> tuple[Float[Tensor, "b h da"], Float[Tensor, "b 1 1"]]:
        """Mean and std of the Gaussian that a sampler's step draws the next chunk from; each row at its own step.

        Args:
            z: chunks before the step.
            step: 0 (from pure noise) .. K - 1 (to the data).
            cond: observation tokens.
            eta: of DDIM's noise (Song et al. 2021, eq. 16): 0 deterministic, 1 as much as DDPM. DDPM does not use it.
            min_std: std of the steps that have less, the last one above all (DPPO, Ren et al. 2025, sec. 4.3).
        """
        steps = inference_timesteps(self.n_train_steps, self.n_inference_steps, self.spacing)
        table = torch.tensor([self._weights(steps, i, eta, min_std) for i in range(len(steps))], device=z.device)
        *weights, std = table.to(z.dtype)[step][..., None, None].unbind(1)
        t = torch.tensor(steps, device=z.device)[step].to(z.dtype) / self.n_train_steps
        return self._mean(z, self.network(z, t, self.network.prepare(cond)), weights), std

    def _weights(self, steps: list[int], i: int, eta: float, min_std: float) -> tuple[float, ...]:
        """Of step i: sqrt(abar), sqrt(1 - abar), the weights of clean chunk and noise (DDPM: of z) in the mean; std."""
        abar = self._abar[steps[i]]
        abar_prev = self._abar[steps[i + 1]] if i + 1 < len(steps) else self._abar[-1]
        alpha = abar / abar_prev
        variance = (1 - abar_prev) / (1 - abar) * (1 - alpha)  # Ho et al., eq. 7, for the jump over several k
        if self.sampler == "ddim":  # Song et al., eq. 12
            variance *= eta**2
            of_clean, of_other = abar_prev**0.5, max(1 - abar_prev - variance, 0.0) ** 0.5
        else:
            of_clean = abar_prev**0.5 * (1 - alpha) / (1 - abar)
            of_other = alpha**0.5 * (1 - abar_prev) / (1 - abar)
        return abar**0.5, (1 - abar) ** 0.5, of_clean, of_other, max(variance**0.5, min_std)

    def _mean(self, z: Tensor, out: Tensor, weights: Sequence[Any]) -> Tensor:
        """Of a step, by the network's output."""
        signal, sigma, of_clean, of_other = weights
        clean, eps = self._clean_and_noise(z, out, signal, sigma)
        return of_clean * clean + of_other * (eps if self.sampler == "ddim" else z)

    def _clean_and_noise(
        self, z: Tensor, out: Tensor, signal: Any, sigma: Any, clip: bool = True
    ) -> tuple[Tensor, Tensor]:
        """By the network's output; clips the clean chunk if asked, never the noise, as diffusers does."""
        if self.prediction == "sample":
            clean, eps = out, (z - signal * out) / sigma
        elif self.prediction == "v":
            clean, eps = signal * z - sigma * out, sigma * z + signal * out
        else:
            clean, eps = (z - sigma * out) / signal, out
        return (clean.clamp(-1, 1) if self.clip_sample and clip else clean), eps
