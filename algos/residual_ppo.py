"""On-policy residual on a frozen chunked base (ResiP, Ankile et al. 2025): corrected every few steps by PPO.

    a = a_base + scale * u,  u ~ N(mu(s, a_base), std^2)

The base is only asked for actions; the deployed policy takes u = mu.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from algos.base_queue import BaseQueue
from algos.corrected import ResidualPolicy
from algos.ppo import OnPolicy, PPOOptions
from policies.policy import Obs, Policy


class ResidualGaussianPolicy(ResidualPolicy):
    """The base's chunk, executed a few steps at a time, each time corrected by the mean of a Gaussian.

    Args:
        base: any policy; frozen.
        scale: of the correction, as a part of half the action range. Unlike ResidualPolicy's, it is not a bound.
        hold: control steps that a correction is held for (1 in the paper); divides the base's Ta.
        hidden: of the network for mu; its last layer starts at zero, so an untrained one is the base exactly.
    """

    algo = "residual_ppo"

    def __init__(self, base: Policy, *, scale: float = 0.5, hold: int = 1, hidden: Sequence[int] = (256, 256)):
        super().__init__(base, scale=scale, hold=hold, hidden=hidden)
        self.active.fill_(True)
        self.options = {"scale": scale, "hold": hold, "hidden": list(hidden)}

    def mean(self, features: Float[Tensor, "b f"], base: Float[Tensor, "b h da"]) -> Float[Tensor, "b da"]:
        """mu(s, a_base); ``base`` in unit actions."""
        return self.actor(torch.cat([features, base.flatten(1)], 1))[0]

    def squash(self, out: Float[Tensor, "b da"]) -> Float[Tensor, "b da"]:
        """mu as it is: a Gaussian's mean has no bound."""
        return out


class ResidualPPO(OnPolicy):
    """Owns the residual policy, its critic V(s, a_base) and the rollout.

    Args:
        base: the policy to improve.
        n_envs: environments that ``explore`` acts in.
        scale, hold, hidden: see ResidualGaussianPolicy.
        std: of u in exploration; fixed.
        clip_ratio: eps of the surrogate.
        rollout_steps: decisions of each environment between updates.
        batch_size: of minibatches, in decisions. epochs: over a rollout.
        lam: of the advantages, per decision.
        target_kl: divergence at which the actor stops before its epochs are done.
        adapt_lr: the actor's rate follows what divergence it leads to, see ``OnPolicy._adapt``; actor_lr is the first.
        actor_lr, critic_lr: Adam's. critic_hidden: widths. grad_clip: largest norm of a gradient.
        critic_warmup: rollouts for the critic alone.
        lr_decay, env_steps: both rates fall linearly to 0 over this last part of the environment steps; 0: they stay.
        seed: of exploration and minibatches.

    The defaults are for some 1e5 to 1e6 environment steps on a CPU. The authors take up to 1e9 steps with scale 0.1,
    hold 1, std 0.37, 50 epochs of one minibatch, target_kl 0.1, actor_lr 3e-4 and critic_lr 5e-3.
    """

    def __init__(
        self,
        base: Policy,
        n_envs: int,
        *,
        scale: float = 0.5,
        hold: int = 8,
        hidden: Sequence[int] = (256, 256),
        std: float = 0.2,
        clip_ratio: float = 0.2,
        rollout_steps: int = 64,
        batch_size: int = 256,
        epochs: int = 5,
        lam: float = 0.95,
        target_kl: float = 0.05,
        actor_lr: float = 1e-4,
        adapt_lr: bool = True,
        critic_lr: float = 1e-3,
        critic_hidden: Sequence[int] = (256, 256),
        critic_warmup: int = 1,
        grad_clip: float = 1.0,
        lr_decay: float = 0.0,
        env_steps: int = 500_000,
        seed: int = 0,
    ):
        policy = ResidualGaussianPolicy(base, scale=scale, hold=hold, hidden=hidden).eval()
        options = PPOOptions(
            rollout_steps, batch_size, epochs, lam, target_kl, actor_lr, adapt_lr, critic_lr, critic_hidden,
            critic_warmup, grad_clip, lr_decay, env_steps,
        )  # fmt: skip
        n_features = policy.features.out_dim() + hold * base.action_dim
        policy.actor.to(base.device)
        super().__init__(policy, policy.actor, n_envs, n_features, options, seed=seed)
        self.gaussian, self.std, self.clip_ratio = policy, std, clip_ratio
        self.queue = BaseQueue(base, n_envs)

    @torch.no_grad()
    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """A sampled correction of the base's next action; see OnPolicy."""
        if not self._now or fresh.any():
            self.queue.clear(fresh)
            new = self._look(obs, fresh)
            self._now = new if not self._now else {k: _where(fresh, v, self._now[k]) for k, v in new.items()}
        features, base = self._now["features"], self._now["base"]
        mean = self.gaussian.actor(features)[0]
        self._now["u"] = mean + self.std * self._draw(*mean.shape)
        correction = self.gaussian.scale * self._now["u"][:, None]
        return self.gaussian.range.environment((base + correction).clamp(-1, 1))

    def _look(self, obs: Obs, rows: Bool[Tensor, " n"]) -> dict[str, Tensor]:
        """The base's next actions in the environments ``rows``, and what actor and critic see."""
        obs = {k: v.to(self.device) for k, v in obs.items()}
        action = self.queue.next(self.gaussian.base, obs, self.generator, rows, self.gaussian.n_action_steps)
        base = self.gaussian.range.unit(action.to(self.device))
        return {"features": torch.cat([self.gaussian.features(obs), base.flatten(1)], 1), "base": base}

    @torch.no_grad()
    def observe(self, step: Any) -> None:
        """Stores the decision; a time-out's successor is valued with the action the base would have gone on with."""
        following = self._look(step.next_obs, ~step.terminated)
        self._store({k: self._now[k] for k in ("features", "u")}, step, following["features"])
        self._now = following

    def judge(
        self, decision: Int64[Tensor, " b"], part: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, ""]]:
        """log N(u; mu, std^2) summed over the action's dimensions."""
        mean = self.gaussian.actor(self.rollout.flat("features")[decision])[0]
        log_prob = torch.distributions.Normal(mean, self.std).log_prob(self.rollout.flat("u")[decision]).sum(1)
        return log_prob, torch.zeros(())

    def clip(self, part: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The same for all."""
        return torch.full((len(part),), self.clip_ratio, device=part.device)

    def state_dict(self) -> dict[str, Any]:
        """See OnPolicy."""
        return {**super().state_dict(), "queue": self.queue.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        super().load_state_dict(state)
        self.queue.load_state_dict(state["queue"])


def _where(rows: Bool[Tensor, " n"], new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.to(new.device).view(-1, *[1] * (new.ndim - 1)), new, old)
