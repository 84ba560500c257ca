"""Two policies as one, for everything that asks a policy for actions; see ``policies.inference.compose``."""

from __future__ import annotations

import dataclasses

from jaxtyping import Float
from torch import Tensor

from data.chunks import ChunkBatch
from data.errors import ConfigError, ContractError
from data.spec import TaskSpec
from policies.chunk_policy import ChunkPolicy
from policies.inference.compose import Mode, check_compatible, check_options, compose, noise_shape
from policies.policy import Metrics, Obs, Policy
from policies.rng import BatchRng


class Composed(Policy):
    """Sees what either of them sees; steps by the schedule of the first.

    Args:
        a, b: trained on the same task and demonstrations, with any heads and observations.
        mode, weight: see ``compose``.
    """

    def __init__(self, a: Policy, b: Policy, *, mode: Mode = "convex", weight: float = 0.5):
        if not isinstance(a, ChunkPolicy) or not isinstance(b, ChunkPolicy):
            raise ConfigError(
                f"compose needs heads to step: {type(a).__name__} and {type(b).__name__} are not imitation."
            )
        check_options(mode, weight)
        check_compatible(a, b)
        super().__init__(union(a.spec, b.spec), a.n_obs_steps, a.horizon, a.n_action_steps)
        self.a, self.b, self.weight = a, b, weight
        self.mode: Mode = mode

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """See ``compose``."""
        return noise_shape(self.a, self.mode)

    def loss(self, batch: ChunkBatch, rng: BatchRng | None = None) -> tuple[Float[Tensor, ""], Metrics]:
        """There is nothing to train."""
        raise ContractError("Composed policies are not trained: train the two of them.")

    def encode(self, obs: Obs) -> Float[Tensor, "b l c"]:
        """The first one's tokens."""
        return self.a.encode(obs)

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """By both."""
        noise = self.draw_noise(len(next(iter(obs.values())))) if noise is None else noise
        return compose(self.a, self.b, obs, noise=noise, mode=self.mode, weight=self.weight)

    def unnormalise_action(self, action: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """The same for both."""
        return self.a.unnormalise_action(action)


def union(a: TaskSpec, b: TaskSpec) -> TaskSpec:
    """The task with the observations of both.

    Raises:
        ContractError: they are not the same task.
    """
    first, second = ({k: v for k, v in spec.env_args.items() if k != "obs"} for spec in (a, b))
    if first != second:
        differing = sorted(k for k in {*first, *second} if first.get(k) != second.get(k))
        raise ContractError(
            "Composed policies need the same task; these differ in "
            + ", ".join(f"{k} ({first.get(k)}, {second.get(k)})" for k in differing)
        )
    keys = list(dict.fromkeys([*a.env_args.get("obs", []), *b.env_args.get("obs", [])]))
    env_args = {**a.env_args, "obs": keys} if keys else a.env_args
    return dataclasses.replace(a, obs={**a.obs, **b.obs}, env_args=env_args)
