"""How chunks are asked for and executed, with the delay that computing one takes: the queues outside the policy.

A chunk that is asked for at control step k arrives at step k + delay; meanwhile the old one goes on. The environment is
stepped by Ta actions, so a decision returns the first ``delay`` actions of what was planned before, and then the new
chunk's for the steps from k + delay on. An episode's first chunk is waited for.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.chunks import ChunkBatch, executed_slice
from data.construct import construct, lookup
from data.errors import ConfigError
from policies.chunk_policy import ChunkPolicy
from policies.inference.ensemble import ensemble
from policies.inference.realtime import rtc
from policies.inference.walk import chunk_noise, shift
from policies.inference.warm_start import last_times, rti
from policies.policy import Metrics, Obs, Policy
from policies.prefix import PREFIX
from policies.rng import BatchRng


@dataclass
class Memory:
    """Of an episode; all (B, H, Da), normalised.

    Attributes:
        plan: what is being executed, from To - 1 steps before the last decision on.
        chunks: as they were sampled, with the number of decisions since; the oldest first.
    """

    plan: Tensor
    chunks: list[tuple[Tensor, int]] = field(default_factory=list)


class Execution(Policy):
    """A policy whose chunks arrive late.

    Args:
        policy: samples the chunks.
        delay: control steps between an observation and its chunk's first executed action.
    """

    continues = False  # whether ``follow`` looks at the chunk before

    def __init__(self, policy: ChunkPolicy, *, delay: int = 0):
        super().__init__(policy.spec, policy.n_obs_steps, policy.horizon, policy.n_action_steps)
        ta, needed = policy.n_action_steps, policy.n_obs_steps - 1 + policy.n_action_steps + delay
        if not 0 <= delay <= ta:
            raise ValueError(f"delay={delay} must lie in 0..n_action_steps={ta}: only one chunk is under way at a time")
        if needed > policy.horizon:
            raise ValueError(
                f"delay={delay} leaves nothing to execute: n_obs_steps - 1 + n_action_steps + delay = {needed} is more "
                f"than horizon={policy.horizon}; lower n_action_steps"
            )
        self.policy, self.delay = policy, delay

    @abstractmethod
    def follow(
        self,
        obs: Obs,
        previous: Float[Tensor, "b h da"],
        generator: torch.Generator | None,
        *,
        delay: int,
        since: int,
        past_known: bool = True,
    ) -> Float[Tensor, "b h da"]:
        """The next chunk, normalised.

        Args:
            obs: (B, To, *shape), environment units.
            previous: what is being executed, normalised, as it was when it was asked for.
            generator: of the noise.
            delay: control steps that ``previous`` goes on for.
            since: control steps since ``previous`` was asked for.
            past_known: the actions before ``obs`` in ``previous`` are those that were executed.
        """

    @torch.no_grad()
    def act_from(
        self, obs: Obs, memory: Memory | None, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "b ta da"], Memory]:
        """See the module."""
        self.check_obs(obs)
        if memory is None:
            n = len(next(iter(obs.values())))
            plan = chunk = self.policy.sample(obs, noise=self.policy.draw_noise(n, generator))
            older = []
        else:
            chunk = self.follow(obs, memory.plan, generator, delay=self.delay, since=self.n_action_steps)
            known = self.n_obs_steps - 1 + self.delay
            plan = torch.cat(
                [shift(memory.plan, self.n_action_steps)[:, :known], self.merge(chunk, memory)[:, known:]], 1
            )
            older = [(c, age + 1) for c, age in memory.chunks if (age + 2) * self.n_action_steps < self.horizon]
        actions = self.unnormalise_action(plan)[:, executed_slice(self.n_obs_steps, self.n_action_steps)]
        return actions, Memory(plan, [*older, (chunk, 0)])

    def merge(self, chunk: Float[Tensor, "b h da"], memory: Memory) -> Float[Tensor, "b h da"]:
        """What is executed of a new chunk."""
        return chunk

    # The rest is the policy's.

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the episode's first chunk."""
        return self.policy.noise_shape

    def loss(self, batch: ChunkBatch, rng: BatchRng | None = None) -> tuple[Float[Tensor, ""], Metrics]:
        """The policy's."""
        return self.policy.loss(batch, rng)

    def encode(self, obs: Obs) -> Float[Tensor, "b l c"]:
        """The policy's."""
        return self.policy.encode(obs)

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """The policy's: a chunk that follows none."""
        return self.policy.sample(obs, noise=noise)

    def unnormalise_action(self, action: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """The policy's."""
        return self.policy.unnormalise_action(action)


class Asynchronous(Execution):
    """Switches to the new chunk as it comes ("naive asynchronous"); without a delay the usual execution."""

    def follow(
        self,
        obs: Obs,
        previous: Float[Tensor, "b h da"],
        generator: torch.Generator | None,
        *,
        delay: int,
        since: int,
        past_known: bool = True,
    ) -> Float[Tensor, "b h da"]:
        """A chunk of its own."""
        return self.policy.sample(obs, noise=self.policy.draw_noise(len(previous), generator))


class Ensemble(Asynchronous):
    """Temporal ensembling over all chunks that have arrived; ACT's is n_action_steps=1.

    Args:
        policy, delay: see Execution.
        decay: see ``ensemble``.
    """

    def __init__(self, policy: ChunkPolicy, *, delay: int = 0, decay: float = 0.01):
        super().__init__(policy, delay=delay)
        self.decay = decay

    def merge(self, chunk: Float[Tensor, "b h da"], memory: Memory) -> Float[Tensor, "b h da"]:
        """The mean with the older chunks."""
        ages = [(age + 1) * self.n_action_steps for _, age in memory.chunks]
        return ensemble([*(c for c, _ in memory.chunks), chunk], [*ages, 0], self.decay)


class RealTime(Execution):
    """Real-time chunking.

    Args:
        policy, delay: see Execution.
        beta, hold_past, line_search: see ``rtc``.
    """

    continues = True

    def __init__(
        self,
        policy: ChunkPolicy,
        *,
        delay: int = 0,
        beta: float = 5.0,
        hold_past: bool = True,
        line_search: bool = True,
    ):
        super().__init__(policy, delay=delay)
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta={beta} must be finite and not negative")
        self.beta, self.hold_past, self.line_search = beta, hold_past, line_search

    def follow(
        self,
        obs: Obs,
        previous: Float[Tensor, "b h da"],
        generator: torch.Generator | None,
        *,
        delay: int,
        since: int,
        past_known: bool = True,
    ) -> Float[Tensor, "b h da"]:
        """Inpainted."""
        return rtc(
            self.policy,
            obs,
            previous,
            delay=delay,
            execution_horizon=since,
            beta=self.beta,
            hold_past=self.hold_past and past_known,
            line_search=self.line_search,
            noise=chunk_noise(self.policy, len(previous), generator),
        )


class WarmStart(Execution):
    """RTI; an episode's first chunk is denoised in full.

    Args:
        policy, delay: see Execution.
        n_steps, start: see ``last_times``; start is a time in (0, 1].
        renoise, streaming, gripper_dims, gripper_factor: see ``rti``.
    """

    continues = True

    def __init__(
        self,
        policy: ChunkPolicy,
        *,
        delay: int = 0,
        n_steps: int = 3,
        start: float | None = None,
        renoise: bool = False,
        streaming: bool = False,
        gripper_dims: Sequence[int] = (),
        gripper_factor: float = 10.0,
    ):
        super().__init__(policy, delay=delay)
        if n_steps < 1:
            raise ValueError(f"n_steps={n_steps} must be at least 1")
        if start is not None and not 0 < start <= 1:
            raise ValueError(f"start={start} must lie in (0, 1]")
        da = policy.action_dim
        if any(not -da <= dim < da for dim in gripper_dims):
            raise ValueError(f"gripper_dims={list(gripper_dims)} must lie in {-da}..{da - 1}")
        self.times = last_times(policy.head, n_steps, start)
        self.renoise, self.streaming = renoise, streaming
        self.gripper_dims, self.gripper_factor = list(gripper_dims), gripper_factor

    def follow(
        self,
        obs: Obs,
        previous: Float[Tensor, "b h da"],
        generator: torch.Generator | None,
        *,
        delay: int,
        since: int,
        past_known: bool = True,
    ) -> Float[Tensor, "b h da"]:
        """The shifted plan, denoised."""
        draws = self.renoise or self.streaming
        return rti(
            self.policy,
            obs,
            previous,
            execution_horizon=since,
            times=self.times,
            renoise=self.renoise,
            streaming=self.streaming,
            gripper_dims=self.gripper_dims,
            gripper_factor=self.gripper_factor,
            noise=chunk_noise(self.policy, len(previous), generator) if draws else None,
        )


class Prefixed(Execution):
    """Chunks that were trained to go on from the actions executed meanwhile (policies.prefix).

    Args:
        policy: trained with ``policy.prefix`` of at least n_obs_steps - 1 + delay.
        delay: see Execution.
    """

    continues = True

    def __init__(self, policy: ChunkPolicy, *, delay: int = 0):
        super().__init__(policy, delay=delay)
        if policy.prefix is None:
            raise ValueError("name=prefix needs a policy trained with policy.prefix > 0; name=rtc needs no training")
        if policy.n_obs_steps - 1 + delay > policy.prefix.longest:
            raise ValueError(
                f"delay={delay} is more than the policy was trained on: with n_obs_steps={policy.n_obs_steps} and "
                f"policy.prefix={policy.prefix.longest} it is {policy.prefix.longest - policy.n_obs_steps + 1} at most"
            )

    def follow(
        self,
        obs: Obs,
        previous: Float[Tensor, "b h da"],
        generator: torch.Generator | None,
        *,
        delay: int,
        since: int,
        past_known: bool = True,
    ) -> Float[Tensor, "b h da"]:
        """A sample, given the actions up to ``delay``: of a longer delay than was trained, as many as were."""
        assert self.policy.prefix is not None
        past = self.n_obs_steps - 1
        given = shift(previous, since)[:, : min(past + delay, self.policy.prefix.longest)].clone()
        if not past_known:
            given[:, :past] = torch.nan
        return self.policy.sample({**obs, PREFIX: given}, noise=self.policy.draw_noise(len(previous), generator))


EXECUTIONS: dict[str, type[Execution] | None] = {
    "sync": None,  # the world waits for the chunk
    "async": Asynchronous,
    "ensemble": Ensemble,
    "rtc": RealTime,
    "prefix": Prefixed,
    "rti": WarmStart,
}


def build_execution(policy: Policy, config: Mapping[str, Any]) -> Policy:
    """The policy, executed as ``config`` says: ``name`` (of EXECUTIONS) and the options of that class."""
    options = {key: value for key, value in config.items() if key != "name"}
    execution = lookup(EXECUTIONS, config["name"], "execution.name")
    if execution is None:
        given = [key for key, value in options.items() if value]
        if given:
            raise ConfigError(f"execution.name=sync waits for its chunks and has no options; leave out {given}.")
        return policy
    if not isinstance(policy, ChunkPolicy):
        raise ConfigError(f"execution.name={config['name']} needs a head to step; a {type(policy).__name__} has none.")
    return construct(execution, options, "execution", policy=policy)
