"""Distillation of a policy into one network evaluation: its own steps in the place of the data's noise.

LCM form (ManiCM, Lu et al. 2024; RL-100, Lei et al. 2025), head ``consistency``: z_t' is where the teacher's step leads
from z_t over ``policy.skip`` levels. CTM form (Consistency Policy, Prasad et al. 2024), head ``ctm``: z_u is the
teacher's, in Heun's steps. The losses are the heads' own; a teacher with guidance teaches with it.

Solvers are written for any path: with A_t the teacher's estimate of the clean chunk from z_t,

    ddim:  z_t' = alpha' A_t + sigma' (z_t - alpha A_t) / sigma
    heun:  the same step, from the mean of A_t and of the estimate at its end
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from algos.bc import BC
from data.chunks import ChunkBatch
from data.errors import ConfigError
from policies.chunk_policy import ChunkPolicy
from policies.heads.consistency import Ask, ConsistencyHead, Level
from policies.heads.guidance import Guidance
from policies.heads.head import Head
from policies.policy import Metrics
from policies.rng import BatchRng


class Teaching:
    """The steps of a teacher along its path, for one batch at a time.

    Args:
        teacher: knows ``clean``.
        solver: see the module.
        target: judges where a path ends, in the place of the student itself; the student's average, say.
    """

    def __init__(self, teacher: Head, solver: Literal["ddim", "heun"], target: ConsistencyHead | None = None):
        self.teacher, self.solver, self.target = teacher, solver, target
        self.tokens: Tensor | None = None  # where the teacher sees others than the student
        self._prepared: Any = None
        self._ask: Ask | None = None

    @torch.no_grad()
    def begin(self, cond: Float[Tensor, "b l c"], repeats: int) -> None:
        """See Lesson."""
        tokens = cond if self.tokens is None else self.tokens
        self._prepared = self.teacher.network.prepare(tokens).repeat_interleave(repeats, 0)
        if self.target is not None:
            self._ask = self.target.ask(self.target.network.prepare(cond).repeat_interleave(repeats, 0))

    @torch.no_grad()
    def step(self, z: Float[Tensor, "n h da"], now: Level, then: Level) -> Float[Tensor, "n h da"]:
        """See Lesson."""
        (t, alpha, sigma), (t_then, alpha_then, sigma_then) = now, then

        def towards(clean: Tensor) -> Tensor:
            return alpha_then * clean + sigma_then * (z - alpha * clean) / sigma

        clean = self.teacher.clean(z, t, self._prepared)
        if self.solver == "ddim":
            return towards(clean)
        again = self.teacher.clean(towards(clean), t_then, self._prepared)
        return towards(torch.where(sigma_then > 0, (clean + again) / 2, clean))  # the last step has no end to ask

    def goal(self) -> Ask | None:
        """See Lesson."""
        return self._ask


class Distillation(BC):
    """Trains a student as BC does, by what the teacher says.

    Args:
        policy: the student, with a consistency head along the teacher's path; trained in place.
        teacher: with the same observations and horizon.
        solver: of the teacher's step.
        target: "student" (as it is, without gradients: Consistency Policy) or "ema" (its average: ManiCM) judges z_t'.
        encoder: "frozen" (the teacher's, taken as it is) or "learned" (a copy that goes on learning).
        warm_start: begin with the teacher's network, as far as the student's has the same layers.
        bc: the rest of BC's.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        accelerator: Accelerator | None = None,
        *,
        teacher: ChunkPolicy,
        solver: Literal["ddim", "heun"] = "ddim",
        target: Literal["student", "ema"] = "student",
        encoder: Literal["frozen", "learned"] = "frozen",
        warm_start: bool = True,
        **bc: Any,
    ):
        for name, value, allowed in (
            ("solver", solver, ("ddim", "heun")),
            ("target", target, ("student", "ema")),
            ("encoder", encoder, ("frozen", "learned")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, not {value!r}")
        check_path(policy, teacher)
        policy.normaliser.load_state_dict(teacher.normaliser.state_dict())
        policy.encoder.load_state_dict(teacher.encoder.state_dict())
        policy.encoder.requires_grad_(encoder == "learned")
        if warm_start:
            copy_fitting(bare(teacher.head.network), bare(policy.head.network))
        super().__init__(policy, accelerator, **bc)
        self.teacher = teacher.to(self.accelerator.device).eval().requires_grad_(False)
        self.learns_to_see = encoder == "learned"
        self.teaching = Teaching(teacher.head, solver, self.ema.model.head if target == "ema" else None)  # type: ignore[arg-type]
        policy.head.lesson = self.teaching  # type: ignore[assignment]

    def _loss(self, batch: ChunkBatch, rng: BatchRng) -> tuple[Tensor, Metrics]:
        if self.learns_to_see:
            with torch.no_grad(), self.accelerator.autocast():
                self.teaching.tokens = self.teacher.encode(batch.obs)
        return super()._loss(batch, rng)


def check_path(student: ChunkPolicy, teacher: ChunkPolicy) -> None:
    """Raises ConfigError where the student's head is not a consistency head along the teacher's path."""
    head = student.head
    if not isinstance(head, ConsistencyHead):
        raise ConfigError("algo=distill trains policy=consistency or policy=ctm.")
    if isinstance(teacher.head, ConsistencyHead):
        raise ConfigError("algo=distill needs a base that takes small steps; this one jumps already.")
    for t in head.schedule():
        if any(abs(a - b) > 1e-5 for a, b in zip(head.path(t), teacher.head.path(t), strict=True)):
            raise ConfigError("policy.denoiser has another path than the base's head; leave it out.")


def bare(network: Any) -> nn.Module:
    """``network`` without what guides it."""
    return network.network if isinstance(network, Guidance) else network


@torch.no_grad()
def copy_fitting(source: nn.Module, target: nn.Module) -> None:
    """The weights of ``source``, where ``target`` differs at most in the times it sees; new times start at weight 0."""
    old, new = source.state_dict(), target.state_dict()
    if {name: w.shape[:1] for name, w in old.items()} != {name: w.shape[:1] for name, w in new.items()}:
        return
    for name, w in new.items():
        if old[name].shape == w.shape:
            w.copy_(old[name])
        else:  # Linear, after a time embedding, which puts the sinusoids of t first
            n = min(old[name].shape[1], w.shape[1])
            w.zero_()
            w[:, :n] = old[name][:, :n]
