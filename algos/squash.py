"""The squashed Gaussian of soft actor-critic (Haarnoja et al. 2018, appendix C)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

LOG_STD = (-5.0, 2.0)  # bounds of the log standard deviation before tanh
UNIT_STD = math.log(-LOG_STD[0] / LOG_STD[1])  # the network's output at which that standard deviation is 1


def squashed_gaussian(out: Float[Tensor, "b two_d"], eps: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
    """x = tanh(mean + std eps) and its log-density.

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
    log_slope = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))  # log (1 - tanh^2 u), without cancelling
    return torch.tanh(u), (log_prob - log_slope).sum(1)
