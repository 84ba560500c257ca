"""Diffusion policy policy optimisation (DPPO, Ren et al. 2025): PPO on the last denoising steps of a diffusion policy.

Every denoising step is an action of its own, Gaussian and so with a likelihood:

    rho_k = pi_theta(z_{k-1} | z_k, s) / pi_old(z_{k-1} | z_k, s),   A_k = gamma_denoising^k A(s, a)

where k = 0 is the last step and A the advantage of the executed chunk by a critic V(s) that sees observations alone.
The first steps stay the base's. So does the encoder: what is fine-tuned is the denoising network.

What is ours: noise may be held over several control steps (``hold``). White noise on every number of a chunk looks for
Ta * Da directions at once, most of which cancel out before the arm has moved; held noise looks for what moves it, and
its likelihood is that of the steps' mean. The gradient is then that of the return through those means alone, and a
penalty keeps from drifting how the steps differ from each other, which nothing was learned about.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from algos.features import CriticFeatures, Features, Sight
from algos.ppo import OnPolicy, PPOOptions
from algos.wrapper import WrappedPolicy
from data.chunks import executed_slice
from data.errors import ConfigError
from policies.chunk_policy import ChunkPolicy
from policies.heads.diffusion import DiffusionHead
from policies.policy import Obs, Policy


class FineTunedDiffusion(WrappedPolicy):
    """A diffusion policy whose last denoising steps are another network's, which starts as a copy of the base's.

    Sampled as the base is (DDIM: eta = 0): with the same noise an untrained one is the base exactly.

    Args:
        base: a ChunkPolicy with a diffusion head; frozen.
        n_finetuned_steps: K', all where there are fewer.

    Raises:
        ConfigError: a base of another kind.
    """

    algo = "dppo"
    base: ChunkPolicy

    def __init__(self, base: Policy, *, n_finetuned_steps: int = 10):
        if not isinstance(base, ChunkPolicy) or not isinstance(base.head, DiffusionHead):
            found = type(base.head).__name__ if isinstance(base, ChunkPolicy) else type(base).__name__
            raise ConfigError(f"algo=dppo fine-tunes the denoising steps of a DiffusionHead; the base has a {found}.")
        if base.head.sampler == "dpmpp":
            raise ConfigError("algo=dppo needs steps that draw noise: base_policy.sampler=ddim or ddpm, not dpmpp.")
        if n_finetuned_steps < 1:
            raise ConfigError(f"algo.n_finetuned_steps={n_finetuned_steps} must be at least 1.")
        super().__init__(base, {"n_finetuned_steps": n_finetuned_steps})
        self.active.fill_(True)
        self.head = copy.deepcopy(base.head).requires_grad_(True)
        self.n_finetuned_steps = n_finetuned_steps

    @property
    def first(self) -> int:
        """The first fine-tuned step, K - K'."""
        return max(0, self.head.n_inference_steps - self.n_finetuned_steps)

    def chain(
        self,
        cond: Float[Tensor, "b l c"],
        z: Float[Tensor, "b h da"],
        noise: Float[Tensor, "b m h da"] | None = None,
        *,
        eta: float = 0.0,
        min_std: float = 0.0,
    ) -> list[Tensor]:
        """What the K' fine-tuned steps pass through, K' + 1 chunks; arguments as in ``DiffusionHead.sample_chain``."""
        n = self.first
        before, after = (noise[:, :n], noise[:, n:]) if noise is not None else (None, None)
        if n:
            first = cast(DiffusionHead, self.base.head)
            z = first.sample_chain(cond, z, before, stop=n, eta=eta, min_std=min_std)[-1]
        return self.head.sample_chain(cond, z, after, start=n, eta=eta, min_std=min_std)

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """A chunk for ``noise`` (B, *noise_shape)."""
        if not self.active:
            return self.base.sample(obs, noise=noise)
        cond = self.encode(obs)
        noise = self.draw_noise(len(cond)) if noise is None else noise
        if self.head.sampler == "ddim":
            return self.chain(cond, noise)[-1]
        return self.chain(cond, noise[:, 0], noise[:, 1:])[-1]


class DPPO(OnPolicy):
    """Owns the fine-tuned policy, its critic V(s) and the rollout of denoising chains.

    Args:
        base: the policy to improve.
        n_envs: environments that ``explore`` acts in.
        critic_features: what the critic sees instead of the base's features.
        n_finetuned_steps: K', the last denoising steps, which learn.
        eta: noise of DDIM steps in exploration, 1 as much as DDPM's; a DDPM base has its own.
        min_std: of every denoising step in exploration, normalised actions. Sets how far PPO looks around, and keeps
            likelihoods finite.
        hold: control steps that the noise of the fine-tuned steps is held for (1 in the paper); divides the base's Ta.
        gamma_denoising: discount from a denoising step to the one after it.
        clip_first, clip_last: eps of the surrogate at the first and the last fine-tuned step; grows exponentially in
            between, by e^clip_rate.
        rollout_steps: decisions (chunks) of each environment between updates.
        batch_size: of minibatches, in denoising steps (for the critic: in decisions). epochs: over a rollout.
        lam: of the advantages, per decision.
        target_kl: divergence at which the actor stops before its epochs are done.
        adapt_lr: the actor's rate follows what divergence it leads to, see ``OnPolicy._adapt``; actor_lr is the first.
        actor_lr, critic_lr: Adam's. critic_hidden: widths. grad_clip: largest norm of a gradient.
        critic_warmup: rollouts for the critic alone.
        lr_decay, env_steps: both rates fall linearly to 0 over this last part of the environment steps; 0: they stay.
        seed: of exploration and minibatches.

    The defaults are for some 1e6 environment steps on a CPU. The authors take 5 to 30 million steps with ten denoising
    steps or all, hold 1, gamma_denoising 0.99, clip_first 0.001, clip_last 0.01, target_kl 1 and critic_warmup 2.

    What it learns stays within the demonstrated range of actions wherever the base clips its clean chunks
    (``policy.clip_sample``), for every denoising step is drawn around a clipped chunk.
    """

    LOG_PROB_RANGE = (-5.0, 2.0)  # of a single number's likelihood, as the authors' code has it

    def __init__(
        self,
        base: Policy,
        n_envs: int,
        *,
        critic_features: CriticFeatures | None = None,
        n_finetuned_steps: int = 1,
        eta: float = 1.0,
        min_std: float = 0.1,
        hold: int = 8,
        gamma_denoising: float = 0.9,
        clip_first: float = 0.05,
        clip_last: float = 0.05,
        clip_rate: float = 3.0,
        rollout_steps: int = 64,
        batch_size: int = 256,
        epochs: int = 5,
        lam: float = 0.95,
        target_kl: float = 0.015,
        actor_lr: float = 1e-4,
        adapt_lr: bool = True,
        critic_lr: float = 1e-3,
        critic_hidden: Sequence[int] = (256, 256),
        critic_warmup: int = 1,
        grad_clip: float = 1.0,
        lr_decay: float = 0.0,
        env_steps: int = 400_000,
        seed: int = 0,
    ):
        policy = FineTunedDiffusion(base, n_finetuned_steps=n_finetuned_steps).eval()
        if min_std <= 0:
            raise ConfigError(f"algo.min_std={min_std} must be above 0: the last denoising step has no other noise.")
        if hold < 1 or base.n_action_steps % hold:
            raise ConfigError(f"algo.hold={hold} must divide the base's n_action_steps={base.n_action_steps}.")
        options = PPOOptions(
            rollout_steps, batch_size, epochs, lam, target_kl, actor_lr, adapt_lr, critic_lr, critic_hidden,
            critic_warmup, grad_clip, lr_decay, env_steps,
        )  # fmt: skip
        self.sight = Sight(Features(base), critic_features)
        super().__init__(policy, policy.head, n_envs, self.sight.critic_width, options, seed=seed)
        self.diffusion, self.eta, self.min_std = policy, eta, min_std
        self.gamma_denoising = gamma_denoising
        self.clip_first, self.clip_last, self.clip_rate = clip_first, clip_last, clip_rate
        self.n_parts = policy.head.n_inference_steps - policy.first
        self.executed = executed_slice(base.n_obs_steps, base.n_action_steps)
        self.hold = hold
        self._held = torch.arange(policy.horizon)  # whose noise each step of a chunk gets
        self._held[self.executed] -= torch.arange(base.n_action_steps) % hold

    @torch.no_grad()
    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """A chunk by a noisy chain, which is kept; see OnPolicy."""
        obs = {k: v.to(self.device) for k, v in obs.items()}
        cond, policy = self.diffusion.encode(obs), self.diffusion
        # One tensor to start from and one after each step, the last included
        noise = self._draw(len(cond), policy.head.n_inference_steps + 1, policy.horizon, policy.action_dim)
        noise[:, 1 + policy.first :] = noise[:, 1 + policy.first :, self._held]
        chain = policy.chain(cond, noise[:, 0], noise[:, 1:], eta=self.eta, min_std=self.min_std)
        self._now = {"features": self.sight.critic(obs, cond), "cond": cond, "chain": torch.stack(chain, 1)}
        return policy.unnormalise_action(chain[-1])[:, self.executed]

    @torch.no_grad()
    def observe(self, step: Any) -> None:
        """Stores the decision."""
        next_obs = {k: v.to(self.device) for k, v in step.next_obs.items()}
        self._store(self._now, step, self.sight.critic(next_obs))

    def judge(
        self, decision: Int64[Tensor, " b"], part: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, ""]]:
        """log pi(z_{k-1} | z_k, s) per number drawn, clamped, and averaged over executed steps and dimensions.

        The average, not the sum, so that a ratio means the same for every size of chunk (authors' code). Drift: of how
        the steps that noise is held for differ from each other, as if each had noise of its own.
        """
        chain = self.rollout.flat("chain")
        z, following = chain[decision, part], chain[decision, part + 1]
        cond, step = self.rollout.flat("cond")[decision], part + self.diffusion.first
        mean, std = self.diffusion.head.step_dist(z, step, cond, eta=self.eta, min_std=self.min_std)
        numbers = ((following - mean) / std)[:, self.executed].unflatten(1, (-1, self.hold))
        drawn = numbers.mean(2)
        log_prob = -0.5 * drawn.square() - std.log() - 0.5 * math.log(2 * math.pi)
        drift = 0.5 * (numbers - drawn[:, :, None]).square().mean()
        return log_prob.clamp(*self.LOG_PROB_RANGE).mean((1, 2)), drift

    def clip(self, part: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """From ``clip_first``, where a small change grows through the steps that follow, to ``clip_last``."""
        if self.n_parts == 1:
            return torch.full((len(part),), self.clip_last, device=part.device)
        t = part / (self.n_parts - 1)
        grown = torch.expm1(self.clip_rate * t) / math.expm1(self.clip_rate)
        return self.clip_first + (self.clip_last - self.clip_first) * grown

    def part_discount(self, part: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """gamma_denoising^k, k = 0 for the last step."""
        return self.gamma_denoising ** (self.n_parts - 1 - part).float()
