"""A frozen chunked base whose actions are corrected: what residual RL (algos.residual) trains, saves and deploys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from algos.base_queue import BaseQueue, several
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
        n_candidates: M chunks that the base is asked for; with more than one, ``critic`` chooses.
        n_critics, critic_hidden: of the choosing critics.
    """

    algo = "residual"

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
        n_candidates: int = 1,
        n_critics: int = 4,
        critic_hidden: Sequence[int] = (128, 128),
    ):
        if encoder not in ("frozen", "learned"):
            raise ConfigError(f"encoder is frozen or learned, not '{encoder}'.")
        if base.n_action_steps % hold:
            raise ConfigError(f"hold={hold} must divide the base's n_action_steps={base.n_action_steps}.")
        if n_candidates < 1:
            raise ConfigError(f"n_candidates={n_candidates} must be at least 1.")
        options = {"scale": scale, "hold": hold, "hidden": list(hidden), "layer_norm": layer_norm, "encoder": encoder}
        if n_candidates > 1:
            options |= {"n_candidates": n_candidates, "n_critics": n_critics, "critic_hidden": list(critic_hidden)}
        super().__init__(base, options, n_action_steps=hold)
        self.features = Features(base) if encoder == "frozen" else LearnedFeatures(base, shift)
        self.scale, self.n_candidates = scale, n_candidates
        n, da = self.features.out_dim(), base.action_dim
        self.actor = EnsembleMLP(1, n + hold * da, da, hidden=hidden, layer_norm=layer_norm, final_scale=0.0)
        self.critic: EnsembleMLP | None = None
        if n_candidates > 1:
            self.critic = EnsembleMLP(n_critics, n + (hold + 1) * da, hidden=critic_hidden).requires_grad_(False)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The base's, for every candidate."""
        shape = self.base.noise_shape
        return shape if self.n_candidates == 1 else (self.n_candidates, *shape)

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """The base's chunk, for the first candidate's noise."""
        return self.base.sample(obs, noise=self.first(noise))

    def first(self, noise: Tensor | None) -> Tensor | None:
        """(B, *noise_shape) -> (B, *noise_shape of the base)."""
        return noise if noise is None or self.n_candidates == 1 else noise[:, 0]

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

    def judged(
        self, seen: Float[Tensor, "b g"], base: Float[Tensor, "b h da"], action: Float[Tensor, "b h da"]
    ) -> Float[Tensor, "b d"]:
        """What the critics see; of actions: the base's, and how far they depart from it on the mean, per scale.

        From the whole action critics learn what goes with success ("lift"), whoever caused it, and an actor that
        follows them lifts before it grasps. What a departure does shows only in the noise that was tried.
        """
        return torch.cat([seen, base.flatten(1), (action - base).mean(1) / self.scale], 1)

    @torch.no_grad()
    def best(
        self, features: Float[Tensor, "b f"], candidates: Float[Tensor, "b m h da"], actor: EnsembleMLP | None = None
    ) -> Int64[Tensor, " b"]:
        """The candidate whose corrected actions the critics value most, on their mean."""
        m = candidates.shape[1]
        if self.critic is None or m == 1:
            return torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
        seen, base = features.repeat_interleave(m, 0), candidates.flatten(0, 1)
        value = self.critic(self.judged(seen, base, self.corrected(seen, base, actor)))[..., 0].mean(0)
        return value.unflatten(0, (-1, m)).argmax(1)

    @torch.no_grad()
    def act_from(
        self, obs: Obs, memory: BaseQueue | None, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "b ta da"], BaseQueue]:
        """The next ``hold`` control steps; the memory is the rest of the base's chunk."""
        n = len(next(iter(obs.values())))
        queue = memory or BaseQueue(self.base, n, self.n_candidates if self.active else 1)
        candidates = queue.candidates(self.base, obs, generator, steps=self.n_action_steps).to(self.device)
        chosen, actions = self.correct(obs, candidates)
        queue.choose(torch.ones(n, dtype=torch.bool), chosen.to(queue.chunks.device))
        return actions, queue

    def correct(
        self, obs: Obs, candidates: Float[Tensor, "b m h da"]
    ) -> tuple[Int64[Tensor, " b"], Float[Tensor, "b h da"]]:
        """(the candidate that is best, its actions corrected from ``obs``); environment units."""
        rows = torch.arange(len(candidates), device=candidates.device)
        if not self.active:
            return torch.zeros_like(rows), candidates[:, 0]
        features, units = self.features(obs), self.range.unit(candidates)
        chosen = self.best(features, units)
        base, unit = candidates[rows, chosen], units[rows, chosen]
        action = self.corrected(features, unit)
        return chosen, torch.where(action != unit, self.range.environment(action), base)

    @torch.no_grad()
    def act(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b ta da"]:
        """The first steps of a new chunk of the base, corrected."""
        self.check_obs(obs)
        noise = self.draw_noise(len(next(iter(obs.values())))) if noise is None else noise
        noise = noise if self.n_candidates > 1 else noise[:, None]
        candidates = several(obs, self.base, noise if self.active else noise[:, :1])
        return self.correct(obs, candidates[:, :, : self.n_action_steps])[1]
