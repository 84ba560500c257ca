"""Behaviour cloning: the head's own objective on demonstrations (Diffusion Policy's recipe, Chi et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from algos.ema import EMA
from data.chunks import ChunkBatch
from policies.policy import Metrics, Policy
from policies.rng import BatchRng


def warmup_cosine(step: int, n_warmup: int, n_steps: int) -> float:
    """Learning-rate factor: linear over ``n_warmup`` steps, then half a cosine to 0 at ``n_steps``."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    progress = (step - n_warmup) / max(1, n_steps - n_warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class BC:
    """Owns optimiser, schedule, EMA and the random stream of the loss.

    Args:
        policy: trained in place; ``self.policy`` is its average, which is evaluated, saved and deployed.
        accelerator: device, precision and processes.
        train_steps: length of the schedule, in updates.
        lr, betas, weight_decay: AdamW's; Diffusion Policy's values by default.
        lr_warmup_steps: of the schedule.
        grad_clip: maximal norm of the gradient; 0 leaves it alone.
        ema_power, ema_max_decay: see EMA.
        seed: of the noise and augmentation stream.
    """

    def __init__(
        self,
        policy: Policy,
        accelerator: Accelerator | None = None,
        *,
        train_steps: int,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.95, 0.999),
        weight_decay: float = 1e-6,
        lr_warmup_steps: int = 500,
        grad_clip: float = 1.0,
        ema_power: float = 0.75,
        ema_max_decay: float = 0.9999,
        seed: int = 0,
    ):
        self.accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
        policy = policy.to(self.accelerator.device)
        self.ema = EMA(policy, power=ema_power, max_decay=ema_max_decay)
        self.source = policy
        trained = [p for p in policy.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay, fused=True)
        self.model, self.optimiser = self.accelerator.prepare(policy.train(), optimiser)
        # Stepped by hand: accelerate's wrapper would advance it once per process.
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: warmup_cosine(step, lr_warmup_steps, train_steps)
        )
        self.grad_clip = grad_clip
        self.rng = BatchRng(
            seed, self.accelerator.device, self.accelerator.process_index, self.accelerator.num_processes
        )

    @property
    def policy(self) -> Policy:
        """The averaged policy, in eval mode."""
        return self.ema.model  # type: ignore[return-value]

    def update(self, batch: ChunkBatch) -> Metrics:
        """One optimiser step. A loss or gradient that is not finite changes nothing and comes back as it is."""
        loss, metrics = self._loss(batch, self.rng)
        self.accelerator.backward(loss)
        norm = self._gradient_norm()
        if torch.isfinite(norm):
            self.optimiser.step()
            self.schedule.step()
            self.ema.update()
        self.optimiser.zero_grad(set_to_none=True)
        return {**metrics, "grad_norm": norm, "lr": torch.tensor(self.schedule.get_last_lr()[0])}

    def rehearse(self, batch: ChunkBatch) -> None:
        """Loss and gradient as in an update, and nothing comes of them: to measure what an update takes."""
        loss, _ = self._loss(batch, BatchRng(0, self.accelerator.device))
        self.accelerator.backward(loss)
        self.optimiser.zero_grad(set_to_none=True)

    def _loss(self, batch: ChunkBatch, rng: BatchRng) -> tuple[Tensor, Metrics]:
        with self.accelerator.autocast():
            return self.model(batch, rng)

    def _gradient_norm(self) -> Tensor:
        limit = self.grad_clip if self.grad_clip > 0 else math.inf
        return torch.as_tensor(self.accelerator.clip_grad_norm_(self.source.parameters(), limit))

    def state_dict(self) -> dict[str, Any]:
        """All that continues training bit-exactly, but for the sampler and the global generators."""
        return {
            "policy": self.source.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict(),
            "rng": self.rng.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self.source.load_state_dict(state["policy"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.ema.load_state_dict(state["ema"])
        self.rng.load_state_dict(state["rng"])
