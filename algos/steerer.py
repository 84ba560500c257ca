"""The acting half of DSRL (algos.dsrl): explores by steering, and says what its learner is to store.

It needs the steered policy and no critic, replay or trust. So it works beside its learner, or in another process, on a
robot's machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algos.explorer import Decision
from algos.features import Sight
from algos.roles import Roles
from algos.steered import SteeredPolicy
from data.chunks import executed_slice
from policies.policy import Obs


class Steerer:
    """Acts in N environments.

    Args:
        policy: is steered; its actor learns meanwhile.
        sight: what is kept of observations, besides the base's tokens.
        roles: of the episodes, N of them.
        generator: all draws come from it.
        n_candidates: (w, chunk) pairs that go with each observation; 0: decisions are noise, and none are wanted.
    """

    def __init__(
        self, policy: SteeredPolicy, sight: Sight, roles: Roles, generator: torch.Generator, *, n_candidates: int
    ):
        self.policy, self.sight, self.roles, self.generator = policy, sight, roles, generator
        self.n_candidates = n_candidates
        self.now: dict[str, Tensor] = {}  # what was seen, and "action"
        self._fresh = torch.ones(len(roles.quiet), dtype=torch.bool)

    # ------------------------------------------------------------------ in another process

    @property
    def options(self) -> dict[str, Any]:
        """What ``elsewhere`` makes another one of, besides policy and seed: plain data."""
        return {
            "n_candidates": self.n_candidates,
            "base_fraction": self.roles.base_fraction,
            "quiet_fraction": self.roles.quiet_fraction,
        }

    @classmethod
    def elsewhere(
        cls, policy: SteeredPolicy, *, n_candidates: int, base_fraction: float, quiet_fraction: float, seed: int
    ) -> Steerer:
        """In one environment, without its learner; begins to be of use with the first ``load_weights``."""
        roles = Roles(1, base_fraction, quiet_fraction)
        generator = torch.Generator().manual_seed(seed)
        return cls(policy, Sight(policy.features, None), roles, generator, n_candidates=n_candidates)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """All that changes while its learner learns; the learner's own tensors where they are weights."""
        warming_up = torch.tensor(self.roles.warming_up)
        return {"actor": self.policy.actor.state_dict(), "roles": {"warming_up": warming_up}}

    def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Those of another one. Raises RuntimeError, KeyError: they are not of such a policy."""
        self.policy.actor.load_state_dict(weights["actor"])
        self.roles.warming_up = bool(weights["roles"]["warming_up"])

    # ------------------------------------------------------------------ noise, and what the base makes of it

    def gaussian(self, n: int) -> Float[Tensor, "n d"]:
        """Standard normal."""
        return torch.randn(n, self.policy.steer_dim, generator=self.generator)

    def anywhere(self, n: int) -> Float[Tensor, "n d"]:
        """Uniform within the bound."""
        return (torch.rand(n, self.policy.steer_dim, generator=self.generator) * 2 - 1) * self.policy.bound

    def chunk(self, tokens: Tensor, w: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        """The executed actions (B, Ta, Da) in environment units, and flat in [-1, 1] as a critic sees them."""
        base = self.policy.base
        drawn = base.draw_noise(len(w), self.generator)
        whole = base.unnormalise_action(base.decode(tokens, self.policy.noise(w, drawn)))
        actions = whole[:, executed_slice(base.n_obs_steps, base.n_action_steps)]
        return actions, self.policy.range.unit(actions).flatten(1)

    def candidates(self, tokens: Tensor) -> dict[str, Tensor]:
        """Noise (B, M, D) and what the base makes of it (B, M, Ta * Da), where they are wanted."""
        if not self.n_candidates:
            return {}
        n = len(tokens) * self.n_candidates
        w = self.gaussian(n) if self.policy.kind != "offset" else self.anywhere(n)
        _, actions = self.chunk(tokens.repeat_interleave(self.n_candidates, 0), w)
        return {name: x.unflatten(0, (-1, self.n_candidates)) for name, x in (("w", w), ("chunk", actions))}

    # ------------------------------------------------------------------ acting

    def see(self, obs: Obs) -> dict[str, Tensor]:
        """What is stored of an observation: features for the critics, tokens for the base."""
        tokens = self.policy.base.encode(obs)
        return {**self.sight(obs, tokens), "tokens": tokens}

    @torch.no_grad()
    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """Chunks, environment units; ``fresh`` marks the environments whose episode has just begun."""
        self._fresh = fresh
        self.roles.begin(fresh, self.generator)
        seen, eps = self.see(obs), self.gaussian(len(fresh))
        steered, _ = self.policy.draw(seen["features"], torch.where(self.roles.quiet[:, None], 0.0, eps))
        alone = self.roles.base_only
        if self.roles.warming_up and self.policy.kind == "offset":
            alone = alone & self.roles.quiet  # the others show what the untrained actor's noise does
        w = torch.where(alone[:, None], self.policy.unsteered(eps), steered)
        actions, unit = self.chunk(seen["tokens"], w)
        self.now = {**seen, "action": unit if self.n_candidates else w}
        return actions

    @torch.no_grad()
    def observe(self, step: Any) -> Decision:
        """The decision of ``explore`` and what followed it; ``step`` is a ChunkStep."""
        after = self.see(step.next_obs)
        return Decision.of(
            step,
            self.roles,
            self._fresh,
            seen={k: self.now[k] for k in after},
            after=after,
            extras=self.candidates(self.now["tokens"]),
            action=self.now["action"],
            books=torch.zeros(2, 0, dtype=torch.float64),
        )
