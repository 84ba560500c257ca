"""How the episodes of training are acted: some by the base alone, some without noise, the others to try things out."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


class Roles:
    """Of the present episodes of N environments.

    Args:
        n_envs: N.
        base_fraction: of the episodes, acted by the base alone.
        quiet_fraction: of the episodes, acted without exploration noise.

    Attributes:
        base_only, quiet: (N,) bool.
        warming_up: while true, every episode that begins is the base's.
    """

    def __init__(self, n_envs: int, base_fraction: float, quiet_fraction: float):
        self.base_fraction, self.quiet_fraction, self.warming_up = base_fraction, quiet_fraction, False
        self.base_only = torch.zeros(n_envs, dtype=torch.bool)
        self.quiet = torch.zeros(n_envs, dtype=torch.bool)

    def begin(self, fresh: Bool[Tensor, " n"], generator: torch.Generator) -> None:
        """Draws those of the ``fresh`` episodes."""
        share = 1.0 if self.warming_up else self.base_fraction
        drawn = torch.rand(2, len(fresh), generator=generator)
        self.base_only = torch.where(fresh, drawn[0] < share, self.base_only)
        self.quiet = torch.where(fresh, drawn[1] < self.quiet_fraction, self.quiet)
