"""What on-policy fine-tuners share: advantages and proximal policy optimisation (Schulman et al. 2017).

    A_t = sum_l (prod lam discount) delta_{t+l},  delta_t = r_t + discount_t V(s'_t) - V(s_t)      (GAE)
    L_pi = -mean min(rho A, clip(rho, 1 - eps, 1 + eps) A),  rho = pi(a | s) / pi_old(a | s)

The discount of a decision comes with it (``ChunkStep.discount``): 0 where the task ended, and gamma^n where a time
limit cut the episode, which goes on being worth what its true successor is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from algos.critic import EnsembleMLP, adam
from algos.demos import Demo
from algos.rates import FallingRates
from algos.rollout import RewardScale, Rollout
from data.errors import ConfigError
from policies.policy import Metrics, Obs, Policy


def gae(
    reward: Float[Tensor, "t n"],
    value: Float[Tensor, "t n"],
    next_value: Float[Tensor, "t n"],
    discount: Float[Tensor, "t n"],
    done: Bool[Tensor, "t n"],
    lam: float,
) -> Float[Tensor, "t n"]:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16) of N environments over T decisions.

    Args:
        reward, discount: of ``ChunkStep``.
        value, next_value: V of the state decided in, and of its true successor (before any autoreset).
        done: the episode ended, by success or by the clock; nothing of the next one counts.
        lam: per decision.
    """
    delta = reward + discount * next_value - value
    keep = lam * discount * (~done)
    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        following = delta[t] + keep[t] * following
        advantage[t] = following
    return advantage


def clipped_surrogate(
    log_ratio: Float[Tensor, " b"], advantage: Float[Tensor, " b"], clip: Float[Tensor, " b"]
) -> tuple[Float[Tensor, ""], Metrics]:
    """L_pi, with the approximate KL divergence from the old policy (mean of rho - 1 - log rho) and the clipped part."""
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantage, torch.clamp(ratio, 1 - clip, 1 + clip) * advantage).mean()
    with torch.no_grad():
        kl = (ratio - 1 - log_ratio).mean()
        clipped = ((ratio - 1).abs() > clip).float().mean()
    return loss, {"actor_loss": loss.detach(), "kl": kl, "clipped": clipped}


DRIFT_WEIGHT = 3.0  # in the actor's loss
LR_FACTOR, LR_RANGE = 1.5, (1e-6, 1e-2)  # by which ``adapt_lr`` changes the actor's learning rate, and within what


@dataclass(frozen=True)
class PPOOptions:
    """See the learners, which repeat these with their defaults.

    Raises:
        ConfigError: a count below 1.
    """

    rollout_steps: int
    batch_size: int
    epochs: int
    lam: float
    target_kl: float
    actor_lr: float
    adapt_lr: bool
    critic_lr: float
    critic_hidden: Sequence[int]
    critic_warmup: int
    grad_clip: float
    lr_decay: float
    env_steps: int

    def __post_init__(self) -> None:
        for name in ("rollout_steps", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"algo.{name}={getattr(self, name)} must be at least 1.")


class OnPolicy(ABC):
    """Acts until a rollout is full, then improves critic and actor on it; a learner says how it acts and how likely.

    A decision may consist of ``n_parts`` actions with a likelihood of their own (DPPO's denoising steps); row m of the
    samples is part m % n_parts of decision m // n_parts.

    Args:
        policy: what is improved. actor: its trained part.
        n_envs: N.
        n_features: width of what the critic sees, "features" of the rows that ``_store`` is given.
        options: see PPOOptions.
        seed: of exploration and minibatches.
    """

    on_policy = True
    exact_at_start = True  # the evaluated policy draws nothing that its base does not; see algos.gate
    n_parts = 1

    def __init__(
        self, policy: Policy, actor: nn.Module, n_envs: int, n_features: int, options: PPOOptions, *, seed: int
    ):
        self.policy, self.actor, self.n_envs, self.options = policy, actor, n_envs, options
        self.n_action_steps = policy.n_action_steps
        self.device = next(actor.parameters()).device
        self.critic = EnsembleMLP(1, n_features, hidden=options.critic_hidden).to(self.device)
        self.actor_optimiser = adam(actor.parameters(), options.actor_lr)
        self.critic_optimiser = adam(self.critic.parameters(), options.critic_lr)
        self.actor_lr = options.actor_lr  # before it falls; see _adapt
        self.falling = FallingRates([self.critic_optimiser], options.lr_decay, options.env_steps)
        self.generator = torch.Generator().manual_seed(seed)
        self.rollout = Rollout(options.rollout_steps)
        self.reward_scale = RewardScale(n_envs, self.device)
        self.n_updates = self.env_steps = 0
        self._now: dict[str, Tensor] = {}  # the decision about to be made, or made last

    # ------------------------------------------------------------------ what a learner adds

    @abstractmethod
    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """Actions for the environments, environment units; ``fresh`` marks those whose episode has just begun."""

    @abstractmethod
    def observe(self, step: Any) -> None:
        """What followed ``explore``; ``step`` is a ChunkStep."""

    @abstractmethod
    def judge(
        self, decision: Int64[Tensor, " b"], part: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, ""]]:
        """(log-likelihood of parts of the rollout's decisions, mean drift) by the present actor.

        Drift is the divergence from the actor that acted in what the likelihood does not see; 0 where it sees all.
        """

    @abstractmethod
    def clip(self, part: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """eps of the surrogate."""

    def part_discount(self, part: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What a part's advantage is multiplied by."""
        return torch.ones(len(part), device=part.device)

    def add_demo(self, demo: Demo) -> None:
        """Nothing: on-policy learning uses its own experience only."""
        del demo

    def base_result(self, successes: int, episodes: int) -> None:
        """Nothing: what the base can do is not compared with."""
        del successes, episodes

    @property
    def counters(self) -> dict[str, float]:
        """Rollouts that were learned from."""
        return {"updates": self.n_updates}

    def _draw(self, *shape: int) -> Tensor:
        """Standard normal noise; drawn on the CPU, so that a seed means the same everywhere."""
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def _store(self, row: Mapping[str, Tensor], step: Any, next_features: Float[Tensor, "n f"]) -> None:
        """Adds a decision and what it led to."""
        reward, discount = step.reward.to(self.device), step.discount.to(self.device)
        done = (step.terminated | step.truncated).to(self.device)
        self.reward_scale.update(reward, discount, done)
        self.env_steps += int(step.n_steps.sum())
        outcome = {"reward": reward, "discount": discount, "done": done, "next_features": next_features}
        self.rollout.add({**row, **outcome})

    # ------------------------------------------------------------------ learning

    def update(self) -> Metrics:
        """Nothing until the rollout is full; then all epochs on it, and metrics of the last minibatches."""
        if not self.rollout.full:
            return {}
        self.falling.set(self.env_steps)
        for group in self.actor_optimiser.param_groups:
            group["lr"] = self.actor_lr * self.falling.share(self.env_steps)
        advantage, target = self.advantages()
        metrics = {"return_std": torch.tensor(self.reward_scale.std), "value": target.mean()}
        metrics |= self.update_critic(target)
        if self.n_updates >= self.options.critic_warmup:
            metrics |= self.update_actor(advantage)
        self.n_updates += 1
        self.rollout.clear()
        return metrics

    @torch.no_grad()
    def advantages(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """(advantage, target of the critic) of the rollout's decisions, in scaled rewards."""
        value = self.value(self.rollout["features"])
        next_value = self.value(self.rollout["next_features"])
        reward, discount, done = (self.rollout[k] for k in ("reward", "discount", "done"))
        advantage = gae(reward / self.reward_scale.std, value, next_value, discount, done, self.options.lam)
        return advantage.flatten(), (advantage + value).flatten()

    def value(self, features: Float[Tensor, "*batch f"]) -> Float[Tensor, "*batch"]:
        """V."""
        return self.critic(features.flatten(0, -2))[0, :, 0].view(features.shape[:-1])

    def update_critic(self, target: Float[Tensor, " d"]) -> Metrics:
        """Mean squared error to the targets."""
        features, error = self.rollout.flat("features"), torch.zeros(())
        for _ in range(self.options.epochs):
            for rows in self._minibatches(len(target)):
                loss = (self.value(features[rows]) - target[rows]).square().mean()
                self._step(self.critic_optimiser, self.critic, loss)
                error = loss.detach()
        return {"critic_loss": error}

    def update_actor(self, advantage: Float[Tensor, " d"]) -> Metrics:
        """L_pi over parts of decisions, until the epochs are done or the policy has moved by ``target_kl``."""
        parts, metrics, n = self.n_parts, {}, 0
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        everything = torch.arange(len(advantage) * parts, device=self.device)
        with torch.no_grad():
            old = [self.judge(m // parts, m % parts)[0] for m in everything.split(self.options.batch_size)]
        old = torch.cat(old)
        batches = [rows for _ in range(self.options.epochs) for rows in self._minibatches(len(old))]
        for rows in batches:
            decision, part = rows // parts, rows % parts
            log_prob, drift = self.judge(decision, part)
            weighted = self.part_discount(part) * advantage[decision]
            loss, metrics = clipped_surrogate(log_prob - old[rows], weighted, self.clip(part))
            metrics["kl"] += drift.detach()
            if metrics["kl"] > self.options.target_kl:
                break
            self._step(self.actor_optimiser, self.actor, loss + DRIFT_WEIGHT * drift)
            n += 1
        if self.options.adapt_lr and self.falling.share(self.env_steps) == 1:
            self._adapt(n / len(batches), float(metrics["kl"]))
        used = {"actor_updates": float(n), "actor_lr": self.actor_optimiser.param_groups[0]["lr"]}
        return metrics | {k: torch.tensor(v) for k, v in used.items()}

    def _adapt(self, done: float, kl: float) -> None:
        """The actor's rate for the next rollout: lower where it ran into ``target_kl`` early, higher where far from it.

        One step of a minibatch that uses up a whole rollout's share of divergence is mostly noise.
        """
        factor = 1 / LR_FACTOR if done < 0.5 else LR_FACTOR if done == 1 and kl < self.options.target_kl / 2 else 1.0
        self.actor_lr = min(max(self.actor_lr * factor, LR_RANGE[0]), LR_RANGE[1])

    def _minibatches(self, n: int) -> Sequence[Tensor]:
        """A random order of n rows, cut into equal parts of about ``batch_size``."""
        order = torch.randperm(n, generator=self.generator).to(self.device)
        return order.chunk(max(1, round(n / self.options.batch_size)))

    def _step(self, optimiser: torch.optim.Optimizer, module: nn.Module, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), self.options.grad_clip)
        optimiser.step()

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """All that continues training bit-exactly, but for the environments."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "actor_optimiser": self.actor_optimiser.state_dict(),
            "critic_optimiser": self.critic_optimiser.state_dict(),
            "rollout": self.rollout.state_dict(),
            "reward_scale": self.reward_scale.state_dict(),
            "now": dict(self._now),
            "generator": self.generator.get_state(),
            "counters": (self.n_updates, self.env_steps, self.actor_lr),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        for name in ("actor", "critic", "actor_optimiser", "critic_optimiser", "rollout", "reward_scale"):
            getattr(self, name).load_state_dict(state[name])
        self._now = {k: v.to(self.device) for k, v in state["now"].items()}
        self.generator.set_state(state["generator"])
        self.n_updates, self.env_steps, self.actor_lr = state["counters"]
