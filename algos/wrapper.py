"""What policies around a frozen base policy have in common, and the action units that learners think in."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.chunks import ChunkBatch
from data.errors import ContractError
from data.spec import TaskSpec
from policies.policy import Metrics, Obs, Policy


class ActionScale:
    """Environment units <-> [-1, 1], by the task's action range alone."""

    def __init__(self, spec: TaskSpec):
        self.low, self.high = spec.action_low, spec.action_high
        self._centre, self._half = (self.high + self.low) / 2, (self.high - self.low) / 2

    def unit(self, action: Float[Tensor, "... da"]) -> Float[Tensor, "... da"]:
        """Environment units -> [-1, 1]."""
        return (action - self._centre) / self._half

    def environment(self, unit: Float[Tensor, "... da"]) -> Float[Tensor, "... da"]:
        """Inverse of ``unit``, clipped to the action range."""
        return (unit * self._half + self._centre).clamp(self.low, self.high)


class WrappedPolicy(Policy):
    """A frozen base and what is learned around it by rewards; all that a subclass leaves out is the base's.

    ``cls(base, **options)`` rebuilds it (policies.checkpoint).

    Args:
        base: the policy to improve; frozen here.
        options: what the subclass was made with, besides its base.
        n_action_steps: Ta; the base's by default.

    Attributes:
        active: while false, ``act`` is the base's; part of the checkpoint (algos.trust).
        algo: the word that trains it, for messages.
    """

    active: Tensor
    algo = ""

    def __init__(self, base: Policy, options: dict[str, Any], n_action_steps: int | None = None):
        super().__init__(base.spec, base.n_obs_steps, base.horizon, n_action_steps or base.n_action_steps)
        self.base = base.eval().requires_grad_(False)
        self.options = options
        self.range = ActionScale(base.spec)
        self.register_buffer("active", torch.tensor(False))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The base's."""
        return self.base.noise_shape

    def encode(self, obs: Obs) -> Float[Tensor, "b l c"]:
        """The base's tokens."""
        return self.base.encode(obs)

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """The base's chunk."""
        return self.base.sample(obs, noise=noise)

    def unnormalise_action(self, action: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """The base's."""
        return self.base.unnormalise_action(action)

    def loss(self, batch: ChunkBatch, rng: Any = None) -> tuple[Tensor, Metrics]:
        """There is none: it is trained by its rewards."""
        raise ContractError(f"A {type(self).__name__} has no imitation loss; train it with algo={self.algo}.")
