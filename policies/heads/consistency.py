"""Consistency models (Song et al. 2023) for action chunks: from any point of a path to its data end in one jump.

The path z_t = alpha A + sigma eps and the reading of the network's output are those of another head, the denoiser,
whose estimate of A is D (as in LCM, Luo et al. 2023; ManiCM, Lu et al. 2024). With d = sigma_data,

    f(z_t, t) = c_skip z_t / alpha + (1 - c_skip) D(z_t, t),      c_skip = d^2 alpha^2 / (sigma^2 + d^2 alpha^2)
    L = d( f(z_t, t), sg f(z_t', t') ),      z_t' on the path of z_t, closer to the data;    f = identity at the data

z_t' comes from the same noise (consistency training), or from a teacher's step (distillation, algos.distill).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call

from policies.heads.head import Head
from policies.rng import BatchRng

Ask = Callable[[Tensor, Tensor], Tensor]
"""A network under an observation: (noisy chunk, time) -> output."""

Level = tuple[Any, Any, Any]
"""(t, alpha, sigma): numbers, or (B,), (B, 1, 1) and (B, 1, 1). The data are (0, 1, 0)."""


class Asked(nn.Module):
    """Stands for the network of the denoiser, which has none of its own: it is asked what it is given."""

    def forward(self, x: Tensor, t: Tensor, prepared: Any) -> Tensor:
        """``prepared`` is an Ask."""
        return prepared(x, t)


class Lesson(Protocol):
    """What distillation puts in the place of the data's own noise, in training only."""

    def begin(self, cond: Float[Tensor, "b l c"], repeats: int) -> None:
        """Of one batch: its observation tokens, for ``repeats`` rows each."""
        ...

    def step(self, z: Float[Tensor, "n h da"], now: Level, then: Level) -> Float[Tensor, "n h da"]:
        """Where the teacher's path leads from z."""
        ...

    def goal(self) -> Ask | None:
        """Another network than the student's that says where the path ends."""
        ...


class ConsistencyHead(Head):
    """One network evaluation for a chunk, or K: noise is put back to an earlier level, and the next jump taken.

    Args:
        denoiser: its path and its reading of the network's output; a head without a network (``Asked``).
        n_levels: of noise in training, where the denoiser's sampler of so many steps would stop.
        skip: levels between the two points that must agree; ManiCM's k.
        sigma_data: d; 0.5 in consistency models, from where few updates get less far.
        huber_delta: of the pseudo-Huber distance sqrt(mean square + delta^2) - delta over a chunk; 0: squared error.
            Consistency Policy's delta, of the sum of squares, is 0.00054 sqrt(H Da).
        clip_sample: clip the chunk to [-1, 1] after every jump.
        noise_scale: std of the noise that sampling starts from, as a part of the path's.
        common: the rest of Head's.
    """

    times: Tensor
    alphas: Tensor
    sigmas: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        denoiser: Head,
        n_inference_steps: int = 1,
        n_levels: int = 50,
        skip: int = 5,
        sigma_data: float = 0.1,
        huber_delta: float = 0.0,
        clip_sample: bool = True,
        noise_scale: float = 1.0,
        **common: Any,
    ):
        super().__init__(network, n_inference_steps=n_inference_steps, **common)
        if denoiser.n_times != 1:
            raise ValueError("denoiser must be diffusion, edm or flow")
        if not 1 <= skip <= n_levels:
            raise ValueError(f"skip={skip} must lie in 1..n_levels={n_levels}")
        if n_inference_steps > n_levels:
            raise ValueError(f"n_inference_steps={n_inference_steps} must be at most n_levels={n_levels}")
        self.denoiser, self.n_levels, self.skip = denoiser, n_levels, skip
        self.sigma_data, self.huber_delta = sigma_data, huber_delta
        self.clip_sample, self.noise_scale = clip_sample, noise_scale
        denoiser.n_inference_steps = n_levels
        times = denoiser.schedule()
        self._levels = [(t, *denoiser.path(t)) for t in times] + [(0.0, 1.0, 0.0)]
        for name, column in zip(("times", "alphas", "sigmas"), zip(*self._levels, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(column), persistent=False)
        self.lesson: Lesson | None = None

    # ------------------------------------------------------------------ levels

    @property
    def n_noise(self) -> int | None:
        """One for every jump."""
        return None if self.n_inference_steps == 1 else self.n_inference_steps

    def level(self, i: int | Int64[Tensor, " n"]) -> Level:
        """Level i, from 0 (noise) to n_levels (data)."""
        if isinstance(i, int):
            return self._levels[i]
        return self.times[i], self.alphas[i][:, None, None], self.sigmas[i][:, None, None]

    def chain(self) -> list[int]:
        """Where sampling jumps from: equal parts of the levels; 0, 27 and 54 of 80, as in Consistency Policy."""
        k = self.n_inference_steps
        return [-(-i * self.n_levels // k) for i in range(k)]

    def path(self, t: float) -> tuple[float, float]:
        """The denoiser's."""
        return self.denoiser.path(t)

    def time_at(self, ratio: float) -> float:
        """The denoiser's."""
        return self.denoiser.time_at(ratio)

    def schedule(self) -> list[float]:
        """Times of ``chain``."""
        return [self._levels[i][0] for i in self.chain()]

    def start(self, noise: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """``noise_scale`` times the path's."""
        return self._levels[0][2] * self.noise_scale * noise

    def clean(
        self, z: Float[Tensor, "b h da"], t: float | Float[Tensor, " b"], prepared: Any, *, clip: bool = True
    ) -> Float[Tensor, "b h da"]:
        """The end of the path through z_t, where other heads have the mean of all data that fit. Rows take levels."""
        if isinstance(t, Tensor):
            now = self.level((self.times[:-1] - t[:, None]).abs().argmin(1))
        else:
            now = (t, *self.path(t))
        action = self.to_data(z, now, self.ask(prepared))
        return action.clamp(-1, 1) if clip and self.clip_sample else action

    # ------------------------------------------------------------------ jumps

    def ask(self, prepared: Tensor) -> Ask:
        """The network, for prepared observations."""
        return lambda x, t: self.network(x, t, prepared)

    def still(self, prepared: Tensor) -> Ask:
        """``ask`` with gradients for the chunk, but not for the weights."""
        goal = self.lesson.goal() if self.lesson is not None else None
        if goal is not None:
            return goal
        network: Any = self.network
        weights = {name: w.detach() for name, w in network.named_parameters()}
        prepared = prepared.detach()
        return lambda x, t: functional_call(network, weights, (x, t, prepared))

    def to_data(self, z: Float[Tensor, "n h da"], now: Level, ask: Ask) -> Float[Tensor, "n h da"]:
        """f."""
        t, alpha, sigma = now
        d = self.sigma_data
        skip = d * d * alpha / (sigma * sigma + d * d * alpha * alpha)  # c_skip / alpha: finite where alpha is 0
        return skip * z + (1 - skip * alpha) * self.denoised(z, t, ask)

    def denoised(self, z: Tensor, t: Any, ask: Any) -> Tensor:
        """D."""
        return self.denoiser.clean(z, t, ask)

    def sample(self, cond: Float[Tensor, "b l c"], noise: Tensor) -> Float[Tensor, "b h da"]:
        """K jumps; noise (B, H, Da), or (B, K, H, Da)."""
        ask, action = self.ask(self.network.prepare(cond)), None
        for i, eps in zip(self.chain(), noise.unbind(1) if self.n_noise else [noise], strict=True):
            _, alpha, sigma = now = self._levels[i]
            z = self.start(eps) if action is None else alpha * action + sigma * eps
            action = self.to_data(z, now, ask)
            if self.clip_sample:
                action = action.clamp(-1, 1)
        assert action is not None
        return action

    # ------------------------------------------------------------------ training

    def loss(self, action: Tensor, cond: Float[Tensor, "b l c"], is_pad: Tensor, rng: BatchRng) -> Float[Tensor, ""]:
        """See Head."""
        if self.lesson is not None:
            self.lesson.begin(cond.detach(), self.noise_per_obs)
        return super().loss(action, cond, is_pad, rng)

    def error(self, action: Float[Tensor, "n h da"], prepared: Tensor, rng: BatchRng) -> Float[Tensor, "n h da"]:
        """Disagreement of two points about the end of their path."""
        eps = rng.randn(len(action), *action.shape[1:])
        i = rng.randint(self.n_levels, len(action))
        now, then = self.level(i), self.level((i + self.skip).clamp(max=self.n_levels))
        z = self.noisy(action, eps, now)
        with torch.no_grad():
            goal = self.to_data(self.ahead(action, eps, z, now, then), then, self.still(prepared))
        return self.distance(self.to_data(z, now, self.ask(prepared)) - goal)

    def noisy(self, action: Tensor, eps: Tensor, level: Level) -> Tensor:
        """z_t."""
        return level[1] * action + level[2] * eps

    def ahead(self, action: Tensor, eps: Tensor, z: Tensor, now: Level, then: Level) -> Tensor:
        """z_t', further along the path of z_t: by the teacher's step, else by the noise that made z_t."""
        return self.noisy(action, eps, then) if self.lesson is None else self.lesson.step(z, now, then)

    def distance(self, difference: Float[Tensor, "n h da"]) -> Float[Tensor, "n h da"]:
        """Its mean has the gradient of the pseudo-Huber distance; by element, so that padding can be left out."""
        square = difference.square()
        if self.huber_delta == 0:
            return square
        norm = (square.detach().mean((1, 2), keepdim=True) + self.huber_delta**2).sqrt()
        return 0.5 * square / norm
