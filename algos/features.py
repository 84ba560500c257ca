"""What critics and actors see: the frozen base policy's view of an observation as one vector."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.errors import ConfigError
from data.normaliser import Normaliser
from policies.policy import Obs, Policy

LIMIT = 5.0  # normalised units; far outside the demonstrations a state dimension says no more than that it is there


class Features(nn.Module):
    """Observation window -> (B, F): normalised states as they are, everything else through the frozen encoder.

    Args:
        policy: a base policy with a ``normaliser``; frozen.
    """

    def __init__(self, policy: Policy):
        super().__init__()
        self._policy = [policy]  # in a list: its weights belong to whoever owns the policy
        self.states = [k for k, f in policy.spec.obs.items() if f.kind == "state"]
        self.encoded = len(self.states) < len(policy.spec.obs)
        if not isinstance(getattr(policy, "normaliser", None), Normaliser):
            raise ConfigError(f"{type(policy).__name__} has no normaliser to see observations through.")

    @torch.no_grad()
    def forward(self, obs: Obs) -> Float[Tensor, "b f"]:
        """Environment units in, features out."""
        policy = self._policy[0]
        normaliser: Normaliser = policy.normaliser  # type: ignore[assignment]
        parts = [normaliser.normalise(k, obs[k]).clamp(-LIMIT, LIMIT).flatten(1) for k in self.states]
        if self.encoded:
            parts.append(policy.encode(obs).flatten(1))
        return torch.cat(parts, 1)

    def out_dim(self) -> int:
        """F, found by encoding a window of zeros."""
        policy = self._policy[0]
        device = next(policy.parameters()).device
        kinds = {k: torch.uint8 if f.dtype == "uint8" else torch.float32 for k, f in policy.spec.obs.items()}
        zeros = {
            k: torch.zeros(1, policy.n_obs_steps, *f.shape, dtype=kinds[k], device=device)
            for k, f in policy.spec.obs.items()
        }
        return self(zeros).shape[1]
