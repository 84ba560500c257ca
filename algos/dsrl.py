"""Steering a frozen diffusion or flow policy through its noise (DSRL, Wagenmaker et al. 2025).

The policy's sample is a function of its noise, a = pi_dp(s, w), so w in [-b, b] is an action space of its own, in
which every action is one that the base could have taken.

    DSRL-SAC   SAC on w:                 y = r + gamma min_m Q_W'(s', w'),       w' ~ pi_W(s')
    DSRL-NA    critic on real actions:   y = r + gamma min_m Q_A'(s', pi_dp(s', w'))
               distilled onto noise:     L = (Q_W(s, w) - mean Q_A(s, pi_dp(s, w)))^2,  w ~ N(0, I)
    both       L_pi = alpha log pi_W(w|s) - mean_e Q_W(s, w) + c |w|^2,  alpha adjusted towards a target entropy
               (the paper's is 0, and its c)

What is chosen may be the whole noise chunk ("chunk"), one vector repeated over it ("vector"), or, ours, an offset and
a temperature ("offset"): w = lambda eps + delta, with eps drawn as the base draws it and delta repeated over the chunk.
Delta 0 and lambda 1 is the base itself, so learning starts there and not from noise that the base was never trained
on; lambda 0 is the repeated vector.

The prior c |w|^2 (on delta alone, with "offset") keeps noise where the base has seen it, N(0, 1): a young critic sees
tiny gains in every direction and would drive w to its bound.

What is ours besides: SAC learns from demonstrations too, as noise that leads close to them; its y takes the better of
the steered next action and the base's; the (w, pi_dp(s, w)) pairs that NA distils Q_W from are drawn when the
transition is stored, several per observation, so an update of Q_W asks the base nothing; and the policy handed out
stays the base until training episodes show that steering helps (algos.trust).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algos.critic import EnsembleMLP, adam, frozen, move_towards, random_members, regress
from algos.demos import Demo
from algos.explorer import Decision
from algos.features import CriticFeatures, Sight
from algos.off_policy import OffPolicy
from algos.rates import FallingRates
from algos.replay import Transition
from algos.soft_actor import SoftActor
from algos.steered import Steer, SteeredPolicy
from algos.steerer import Steerer
from policies.policy import Metrics, Obs, Policy

SEARCHED = 128  # draws of noise among which a demonstration's is looked for


class DSRL:
    """Owns the steered policy, its critics in noise and action space, the replay, and its share of updates.

    Args:
        base: the policy to improve.
        n_envs: environments that ``explore`` acts in.
        critic_features: what the critics see instead of the actor's features.
        variant: "na" or "sac", see the module.
        bound, steer, start_std, hidden: see SteeredPolicy.
        n_critics, critic_hidden: of Q_A and of Q_W; n_target_critics: m, those of the minimum.
        actor_every: critic updates per actor update.
        n_candidates: (w, chunk) pairs stored with each observation (na).
        distill_steps: updates of Q_W per update of Q_A (na).
        batch_size, utd_ratio, n_step, learning_starts, warmup_steps, base_fraction, quiet_fraction, replay_size,
            replay_gb, replay_dir, value_low, value_high, seed: see OffPolicy; steps are environment steps, n_step
            counts chunks.
        tau: of the target critics. actor_lr, critic_lr, alpha_lr: Adam's.
        lr_decay, env_steps: the rates fall linearly to 0 over this last part of the environment steps; 0: they stay.
        alpha: entropy temperature at the start; target_entropy: per chosen component, of w / b.
        prior: c.
        backup_entropy: whether targets contain the entropy (SAC), or not (RLPD's choice for sparse rewards).
    """

    exact_at_start, on_policy = True, False  # see algos.learner

    def __init__(
        self,
        base: Policy,
        n_envs: int,
        *,
        critic_features: CriticFeatures | None = None,
        variant: Literal["na", "sac"] = "sac",
        bound: float = 2.5,
        steer: Steer = "offset",
        start_std: float = 0.3,
        hidden: Sequence[int] = (128, 128),
        n_critics: int = 4,
        critic_hidden: Sequence[int] = (128, 128),
        n_target_critics: int = 2,
        actor_every: int = 2,
        n_candidates: int = 8,
        distill_steps: int = 2,
        batch_size: int = 128,
        utd_ratio: float = 2.0,
        n_step: int = 1,
        tau: float = 0.01,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        alpha_lr: float = 3e-4,
        lr_decay: float = 0.0,
        env_steps: int = 50_000,
        alpha: float = 0.003,
        target_entropy: float = -1.0,
        prior: float = 0.02,
        backup_entropy: bool = False,
        learning_starts: int = 1000,
        warmup_steps: int = 3000,
        base_fraction: float = 0.05,
        quiet_fraction: float = 0.5,
        value_low: float | None = 0.0,
        value_high: float | None = 1.0,
        replay_size: int = 1_000_000,
        replay_gb: float = 2.0,
        replay_dir: str | None = None,
        seed: int = 0,
    ):
        if variant not in ("na", "sac"):
            raise ValueError(f"variant must be na or sac, not {variant!r}")
        self.policy = SteeredPolicy(base, bound=bound, steer=steer, start_std=start_std, hidden=hidden).eval()
        self.base, self.variant, self.n_action_steps = self.policy.base, variant, base.n_action_steps
        self.sight = Sight(self.policy.features, critic_features)
        n, executed = self.sight.critic_width, base.n_action_steps * base.action_dim
        self.noise_critic = EnsembleMLP(n_critics, n + self.policy.steer_dim, hidden=critic_hidden)
        self.critic = EnsembleMLP(n_critics, n + executed, hidden=critic_hidden) if variant == "na" else None
        self.target = copy.deepcopy(self.critic or self.noise_critic).requires_grad_(False)
        learned = [*self.noise_critic.parameters(), *(self.critic.parameters() if self.critic else [])]
        self.critic_optimiser = adam(learned, critic_lr)
        self.actor = SoftActor(
            self.policy.actor.parameters(),
            lr=actor_lr,
            alpha=alpha,
            alpha_lr=alpha_lr,
            target_entropy=target_entropy * self.policy.steer_dim,
        )
        optimisers = [self.critic_optimiser, self.actor.optimiser, self.actor.alpha_optimiser]
        self.rates = FallingRates(optimisers, lr_decay, env_steps)
        self.prior, self.backup_entropy = prior, backup_entropy
        self.n_target_critics, self.n_candidates, self.distill_steps = n_target_critics, n_candidates, distill_steps
        self.actor_every, self.tau = actor_every, tau
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
        )
        self.generator = self.core.generator
        self.acting = Steerer(
            self.policy,
            self.sight,
            self.core.roles,
            self.generator,
            n_candidates=n_candidates if self.critic is not None else 0,
        )

    # ------------------------------------------------------------------ acting

    def _judged(self, obs: Obs, action: Float[Tensor, "b d"]) -> Float[Tensor, "b fd"]:
        """What a critic sees of a batch: observation, and noise or flat chunk."""
        return torch.cat([obs[self.sight.of_critic][:, 0], action], 1)

    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """Chunks for the environments; ``fresh`` marks those whose episode has just begun."""
        self.core.roles.warming_up = self.core.warming_up
        return self.acting.explore(obs, fresh)

    def observe(self, step: Any) -> None:
        """Stores the transition that followed ``explore``; ``step`` is a ChunkStep."""
        self.store(self.acting.observe(step))

    def store(self, decision: Decision) -> None:
        """Keeps what an acting half did, this one or another, and books how its episodes ended."""
        core, roles = self.core, self.core.roles
        roles.base_only, roles.quiet = decision.base_only, decision.quiet
        core.replay.cut(decision.fresh)
        trusted = core.store(decision.seen, decision.action, decision, decision.after, decision.extras)
        self.policy.active.fill_(trusted)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """What an acting half elsewhere has to know by now."""
        self.core.roles.warming_up = self.core.warming_up
        return self.acting.weights()

    @property
    def counters(self) -> dict[str, float]:
        """For the log."""
        return self.core.counters

    def base_result(self, successes: int, episodes: int) -> None:
        """What trust is measured against."""
        self.core.trust.base(successes, episodes)

    @torch.no_grad()
    def add_demo(self, demo: Demo) -> None:
        """A demonstration, chunk by chunk; for a critic in noise space, as the noise that comes closest to it."""
        seen, unit = self.acting.see(demo.windows), self.policy.range.unit(demo.actions)
        tokens = seen["tokens"][:-1]
        if self.critic is None:
            self.core.store_demo(demo, seen, self._nearest_noise(tokens, unit))
        else:
            self.core.store_demo(demo, seen, unit.flatten(1), self.acting.candidates(tokens))

    def _nearest_noise(self, tokens: Float[Tensor, "n l c"], chunks: Float[Tensor, "n ta da"]) -> Float[Tensor, "n d"]:
        """Of ``SEARCHED`` uniform draws of w the one whose chunk goes, on the mean, where ``chunks`` go."""
        n = len(tokens)
        w = self.acting.anywhere(n * SEARCHED).unflatten(0, (n, SEARCHED))
        if self.policy.kind == "offset":
            w[..., -1] = -self.policy.bound  # nothing is left to chance
        _, found = self.acting.chunk(tokens.repeat_interleave(SEARCHED, 0), w.flatten(0, 1))
        means = found.view(n, SEARCHED, *chunks.shape[1:]).mean(2)
        distance = (means - chunks.mean(1)[:, None]).square().sum(-1)
        return w[torch.arange(n), distance.argmin(1)]

    # ------------------------------------------------------------------ learning

    def update(self) -> Metrics:
        """The updates that are due; metrics of the last one."""
        metrics: Metrics = {}
        self.rates.set(self.core.env_steps)
        for batch in self.core.due():
            metrics |= self.update_critic(batch)
            if self.critic is not None:
                for _ in range(self.distill_steps):
                    metrics |= self.distill(batch)
            if not self.core.warming_up and self.core.n_updates % self.actor_every == 0:
                metrics |= self.update_actor(batch)
        return metrics

    @torch.no_grad()
    def td_target(self, batch: Transition) -> Float[Tensor, " b"]:
        """y."""
        features, tokens = batch.next_obs["features"][:, 0], batch.next_obs["tokens"][:, 0]
        eps = self.acting.gaussian(len(features))
        if self.core.warming_up:  # the policy that acts is still the base
            w, log_prob = self.policy.unsteered(eps), torch.zeros(len(eps))
        else:
            w, log_prob = self.policy.draw(features, eps)
        action = w if self.critic is None else self.acting.chunk(tokens, w)[1]
        members = random_members(self.target.n_members, self.n_target_critics, self.generator)
        value = self.target(self._judged(batch.next_obs, action), members)[..., 0].min(0).values
        if self.backup_entropy:
            value = value - self.actor.alpha * log_prob
        if self.critic is None and not self.core.warming_up:
            unsteered = self._judged(batch.next_obs, self.policy.unsteered(eps))
            value = torch.maximum(value, self.target(unsteered, members)[..., 0].min(0).values)
        return self.core.target(batch, value)

    def update_critic(self, batch: Transition) -> Metrics:
        """L_Q: of Q_A, or of Q_W where there is no other."""
        critic = self.critic or self.noise_critic
        judged = self._judged(batch.obs, batch.action)
        metrics = regress(critic, self.critic_optimiser, judged, self.td_target(batch))
        move_towards(self.target, critic, self.tau)
        return metrics

    def distill(self, batch: Transition) -> Metrics:
        """L_W on one stored candidate of each observation."""
        assert self.critic is not None
        pick = torch.randint(self.n_candidates, (len(batch.action),), generator=self.generator)
        rows = torch.arange(len(pick))
        w, chunk = batch.extras["w"][rows, pick], batch.extras["chunk"][rows, pick]
        with torch.no_grad():
            target = self.critic(self._judged(batch.obs, chunk))[..., 0].mean(0)
        metrics = regress(self.noise_critic, self.critic_optimiser, self._judged(batch.obs, w), target)
        return {"distill_loss": metrics["critic_loss"]}

    def update_actor(self, batch: Transition) -> Metrics:
        """L_pi, and alpha towards the target entropy."""
        features = batch.obs["features"][:, 0]
        w, log_prob = self.policy.draw(features, self.acting.gaussian(len(features)))
        with frozen(self.noise_critic):
            q = self.noise_critic(self._judged(batch.obs, w))[..., 0].mean(0)
        moved = w[:, :-1] if self.policy.kind == "offset" else w
        metrics = self.actor.step(q - self.prior * moved.square().sum(1), log_prob)
        return {**metrics, "noise": moved.detach().square().mean().sqrt()}

    # ------------------------------------------------------------------ state

    _PARTS = ("noise_critic", "target", "actor", "critic_optimiser", "core")

    def state_dict(self) -> dict[str, Any]:
        """All that continues training bit-exactly, but for the environments."""
        state = {name: getattr(self, name).state_dict() for name in self._PARTS}
        state["policy"] = self.policy.actor.state_dict()
        return state | ({"critic": self.critic.state_dict()} if self.critic is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        for name in self._PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.policy.actor.load_state_dict(state["policy"])
        self.policy.active.fill_(self.core.trust.active)
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
