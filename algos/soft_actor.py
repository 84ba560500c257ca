"""The actor's side of soft actor-critic (Haarnoja et al. 2018): squashed Gaussian, its step, the temperature."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from algos.critic import adam
from policies.policy import Metrics

LOG_STD = (-5.0, 2.0)  # bounds of the log standard deviation before tanh


def raw_std(std: float) -> float:
    """The network's output at which the standard deviation before tanh is ``std``."""
    part = (math.log(std) - LOG_STD[0]) / (LOG_STD[1] - LOG_STD[0])
    return math.log(part / (1 - part))


def squashed_gaussian(out: Float[Tensor, "b two_d"], eps: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
    """x = tanh(mean + std eps) and its log-density (appendix C).

    Args:
        out: a network's output: mean, and what the standard deviation is made of, side by side.
        eps: standard normal.

    Returns:
        x (B, D) in [-1, 1], log p(x) (B,).
    """
    mean, raw = out.chunk(2, 1)
    low, high = LOG_STD
    log_std = low + (high - low) * torch.sigmoid(raw)
    u = mean + log_std.exp() * eps
    log_prob = -0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))  # log (1 - tanh^2 u), without cancelling
    return torch.tanh(u), (log_prob - log_slope).sum(1)


class SoftActor:
    """Steps an actor on L_pi = alpha log pi(a|s) - Q(s, a), and alpha towards the target entropy.

    Args:
        parameters: the actor's.
        lr, alpha_lr: Adam's.
        alpha: entropy temperature at the start.
        target_entropy: of the whole action, in nats.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, alpha: float, alpha_lr: float, target_entropy: float
    ):
        self.optimiser = adam(parameters, lr)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))
        self.alpha_optimiser = adam([self.log_alpha], alpha_lr)
        self.target_entropy = target_entropy

    @property
    def alpha(self) -> Float[Tensor, ""]:
        """The temperature, without gradient."""
        return self.log_alpha.detach().exp()

    def step(self, q: Float[Tensor, " b"], log_prob: Float[Tensor, " b"]) -> Metrics:
        """One step of actor and temperature; ``q`` and ``log_prob`` are those of the actor's actions."""
        alpha = self.alpha
        loss = (alpha * log_prob - q).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        entropy = -log_prob.detach().mean()
        self.alpha_optimiser.zero_grad(set_to_none=True)
        (self.log_alpha * (entropy - self.target_entropy)).backward()
        self.alpha_optimiser.step()
        return {"actor_loss": loss.detach(), "entropy": entropy, "alpha": alpha}

    def state_dict(self) -> dict[str, Any]:
        """Optimisers and temperature; the actor's weights belong to its policy."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "alpha_optimiser": self.alpha_optimiser.state_dict(),
            "log_alpha": self.log_alpha.detach().clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.alpha_optimiser.load_state_dict(state["alpha_optimiser"])
        self.log_alpha.data.copy_(state["log_alpha"])
