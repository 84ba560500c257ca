"""The acting half of residual RL (algos.residual): explores, and says what its learner is to store.

It needs the policy's weights and those of the actor that learns (``weights``), nothing of critics, replays or trust. So
it works beside its learner, or in another process, on a robot's machine.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algos.base_queue import BaseQueue
from algos.corrected import ResidualPolicy
from algos.critic import EnsembleMLP
from algos.features import Sight, sight_of
from algos.roles import Roles
from algos.temperature import Temperature
from policies.policy import Obs

OF_STEP = ("reward", "discount", "terminated", "truncated", "success", "n_steps")


class Decision(NamedTuple):
    """One decision of N environments and what came of it, whole; tensors with leading axis N.

    Attributes:
        seen, after: per key, what was seen before and after it, as ``Sight`` keeps it.
        action: as the critics see it; extras: what else the learner stores, such as the base's actions.
        reward, discount, terminated, truncated, success, n_steps: as in ``ChunkStep``.
        fresh: whether the episode began with it.
        base_only, quiet: how the episode is acted (algos.roles).
        books: (2, A), what every temperature that is tried has won and lost by now.
    """

    seen: dict[str, Tensor]
    after: dict[str, Tensor]
    extras: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    discount: Tensor
    terminated: Tensor
    truncated: Tensor
    success: Tensor
    n_steps: Tensor
    fresh: Tensor
    base_only: Tensor
    quiet: Tensor
    books: Tensor

    @classmethod
    def of(cls, step: Any, roles: Roles, fresh: Bool[Tensor, " n"], **own: Any) -> Decision:
        """With what a ChunkStep and the episodes' roles say; ``own`` are the fields that the acting half knows."""
        told = {name: getattr(step, name) for name in OF_STEP}
        return cls(**told, base_only=roles.base_only, quiet=roles.quiet, fresh=fresh, **own)


class Explorer:
    """Acts in N environments.

    Args:
        policy: what is handed out; acts the episodes without noise.
        actor: that learns; acts the others.
        sight: what is kept of observations.
        roles, temperature: of the episodes, N of them.
        generator: all draws come from it.
        explore_std: of the noise on corrections, as a part of half the action range.
    """

    def __init__(
        self,
        policy: ResidualPolicy,
        actor: EnsembleMLP,
        sight: Sight,
        roles: Roles,
        temperature: Temperature,
        generator: torch.Generator,
        explore_std: float,
    ):
        self.policy, self.actor, self.sight, self.roles = policy, actor, sight, roles
        self.temperature, self.generator, self.explore_std = temperature, generator, explore_std
        self.queue = BaseQueue(policy.base, len(roles.quiet))
        self.now: dict[str, Tensor] = {}  # base's and own action of the present decision ...
        self.seen: dict[str, Tensor] = {}  # ... and what it was taken on
        self._fresh = torch.ones(len(roles.quiet), dtype=torch.bool)

    # ------------------------------------------------------------------ in another process

    @property
    def options(self) -> dict[str, Any]:
        """What ``elsewhere`` makes another one of, besides policy and seed: plain data."""
        roles, arms = self.roles, self.temperature.arms
        return {
            "explore_std": self.explore_std,
            "base_fraction": roles.base_fraction,
            "quiet_fraction": roles.quiet_fraction,
            "temperatures": list(arms),
            "books": self.temperature.books.tolist(),
        }

    @classmethod
    def elsewhere(
        cls,
        policy: ResidualPolicy,
        *,
        explore_std: float,
        base_fraction: float,
        quiet_fraction: float,
        temperatures: Sequence[float],
        books: Sequence[Sequence[float]],
        seed: int,
    ) -> Explorer:
        """In one environment, without its learner; begins to be of use with the first ``load_weights``."""
        temperature = Temperature(policy.base, temperatures, 1)
        temperature.books = torch.tensor(books, dtype=torch.float64)
        return cls(
            policy,
            copy.deepcopy(policy.actor),
            sight_of(policy.features, policy.n_obs_steps),
            Roles(1, base_fraction, quiet_fraction),
            temperature,
            torch.Generator().manual_seed(seed),
            explore_std,
        )

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """All that changes while its learner learns; the learner's own tensors where they are weights."""
        parts = {"actor": self.actor, "averaged": self.policy.actor, "features": self.policy.features}
        state: dict[str, dict[str, Tensor]] = {name: module.state_dict() for name, module in parts.items()}
        return {**state, "roles": {"warming_up": torch.tensor(self.roles.warming_up)}}

    def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Those of another one. Raises RuntimeError, KeyError: they are not of such a policy."""
        self.actor.load_state_dict(weights["actor"])
        self.policy.actor.load_state_dict(weights["averaged"])
        self.policy.features.load_state_dict(weights["features"])
        self.roles.warming_up = bool(weights["roles"]["warming_up"])

    # ------------------------------------------------------------------ acting

    @torch.no_grad()
    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """Actions, environment units; ``fresh`` marks the environments whose episode has just begun."""
        self._fresh = fresh
        if not self.now or fresh.any():
            self._begin(obs, fresh)
        features, base = self.sight.features(self.seen), self.now["base"]
        noise = self.explore_std * torch.randn(len(base), 1, base.shape[2], generator=self.generator)
        alone, quiet = self.roles.base_only[:, None, None], self.roles.quiet[:, None, None]
        action = torch.where(alone, base, self.policy.corrected(features, base, self.actor)) + noise
        handed_out = torch.where(alone, base, self.policy.corrected(features, base))
        self.now["action"] = torch.where(quiet, handed_out, action).clamp(-1, 1)
        return self.policy.range.environment(self.now["action"])

    def _begin(self, obs: Obs, fresh: Tensor) -> None:
        """New episodes: no chunk of the last one is left, and the base gets its share of them."""
        self.queue.clear(fresh)
        self.roles.begin(fresh, self.generator)
        self.temperature.begin(fresh, self.generator)
        base = self.policy.range.unit(self._next(obs, fresh))
        if self.now:
            base = torch.where(fresh[:, None, None], base, self.now["base"])
        self.now, self.seen = {"base": base}, self.sight(obs)

    def _next(self, obs: Obs, rows: Bool[Tensor, " n"]) -> Float[Tensor, "n h da"]:
        policy = self.policy
        return self.queue.next(policy.base, obs, self.generator, rows, policy.n_action_steps, self.temperature.now)

    @torch.no_grad()
    def observe(self, step: Any) -> Decision:
        """The decision of ``explore`` and what followed it; ``step`` is a ChunkStep."""
        after = self.sight(step.next_obs)
        base = self.policy.range.unit(self._next(step.next_obs, ~step.terminated))
        for env in (step.terminated | step.truncated).nonzero()[:, 0].tolist():
            self.temperature.add(env, bool(step.success[env]))
        decision = Decision.of(
            step,
            self.roles,
            self._fresh,
            seen=self.seen,
            after=after,
            extras={"base": self.now["base"], "next_base": base},
            action=self.now["action"],
            books=self.temperature.books,
        )
        self.now, self.seen = {"base": base}, after
        return decision

    def state_dict(self) -> dict[str, Any]:
        """What is under way; weights, roles, temperatures and the generator are kept by whoever shares them."""
        return {"queue": self.queue.state_dict(), "now": self.now, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.queue.load_state_dict(state["queue"])
        self.now, self.seen = dict(state["now"]), dict(state["seen"])
