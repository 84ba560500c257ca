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
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algos.critic import EnsembleMLP, adam, move_towards, random_members
from algos.demos import Demo
from algos.features import Features
from algos.off_policy import OffPolicy
from algos.replay import Transition
from algos.squash import squashed_gaussian
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
        self._centre, self._half = (spec.action_high + spec.action_low) / 2, (spec.action_high - spec.action_low) / 2

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(Da,)."""
        return (self.action_dim,)

    def unit(self, action: Tensor) -> Tensor:
        """Environment units -> [-1, 1]."""
        return (action - self._centre) / self._half

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
        return (action * self._half + self._centre).clamp(self.spec.action_low, self.spec.action_high)

    def loss(self, batch: ChunkBatch, rng: Any = None) -> tuple[Tensor, Metrics]:
        """There is none: it is trained by its rewards."""
        raise ContractError("A GaussianPolicy has no imitation loss here; train it with algo=sac or algo=rlpd.")


class SAC:
    """Owns the Gaussian policy, its critics, the replay, and its share of updates per environment step.

    Args:
        policy: to train, see GaussianPolicy.
        n_envs: environments that ``explore`` acts in.
        n_critics, critic_hidden, layer_norm: E critics; n_target_critics: m, those of the minimum.
        batch_size, utd_ratio, n_step, learning_starts, replay_size, replay_gb: see OffPolicy. Until learning starts
            actions are uniform.
        actor_every: critic updates per actor update.
        tau: of the target critics. actor_lr, critic_lr, alpha_lr: Adam's.
        alpha: entropy temperature at the start; target_entropy: per action dimension.
        backup_entropy: whether targets contain the entropy.
        value_low, value_high: what any return lies between; null where that is not known.
        seed: of exploration and batches.
    """

    n_action_steps = 1
    exact_at_start = False

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
        seed: int = 0,
    ):
        self.policy = policy.eval()
        width = policy.actor.in_dim + policy.action_dim
        self.critic = EnsembleMLP(n_critics, width, hidden=critic_hidden, layer_norm=layer_norm)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_optimiser = adam(policy.actor.parameters(), actor_lr)
        self.critic_optimiser = adam(self.critic.parameters(), critic_lr)
        self.log_alpha = torch.nn.Parameter(torch.tensor(math.log(alpha)))
        self.alpha_optimiser = adam([self.log_alpha], alpha_lr)
        self.target_entropy, self.backup_entropy = target_entropy * policy.action_dim, backup_entropy
        self.n_target_critics, self.actor_every, self.tau = n_target_critics, actor_every, tau
        self.value_low, self.value_high = value_low, value_high
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
            seed=seed,
        )
        self.generator = self.core.generator
        self._now: dict[str, Tensor] = {}

    @torch.no_grad()
    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """One drawn action per environment."""
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
        self.core.replay.add(
            {"features": self._now["features"][:, None]},
            self._now["action"],
            step.reward,
            step.discount,
            step.terminated | step.truncated,
            {"features": self.policy.features(step.next_obs)[:, None]},
            step.n_steps,
        )
        self.core.count(step)

    def base_result(self, successes: int, episodes: int) -> None:
        """There is no base."""

    @torch.no_grad()
    def add_demo(self, demo: Demo) -> None:
        """A demonstration, step by step."""
        features = self.policy.features(demo.windows)[:, None, None]
        unit = self.policy.unit(demo.actions[:, 0])
        for t in range(len(unit)):
            now = slice(t, t + 1)
            self.core.demos.add(
                {"features": features[t]},
                unit[now],
                demo.reward[now],
                demo.discount[now],
                demo.done[now],
                {"features": features[t + 1]},
                demo.n_steps[now],
            )

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
            value = value - self.log_alpha.exp() * log_prob
        y = batch.reward + batch.discount * value
        return y.clamp(self.value_low, self.value_high) if self.value_low is not None else y

    def update_critic(self, batch: Transition) -> Metrics:
        """L_Q."""
        y = self.td_target(batch)
        q = self.critic(torch.cat([batch.obs["features"][:, 0], batch.action], 1))[..., 0]
        loss = (q - y).square().mean(1).sum()
        self.critic_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_optimiser.step()
        move_towards(self.target, self.critic, self.tau)
        return {"critic_loss": loss.detach() / len(q), "q": q.detach().mean(), "q_std": q.detach().std(0).mean()}

    def update_actor(self, batch: Transition) -> Metrics:
        """L_pi, and alpha towards the target entropy."""
        features = batch.obs["features"][:, 0]
        eps = torch.randn(len(features), self.policy.action_dim, generator=self.generator)
        action, log_prob = self.policy.draw(features, eps)
        self.critic.requires_grad_(False)
        q = self.critic(torch.cat([features, action], 1))[..., 0].mean(0)
        self.critic.requires_grad_(True)
        alpha = self.log_alpha.exp().detach()
        loss = (alpha * log_prob - q).mean()
        self.actor_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.actor_optimiser.step()
        entropy = -log_prob.detach().mean()
        self.alpha_optimiser.zero_grad(set_to_none=True)
        (self.log_alpha * (entropy - self.target_entropy)).backward()
        self.alpha_optimiser.step()
        return {"actor_loss": loss.detach(), "entropy": entropy, "alpha": alpha}

    _PARTS = ("critic", "target", "actor_optimiser", "critic_optimiser", "alpha_optimiser", "core")

    def state_dict(self) -> dict[str, Any]:
        """All that continues training bit-exactly, but for the environments."""
        state = {name: getattr(self, name).state_dict() for name in self._PARTS}
        return state | {"actor": self.policy.actor.state_dict(), "log_alpha": self.log_alpha.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        for name in self._PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.policy.actor.load_state_dict(state["actor"])
        self.log_alpha.data.copy_(state["log_alpha"])
