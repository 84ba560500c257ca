"""A frozen chunked base whose actions are corrected: what residual RL (algos.residual) trains, saves and deploys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from algos.base_queue import BaseQueue
from algos.critic import EnsembleMLP
from algos.features import Features, LearnedFeatures
from algos.wrapper import WrappedPolicy
from data.errors import ConfigError
from policies.policy import Obs, Policy


class ResidualPolicy(WrappedPolicy):
    """The base's chunk, executed a few steps at a time, each time corrected from the newest observation.

    Args:
        base: any policy; frozen.
        scale: largest correction, as a part of half the action range.
        hold: control steps that a correction is held for; divides the base's Ta.
        hidden: of the correcting network; its last layer starts at zero, so an untrained one is the base exactly.
        layer_norm: in the correcting network.
        encoder: "frozen" looks through the base's encoder, "learned" through a copy that the critics go on training.
        shift: pixels that images are moved by in training, where it is learned.

    Attributes:
        temperature: factor on the base's noise while this is active.
    """

    algo = "residual"
    temperature: Tensor

    def __init__(
        self,
        base: Policy,
        *,
        scale: float = 0.2,
        hold: int = 1,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = True,
        encoder: Literal["frozen", "learned"] = "frozen",
        shift: int = 4,
    ):
        if encoder not in ("frozen", "learned"):
            raise ConfigError(f"encoder is frozen or learned, not '{encoder}'.")
        if base.n_action_steps % hold:
            raise ConfigError(f"hold={hold} must divide the base's n_action_steps={base.n_action_steps}.")
        options = {"scale": scale, "hold": hold, "hidden": list(hidden), "layer_norm": layer_norm, "encoder": encoder}
        super().__init__(base, options, n_action_steps=hold)
        self.features = Features(base) if encoder == "frozen" else LearnedFeatures(base, shift)
        self.scale = scale
        n, da = self.features.out_dim(), base.action_dim
        self.actor = EnsembleMLP(1, n + hold * da, da, hidden=hidden, layer_norm=layer_norm, final_scale=0.0)
        self.register_buffer("temperature", torch.tensor(1.0))

    def residual(
        self, features: Float[Tensor, "b f"], base: Float[Tensor, "b h da"], actor: EnsembleMLP | None = None
    ) -> Float[Tensor, "b da"]:
        """scale * pi(s, a_base), unit actions; pi is this policy's, or another ``actor``."""
        return self.scale * self.squash((actor or self.actor)(torch.cat([features, base.flatten(1)], 1))[0])

    def squash(self, out: Float[Tensor, "b da"]) -> Float[Tensor, "b da"]:
        """The network's output -> pi in [-1, 1]."""
        return torch.tanh(out)

    def corrected(
        self, features: Float[Tensor, "b f"], base: Float[Tensor, "b h da"], actor: EnsembleMLP | None = None
    ) -> Float[Tensor, "b h da"]:
        """a_base + scale * pi, unit actions; the base's exactly where the correction is zero."""
        return (base + self.residual(features, base, actor)[:, None]).clamp(-1, 1)

    @torch.no_grad()
    def act_from(
        self, obs: Obs, memory: BaseQueue | None, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "b ta da"], BaseQueue]:
        """The next ``hold`` control steps; the memory is the rest of the base's chunk."""
        n = len(next(iter(obs.values())))
        queue = memory or BaseQueue(self.base, n)
        temperature = self.temperature.cpu().expand(n) if self.active else None
        base = queue.next(self.base, obs, generator, steps=self.n_action_steps, temperature=temperature)
        return self.correct(obs, base.to(self.device)), queue

    def correct(self, obs: Obs, base: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """The base's actions corrected from ``obs``; environment units."""
        if not self.active:
            return base
        unit = self.range.unit(base)
        action = self.corrected(self.features(obs), unit)
        return torch.where(action != unit, self.range.environment(action), base)

    @torch.no_grad()
    def act(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b ta da"]:
        """The first steps of a new chunk of the base, corrected."""
        self.check_obs(obs)
        if self.active:
            noise = self.draw_noise(len(next(iter(obs.values())))) if noise is None else noise
            noise = noise * self.temperature
        return self.correct(obs, self.base.act(obs, noise=noise)[:, : self.n_action_steps])
