"""Walking from noise to data with any head that has a path: what every method of this package steps with.

z_t = alpha A + sigma eps (Head.path). The step from t to t' keeps the noise that explains z under the estimate of A,

    z_t' = alpha' A_hat + sigma' (z_t - alpha A_hat) / sigma,

which is DDIM's step for diffusion (Song et al. 2021, eq. 12) and Euler's for straight paths. Where a head's sampler
clips, so does the step: the first A_hat, and as in diffusers not the one that the noise is told from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from policies.chunk_policy import ChunkPolicy
from policies.heads.head import Head
from policies.policy import Obs

Estimate = Callable[[Tensor, float], Tensor]
"""(z_t, t) to the estimate of A, not clipped."""


def prepare(policy: ChunkPolicy, obs: Obs) -> Tensor:
    """What the head needs of the observation at every step."""
    with torch.no_grad():
        return policy.head.network.prepare(policy.encode(obs))


def chunk_noise(policy: ChunkPolicy, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "b h da"]:
    """Standard normal noise for n walks; unlike ``Policy.draw_noise`` the same whatever the head's own sampler is."""
    source = generator.device if generator is not None else policy.device
    return torch.randn(n, policy.horizon, policy.action_dim, generator=generator, device=source).to(policy.device)


def step(
    head: Head, z: Float[Tensor, "b h da"], clean: Float[Tensor, "b h da"], t: float, after: float | None
) -> Float[Tensor, "b h da"]:
    """From z at ``t`` to z at the time ``after``, or to data where it is None; ``clean`` not clipped."""
    if after is None:
        return bounded(head, clean)
    alpha, sigma = head.path(t)
    alpha_after, sigma_after = head.path(after)
    return alpha_after * bounded(head, clean) + sigma_after * (z - alpha * clean) / sigma


def bounded(head: Head, clean: Tensor) -> Tensor:
    """Clipped, if the head's sampler clips."""
    return clean.clamp(-1, 1) if head.clip_sample else clean


def walk(head: Head, z: Float[Tensor, "b h da"], times: Sequence[float], estimate: Estimate) -> Float[Tensor, "b h da"]:
    """From z at ``times[0]`` to data, with one estimate at each of the times."""
    for t, after in zip(times, [*times[1:], None], strict=True):
        z = step(head, z, estimate(z, t), t, after)
    return z


def shift(chunk: Float[Tensor, "b h da"], n: int) -> Float[Tensor, "b h da"]:
    """The chunk as it looks ``n`` control steps later; the last action is repeated."""
    n = min(n, chunk.shape[1] - 1)
    return torch.cat([chunk[:, n:], chunk[:, -1:].expand(-1, n, -1)], 1)
