"""A frozen diffusion or flow policy under a chosen noise: what DSRL (algos.dsrl) trains, saves and deploys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from algos.critic import EnsembleMLP
from algos.features import Features
from algos.soft_actor import raw_std, squashed_gaussian
from algos.wrapper import WrappedPolicy
from data.errors import ConfigError
from policies.chunk_policy import ChunkPolicy
from policies.policy import Obs, Policy

Steer = Literal["chunk", "vector", "offset"]


class SteeredPolicy(WrappedPolicy):
    """The base, given a chosen noise instead of a drawn one.

    Args:
        base: a policy whose sample is a function of one noise chunk; frozen.
        bound: b; each chosen component lies in [-b, b].
        steer: "chunk", "vector" or "offset", see algos.dsrl. For "offset" the last component is the temperature,
            lambda = 0 at -b and 1 at b.
        start_std: of the untrained actor, before tanh.
        hidden: of the steering network.
    """

    algo = "dsrl"
    base: ChunkPolicy

    def __init__(
        self,
        base: Policy,
        *,
        bound: float = 1.5,
        steer: Steer = "chunk",
        start_std: float = 1.0,
        hidden: Sequence[int] = (256, 256),
    ):
        if not isinstance(base, ChunkPolicy) or len(base.noise_shape) != 2:
            raise ConfigError(
                f"algo=dsrl steers a policy that is a function of one noise chunk (H, Da); the base's noise has shape "
                f"{base.noise_shape}. With policy=diffusion choose the sampler ddim."
            )
        if steer not in get_args(Steer):
            raise ConfigError(f"steer must be one of {', '.join(get_args(Steer))}, not {steer!r}.")
        options = {"bound": bound, "steer": steer, "start_std": start_std, "hidden": list(hidden)}
        super().__init__(base, options)
        self.features = Features(base)
        self.bound, self.kind = bound, steer
        h, da = base.horizon, base.action_dim
        self.steer_dim = {"chunk": h * da, "vector": da, "offset": da + 1}[steer]
        self.actor = EnsembleMLP(1, self.features.out_dim(), 2 * self.steer_dim, hidden=hidden, final_scale=0.1)
        bias = self.actor.biases[-1].data
        bias[..., self.steer_dim :] += raw_std(start_std)
        if steer == "offset":
            bias[..., da] += 1.5  # lambda 0.95

    def noise(self, w: Float[Tensor, "b d"], drawn: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """What the base takes as noise: the chosen components, around or instead of what it would have ``drawn``."""
        if self.kind == "chunk":
            return w.unflatten(1, (self.horizon, self.action_dim))
        if self.kind == "vector":
            return w[:, None].expand(-1, self.horizon, -1)
        temperature = (1 + w[:, None, -1:] / self.bound) / 2
        return temperature * drawn + w[:, None, :-1]

    def unsteered(self, eps: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """The components that leave the base what it would do by itself, from standard normal ``eps``."""
        if self.kind != "offset":
            return eps
        return torch.cat([torch.zeros_like(eps[:, :-1]), torch.full_like(eps[:, -1:], self.bound)], 1)

    def draw(self, features: Float[Tensor, "b f"], eps: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        """w = b tanh(mean + std eps), and its log-density (B,) per unit of w / b."""
        x, log_prob = squashed_gaussian(self.actor(features)[0], eps)
        return self.bound * x, log_prob

    def steer(self, obs: Obs) -> Float[Tensor, "b d"]:
        """The middle of the actor's distribution."""
        return self.bound * torch.tanh(self.actor(self.features(obs))[0, :, : self.steer_dim])

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """The base's chunk for the chosen noise, or for ``noise`` while it is not active."""
        if self.active:
            drawn = self.draw_noise(len(next(iter(obs.values())))) if noise is None else noise
            noise = self.noise(self.steer(obs), drawn)
        return self.base.sample(obs, noise=noise)
