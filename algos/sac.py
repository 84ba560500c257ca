"""Soft actor-critic from nothing (Haarnoja et al. 2018) and with demonstrations (RLPD, Ball et al. 2023).

    y = r + gamma^n (min_{m of E} Q'(s', a') - alpha log pi(a'|s')),  a' ~ pi(s')
    L_Q = sum_e (Q_e(s, a) - y)^2
    L_pi = alpha log pi(a|s) - mean_e Q_e(s, a),  alpha adjusted towards the target entropy

``algo=sac`` has two critics, no LayerNorm and an entropy term in y. ``algo=rlpd`` is what that paper changes: half of
every batch from demonstrations, LayerNorm, an ensemble of critics with a random subset for the minimum, no entropy in
y, and more updates per step. The policy is one Gaussian action per control step: the baseline of every table.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algos.critic import EnsembleMLP, adam, frozen, move_towards, random_members, regress
from algos.demos import Demo
from algos.features import Features
from algos.off_policy import OffPolicy
from algos.replay import Transition
from algos.soft_actor import SoftActor, squashed_gaussian
from algos.wrapper import ActionScale
from data.chunks import ChunkBatch
from data.errors import ContractError
from data.normaliser import Normaliser
from data.spec import TaskSpec
from policies.policy import Metrics, Obs, Policy


class GaussianPolicy(Policy):
    """tanh(N(mu(s), sigma(s))) over one action, from normalised states.

    Args:
        spec: the task; observations of kind "state" only.
        normaliser: of the observations.
        n_obs_steps: To.
        hidden: of the network.
        layer_norm: in the network.
    """

    def __init__(
        self,
        spec: TaskSpec,
        normaliser: Normaliser,
        *,
        n_obs_steps: int = 1,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = True,
    ):
        super().__init__(spec, n_obs_steps, n_obs_steps, 1)
        images = [k for k, f in spec.obs.items() if f.kind != "state"]
        if images:
            raise ContractError(f"A GaussianPolicy sees states only, not {images}; choose obs=state.")
        self.normaliser = normaliser
        self.features = Features(self)
        self.options = {"n_obs_steps": n_obs_steps, "hidden": list(hidden), "layer_norm": layer_norm}
        width = sum(n_obs_steps * f.shape[-1] for f in spec.obs.values())
        self.actor = EnsembleMLP(1, width, 2 * self.action_dim, hidden=hidden, layer_norm=layer_norm, final_scale=0.1)
        self.range = ActionScale(spec)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(Da,)."""
        return (self.action_dim,)

    def draw(self, features: Float[Tensor, "b f"], eps: Float[Tensor, "b da"]) -> tuple[Tensor, Tensor]:
        """Actions in [-1, 1] and their log-density (B,)."""
        return squashed_gaussian(self.actor(features)[0], eps)

    def encode(self, obs: Obs) -> Float[Tensor, "b l c"]:
        """The normalised states, one token."""
        return self.features(obs)[:, None]

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """The most likely action at the executed step; ``noise`` is not used: the deployed policy is deterministic."""
        action = torch.tanh(self.actor(self.features(obs))[0, :, : self.action_dim])
        return action[:, None].expand(-1, self.horizon, -1)

    def unnormalise_action(self, action: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """From [-1, 1] to environment units."""
        return self.range.environment(action)

    def loss(self, batch: ChunkBatch, rng: Any = None) -> tuple[Tensor, Metrics]:
        """There is none: it is trained by its rewards."""
        raise ContractError("A GaussianPolicy has no imitation loss here; train it with algo=sac or algo=rlpd.")


class SAC:
    """Owns the Gaussian policy, its critics, the replay, and its share of updates per environment step.

    Args:
        policy: to train, see GaussianPolicy.
        n_envs: environments that ``explore`` acts in.
        n_critics, critic_hidden, layer_norm: E critics; n_target_critics: m, those of the minimum.
        batch_size, utd_ratio, n_step, learning_starts, replay_size, replay_gb, replay_dir, value_low, value_high,
            seed: see OffPolicy. Until learning starts actions are uniform.
        actor_every: critic updates per actor update.
        tau: of the target critics. actor_lr, critic_lr, alpha_lr: Adam's.
        alpha: entropy temperature at the start; target_entropy: per action dimension.
        backup_entropy: whether targets contain the entropy.
    """

    n_action_steps = 1
    exact_at_start, on_policy = False, False  # see algos.learner

    def __init__(
        self,
        policy: GaussianPolicy,
        n_envs: int,
        *,
        n_critics: int = 2,
        critic_hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        n_target_critics: int = 2,
        batch_size: int = 256,
        utd_ratio: float = 1.0,
        actor_every: int = 1,
        n_step: int = 1,
        tau: float = 0.005,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        alpha_lr: float = 3e-4,
        alpha: float = 1.0,
        target_entropy: float = -1.0,
        backup_entropy: bool = True,
        learning_starts: int = 5000,
        value_low: float | None = None,
        value_high: float | None = None,
        replay_size: int = 1_000_000,
        replay_gb: float = 2.0,
        replay_dir: str | None = None,
        seed: int = 0,
    ):
        self.policy = policy.eval()
        width = policy.actor.in_dim + policy.action_dim
        self.critic = EnsembleMLP(n_critics, width, hidden=critic_hidden, layer_norm=layer_norm)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = SoftActor(
            policy.actor.parameters(),
            lr=actor_lr,
            alpha=alpha,
            alpha_lr=alpha_lr,
            target_entropy=target_entropy * policy.action_dim,
        )
        self.critic_optimiser = adam(self.critic.parameters(), critic_lr)
        self.backup_entropy = backup_entropy
        self.n_target_critics, self.actor_every, self.tau = n_target_critics, actor_every, tau
        self.core = OffPolicy(
            n_envs,
            batch_size=batch_size,
            utd_ratio=utd_ratio,
            n_step=n_step,
            learning_starts=learning_starts,
            warmup_steps=0,
            base_fraction=0.0,
            quiet_fraction=0.0,
            replay_size=replay_size,
            replay_gb=replay_gb,
            replay_dir=replay_dir,
            value_low=value_low,
            value_high=value_high,
            seed=seed,
        )
        self.generator = self.core.generator
        self._now: dict[str, Tensor] = {}

    @torch.no_grad()
    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """One drawn action per environment."""
        self.core.replay.cut(fresh)
        features = self.policy.features(obs)
        shape = (len(features), self.policy.action_dim)
        if self.core.env_steps < self.core.learning_starts and not len(self.core.demos):
            action = torch.rand(shape, generator=self.generator) * 2 - 1
        else:
            action, _ = self.policy.draw(features, torch.randn(shape, generator=self.generator))
        self._now = {"features": features, "action": action}
        return self.policy.unnormalise_action(action[:, None])

    @torch.no_grad()
    def observe(self, step: Any) -> None:
        """Stores the transition that followed ``explore``; ``step`` is a ChunkStep."""
        after = {"features": self.policy.features(step.next_obs)}
        self.core.store({"features": self._now["features"]}, self._now["action"], step, after)

    @property
    def counters(self) -> dict[str, float]:
        """For the log."""
        return self.core.counters

    def base_result(self, successes: int, episodes: int) -> None:
        """There is no base."""

    @torch.no_grad()
    def add_demo(self, demo: Demo) -> None:
        """A demonstration, step by step."""
        seen = {"features": self.policy.features(demo.windows)}
        self.core.store_demo(demo, seen, self.policy.range.unit(demo.actions[:, 0]))

    def update(self) -> Metrics:
        """The updates that are due; metrics of the last one."""
        metrics: Metrics = {}
        for batch in self.core.due():
            metrics |= self.update_critic(batch)
            if self.core.n_updates % self.actor_every == 0:
                metrics |= self.update_actor(batch)
        return metrics

    @torch.no_grad()
    def td_target(self, batch: Transition) -> Float[Tensor, " b"]:
        """y."""
        features = batch.next_obs["features"][:, 0]
        eps = torch.randn(len(features), self.policy.action_dim, generator=self.generator)
        action, log_prob = self.policy.draw(features, eps)
        members = random_members(self.target.n_members, self.n_target_critics, self.generator)
        value = self.target(torch.cat([features, action], 1), members)[..., 0].min(0).values
        if self.backup_entropy:
            value = value - self.actor.alpha * log_prob
        return self.core.target(batch, value)

    def update_critic(self, batch: Transition) -> Metrics:
        """L_Q."""
        x = torch.cat([batch.obs["features"][:, 0], batch.action], 1)
        metrics = regress(self.critic, self.critic_optimiser, x, self.td_target(batch))
        move_towards(self.target, self.critic, self.tau)
        return metrics

    def update_actor(self, batch: Transition) -> Metrics:
        """L_pi, and alpha towards the target entropy."""
        features = batch.obs["features"][:, 0]
        eps = torch.randn(len(features), self.policy.action_dim, generator=self.generator)
        action, log_prob = self.policy.draw(features, eps)
        with frozen(self.critic):
            q = self.critic(torch.cat([features, action], 1))[..., 0].mean(0)
        return self.actor.step(q, log_prob)

    _PARTS = ("critic", "target", "actor", "critic_optimiser", "core")

    def state_dict(self) -> dict[str, Any]:
        """All that continues training bit-exactly, but for the environments."""
        state = {name: getattr(self, name).state_dict() for name in self._PARTS}
        return {**state, "policy": self.policy.actor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        for name in self._PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.policy.actor.load_state_dict(state["policy"])
