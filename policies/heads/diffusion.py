"""Denoising diffusion (Ho et al. 2020) with DDPM and DDIM (Song et al. 2021) samplers; schedules from diffusers.

z_k = sqrt(abar_k) A + sqrt(1 - abar_k) eps;  L = E ||eps_theta - eps||^2 ("epsilon", Diffusion Policy) or
E ||A_theta - A||^2 ("sample", DP3). The network sees t = k / n_train_steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
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
        prediction: what the network predicts: the noise ("epsilon") or the clean chunk ("sample").
        sampler: "ddim" (eta = 0, a function of one noise tensor) or "ddpm" (ancestral; one noise tensor per step).
        spacing: see ``inference_timesteps``.
        clip_sample: clip every clean-chunk estimate to [-1, 1].
    """

    abar: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        n_inference_steps: int = 10,
        noise_per_obs: int = 1,
        mask_padding: bool = False,
        n_train_steps: int = 100,
        beta_schedule: str = "squaredcos_cap_v2",
        prediction: Literal["epsilon", "sample"] = "epsilon",
        sampler: Literal["ddim", "ddpm"] = "ddim",
        spacing: Spacing = "trailing",
        clip_sample: bool = True,
    ):
        super().__init__(
            network, n_inference_steps=n_inference_steps, noise_per_obs=noise_per_obs, mask_padding=mask_padding
        )
        if prediction not in ("epsilon", "sample"):
            raise ValueError(f"prediction must be epsilon or sample, not {prediction!r}")
        if sampler not in ("ddim", "ddpm"):
            raise ValueError(f"sampler must be ddim or ddpm, not {sampler!r}")
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

    def objective(self, action: Tensor, rng: BatchRng, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy chunk z_k, time k / n_train_steps, noise or clean chunk."""
        k = rng.randint(self.n_train_steps, n)
        eps = rng.randn(n, *action.shape[1:])
        abar = self.abar[k][:, None, None]
        z = abar.sqrt() * action + (1 - abar).sqrt() * eps
        return z, k / self.n_train_steps, eps if self.prediction == "epsilon" else action

    def _clean_and_noise(self, z: Tensor, k: int, out: Tensor) -> tuple[Tensor, Tensor]:
        """Clean chunk (clipped if asked) and noise in z_k (unclipped, as diffusers does) by the network's output."""
        signal, sigma = self._abar[k] ** 0.5, (1 - self._abar[k]) ** 0.5
        if self.prediction == "sample":
            clean, eps = out, (z - signal * out) / sigma
        else:
            clean, eps = (z - sigma * out) / signal, out
        return (clean.clamp(-1, 1) if self.clip_sample else clean), eps

    def sample(self, cond: Float[Tensor, "b l c"], noise: Tensor) -> Float[Tensor, "b h da"]:
        """DDIM: noise (B, H, Da). DDPM: noise (B, K, H, Da)."""
        prepared = self.network.prepare(cond)
        steps = inference_timesteps(self.n_train_steps, self.n_inference_steps, self.spacing)
        z = noise[:, 0] if self.sampler == "ddpm" else noise
        times = self.network_times([k / self.n_train_steps for k in steps], z)
        for i, (k, t) in enumerate(zip(steps, times, strict=True)):
            clean, eps = self._clean_and_noise(z, k, self.network(z, t, prepared))
            previous = steps[i + 1] if i + 1 < len(steps) else -1
            if self.sampler == "ddim":  # Song et al., eq. 12 with sigma = 0
                z = self._abar[previous] ** 0.5 * clean + (1 - self._abar[previous]) ** 0.5 * eps
            else:
                z = self._ddpm_step(z, clean, k, previous, noise[:, i + 1] if previous >= 0 else None)
        return z

    def _ddpm_step(self, z: Tensor, clean: Tensor, k: int, previous: int, noise: Tensor | None) -> Tensor:
        """Ho et al., eq. 6-7, for the jump k -> previous: posterior mean, and its variance while noise is given."""
        abar, abar_prev = self._abar[k], self._abar[previous]
        alpha = abar / abar_prev
        mean = abar_prev**0.5 * (1 - alpha) / (1 - abar) * clean + alpha**0.5 * (1 - abar_prev) / (1 - abar) * z
        if noise is None:
            return mean
        return mean + ((1 - abar_prev) / (1 - abar) * (1 - alpha)) ** 0.5 * noise
