"""Residual off-policy RL on a frozen chunked base (ResFiT, Ankile et al. 2025), made safe against its early dip.

a = a_base + scale * pi(s, a_base), corrected at every control step; the base is only asked for actions. TD3 with E
critics (eq. 3-4 of the paper, REDQ's subset minimum):

    y = sum_{i<n} gamma^i r_i + gamma^n min_{m of E} Q'(s', a')      L_Q = sum_e (Q_e(s, a) - y)^2
    L_pi = -mean_e Q_e(s, a_base + scale * pi(s, a_base)) + prior * mean pi(s, a_base)^2

What is ours: critics judge Q(s, a_base, a - a_base), see ``judged``; corrections may be held over several steps,
because at a high control rate one step's correction changes too little to be told from noise; corrections cost
something (``prior``), for young critics see a small gain in every direction and would have the actor go there; a' is
the better of the base's and the corrected next action (as in IBRL, Hu et al. 2023); training episodes find out how much
of its noise the base had better be given (algos.temperature); towards the end the learning rates fall to nothing, for
an actor that goes on learning wanders by several points; the policy handed out is the actor's moving average, and the
base until training episodes show that the corrections help (algos.trust).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algos.base_queue import BaseQueue
from algos.corrected import ResidualPolicy
from algos.critic import EnsembleMLP, adam, frozen, move_towards, random_members, regress
from algos.demos import Demo
from algos.explorer import Decision, Explorer
from algos.features import CriticFeatures, sight_of
from algos.off_policy import OffPolicy
from algos.rates import FallingRates
from algos.replay import Transition
from algos.temperature import Temperature
from policies.policy import Metrics, Obs, Policy


class Residual:
    """Owns the residual policy, its critics, the replay, and its share of updates per environment step.

    Args:
        base: the policy to improve.
        n_envs: environments that ``explore`` acts in.
        critic_features: what the critics see instead of the actor's features.
        scale, hold, hidden, encoder, shift: see ResidualPolicy.
        n_critics, critic_hidden: E critics and their widths; n_target_critics: m, those of the minimum.
        batch_size, utd_ratio, n_step, learning_starts, warmup_steps, base_fraction, quiet_fraction, replay_size,
            replay_gb, replay_dir, value_low, value_high, seed: see OffPolicy; an update is one of the critics.
        actor_every: critic updates per actor update.
        tau: of the target critics.
        actor_lr, critic_lr: Adam's.
        lr_decay, env_steps: the rates fall linearly to 0 over this last part of the environment steps; 0: they stay.
        actor_ema: decay, per actor update, of the average of the actor that is handed out and that acts the episodes
            without noise; 0 hands out the actor itself, as is always done where the encoder is learned.
        explore_std: of the Gaussian noise on corrections, as a part of half the action range; held as they are.
        target_std: of the smoothing noise on a' (TD3).
        prior: value that a correction costs which is as large as allowed.
        temperatures: that training episodes try on the base's noise; the best is handed out. [1.0]: the base as it is.
    """

    exact_at_start, on_policy = True, False  # see algos.learner

    def __init__(
        self,
        base: Policy,
        n_envs: int,
        *,
        critic_features: CriticFeatures | None = None,
        scale: float = 0.3,
        hold: int = 8,
        hidden: Sequence[int] = (128, 128),
        encoder: Literal["frozen", "learned"] = "frozen",
        shift: int = 4,
        n_critics: int = 4,
        critic_hidden: Sequence[int] = (128, 128),
        n_target_critics: int = 2,
        batch_size: int = 128,
        utd_ratio: float = 1.5,
        actor_every: int = 2,
        n_step: int = 1,
        tau: float = 0.01,
        actor_lr: float = 1e-4,
        critic_lr: float = 3e-4,
        lr_decay: float = 0.0,
        env_steps: int = 50_000,
        actor_ema: float = 0.9995,
        learning_starts: int = 1000,
        warmup_steps: int = 3000,
        explore_std: float = 0.05,
        target_std: float = 0.05,
        prior: float = 0.0,
        base_fraction: float = 0.05,
        quiet_fraction: float = 0.5,
        temperatures: Sequence[float] = (1.0, 0.5, 0.0),
        value_low: float | None = 0.0,
        value_high: float | None = 1.0,
        replay_size: int = 1_000_000,
        replay_gb: float = 2.0,
        replay_dir: str | None = None,
        seed: int = 0,
    ):
        self.policy = ResidualPolicy(base, scale=scale, hold=hold, hidden=hidden, encoder=encoder, shift=shift).eval()
        self.base, self.n_action_steps = base, hold
        features = self.policy.features
        self.sight = sight_of(features, base.n_obs_steps, critic_features)
        width = self.sight.critic_width + (hold + 1) * base.action_dim
        self.critic = EnsembleMLP(n_critics, width, hidden=critic_hidden)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = copy.deepcopy(self.policy.actor)  # learns; the policy's own follows
        self.actor_ema = actor_ema if encoder == "frozen" else 0.0
        self.actor_optimiser = adam(self.actor.parameters(), actor_lr)
        # Where the encoder is learned, it is learned with the critics.
        self.critic_optimiser = adam([*self.critic.parameters(), *features.parameters()], critic_lr)
        self.rates = FallingRates([self.actor_optimiser, self.critic_optimiser], lr_decay, env_steps)
        self.core = OffPolicy(
            n_envs,
            batch_size=batch_size,
            utd_ratio=utd_ratio,
            n_step=n_step,
            learning_starts=learning_starts,
            warmup_steps=warmup_steps,
            base_fraction=base_fraction,
            quiet_fraction=quiet_fraction,
            replay_size=replay_size,
            replay_gb=replay_gb,
            replay_dir=replay_dir,
            value_low=value_low,
            value_high=value_high,
            seed=seed,
            window=self.sight.window,
        )
        self.generator = self.core.generator
        self.n_target_critics, self.actor_every, self.tau = n_target_critics, actor_every, tau
        self.target_std, self.prior = target_std, prior
        self.temperature = Temperature(base, temperatures, n_envs)
        self.acting = Explorer(
            self.policy, self.actor, self.sight, self.core.roles, self.temperature, self.generator, explore_std
        )

    # ------------------------------------------------------------------ acting

    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """Actions for the environments; ``fresh`` marks those whose episode has just begun."""
        self.core.roles.warming_up = self.core.warming_up
        return self.acting.explore(obs, fresh)

    def observe(self, step: Any) -> None:
        """Stores the transition that followed ``explore``; ``step`` is a ChunkStep."""
        self.store(self.acting.observe(step))

    def store(self, decision: Decision) -> None:
        """Keeps what an acting half did, this one or another, and books how its episodes ended."""
        core, roles = self.core, self.core.roles
        roles.base_only, roles.quiet = decision.base_only, decision.quiet
        self.temperature.books = decision.books
        core.replay.cut(decision.fresh)
        trusted = core.store(decision.seen, decision.action, decision, decision.after, decision.extras)
        self.policy.active.fill_(trusted)
        self.policy.temperature.fill_(self.temperature.best)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """What an acting half elsewhere has to know by now."""
        self.core.roles.warming_up = self.core.warming_up
        return self.acting.weights()

    @property
    def counters(self) -> dict[str, float]:
        """For the log."""
        return {**self.core.counters, "temperature": self.temperature.best}

    def base_result(self, successes: int, episodes: int) -> None:
        """What trust is measured against."""
        self.core.trust.base(successes, episodes)

    @torch.no_grad()
    def add_demo(self, demo: Demo) -> None:
        """A demonstration, decision by decision, beside the base's chunks along it."""
        queue = BaseQueue(self.base, 1)
        n = len(demo.actions)
        windows = ({k: v[t : t + 1] for k, v in demo.windows.items()} for t in range(n + 1))
        self.temperature.begin(torch.tensor([True]), self.generator)
        drawn = self.temperature.now[:1]
        chunks = [queue.next(self.base, now, self.generator, None, self.n_action_steps, drawn) for now in windows]
        base = self.policy.range.unit(torch.cat(chunks))
        extras = {"base": base[:n], "next_base": base[1:]}
        self.core.store_demo(demo, self.sight(demo.windows), self.policy.range.unit(demo.actions), extras)

    # ------------------------------------------------------------------ learning

    def update(self) -> Metrics:
        """The updates that are due; metrics of the last one."""
        metrics: Metrics = {}
        self.rates.set(self.core.env_steps)
        for drawn in self.core.due():
            batch = self.sight.open(drawn, self.generator)
            metrics |= self.update_critic(batch)
            if not self.core.warming_up and self.core.n_updates % self.actor_every == 0:
                metrics |= self.update_actor(batch)
        return metrics

    def judged(self, obs: Obs, base: Float[Tensor, "b h da"], action: Float[Tensor, "b h da"]) -> Float[Tensor, "b d"]:
        """What the critics see; of actions: the base's, and how far they depart from it on the mean, per scale.

        From the whole action critics learn what goes with success ("lift"), whoever caused it, and an actor that
        follows them lifts before it grasps. What a departure does shows only in the noise that was tried.
        """
        seen = obs[self.sight.of_critic][:, 0]
        return torch.cat([seen, base.flatten(1), (action - base).mean(1) / self.policy.scale], 1)

    @torch.no_grad()
    def td_target(self, batch: Transition) -> Float[Tensor, " b"]:
        """y: the better of the base's and the corrected next action, each by its minimum over m target critics."""
        obs, base = batch.next_obs, batch.extras["next_base"]
        noise = torch.randn(len(base), 1, base.shape[2], generator=self.generator).clamp(-2, 2) * self.target_std
        corrected = (self.policy.corrected(obs["features"][:, 0], base, self.actor) + noise).clamp(-1, 1)
        both = torch.cat([self.judged(obs, base, corrected), self.judged(obs, base, base)])
        members = random_members(self.target.n_members, self.n_target_critics, self.generator)
        value = torch.stack(self.target(both, members)[..., 0].min(0).values.chunk(2)).max(0).values
        return self.core.target(batch, value)

    def update_critic(self, batch: Transition) -> Metrics:
        """L_Q."""
        judged = self.judged(batch.obs, batch.extras["base"], batch.action)
        metrics = regress(self.critic, self.critic_optimiser, judged, self.td_target(batch))
        move_towards(self.target, self.critic, self.tau)
        return metrics

    def update_actor(self, batch: Transition) -> Metrics:
        """L_pi; ``gain`` is what the critics say the corrections are worth."""
        obs, base = {k: v.detach() for k, v in batch.obs.items()}, batch.extras["base"]
        residual = self.policy.residual(obs["features"][:, 0], base, self.actor)
        with frozen(self.critic):
            q = self.critic(self.judged(obs, base, (base + residual[:, None]).clamp(-1, 1))).mean()
        with torch.no_grad():
            gain = q - self.critic(self.judged(obs, base, base)).mean()
        squared = (residual / self.policy.scale).square().mean()
        self.actor_optimiser.zero_grad(set_to_none=True)
        (self.prior * squared - q).backward()
        self.actor_optimiser.step()
        move_towards(self.policy.actor, self.actor, 1 - self.actor_ema)
        return {"gain": gain, "residual": squared.detach().sqrt()}

    # ------------------------------------------------------------------ state

    _PARTS = ("actor", "critic", "target", "actor_optimiser", "critic_optimiser", "core", "temperature")

    def state_dict(self) -> dict[str, Any]:
        """All that continues training bit-exactly, but for the environments."""
        parts = {name: getattr(self, name).state_dict() for name in self._PARTS}
        policy = {"averaged": self.policy.actor.state_dict(), "features": self.policy.features.state_dict()}
        return {**parts, **policy, **self.acting.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        for name in self._PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.policy.actor.load_state_dict(state["averaged"])
        self.policy.features.load_state_dict(state["features"])
        self.policy.active.fill_(self.core.trust.active)
        self.policy.temperature.fill_(self.temperature.best)
        self.acting.load_state_dict(state)
