"""General Policy Composition (Cao et al. 2026): one chunk from two policies, with any heads and observations.

Both look at the same noisy chunk: z = alpha A + sigma eps on one head's path is, scaled, a point on the other's where
sigma / alpha is equal. There a convex combination of scores is one of estimates of A, for
score = (alpha A_hat - z) / sigma^2.

AND and OR are superposition (Skreta et al. 2025). Its densities follow from Ito's formula along the stochastic sampler
(Ho et al. 2020, eq. 7; m_i the mean of its next z by policy i, v their variance),

    d log p_i = log N(z' | m_i, v I) + what is common to all i,

which weighs the policies by p_i for OR, sampling their mixture, and for AND keeps d log p_1 = d log p_2: the mean of
m_1 and m_2, and noise at a right angle to m_1 - m_2.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from data.errors import ContractError
from policies.chunk_policy import ChunkPolicy
from policies.heads.head import Head
from policies.inference.walk import Estimate, bounded, prepare, step
from policies.policy import Obs

Mode = Literal["convex", "and", "or"]


def translate(z: Float[Tensor, "b h da"], head: Head, t: float, other: Head) -> tuple[Float[Tensor, "b h da"], float]:
    """z at t on ``head``'s path, as a point of ``other``'s path with equal sigma / alpha (the nearest it knows)."""
    alpha, sigma = head.path(t)
    t_other = other.time_at(sigma / alpha if alpha else math.inf)
    return z * (math.hypot(*other.path(t_other)) / math.hypot(alpha, sigma)), t_other


def check_compatible(a: ChunkPolicy, b: ChunkPolicy) -> None:
    """Raises ContractError where chunks of the two do not mean the same."""
    for name in ("n_obs_steps", "horizon", "action_dim"):
        if getattr(a, name) != getattr(b, name):
            raise ContractError(f"Composed policies need the same {name}: {getattr(a, name)} and {getattr(b, name)}.")
    for name in ("centre", "scale"):
        ours, theirs = a.normaliser.statistic("action", name), b.normaliser.statistic("action", name)
        if not torch.allclose(ours, theirs.to(ours), rtol=0.01, atol=0.01):
            raise ContractError(
                f"Composed policies need the same normalisation of actions, but their {name}s are {ours.tolist()} and "
                f"{theirs.tolist()}: train both on the same demonstrations."
            )


def check_options(mode: str, weight: float) -> None:
    """Raises ValueError where ``compose`` knows no such mode or weight."""
    if mode not in ("convex", "and", "or"):
        raise ValueError(f"mode must be convex, and or or, not {mode!r}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} must lie in [0, 1]")


def noise_shape(policy: ChunkPolicy, mode: Mode) -> tuple[int, ...]:
    """Of one composed sample: (H, Da), or (K, H, Da) for the stochastic sampler of "and" and "or"."""
    shape = (policy.horizon, policy.action_dim)
    return shape if mode == "convex" else (len(policy.head.schedule()), *shape)


@torch.no_grad()
def compose(
    a: ChunkPolicy,
    b: ChunkPolicy,
    obs: Obs,
    *,
    noise: Tensor,
    mode: Mode = "convex",
    weight: float = 0.5,
) -> Float[Tensor, "b h da"]:
    """A chunk, normalised, by both policies; the steps are those of ``a``'s schedule, two evaluations each.

    Args:
        a, b: see ``check_compatible``.
        obs: what both of them see, (B, To, *shape) by key.
        noise: (B, *noise_shape).
        mode: "convex", scores weighted by ``weight`` and 1 - ``weight``; "or", the mixture with these weights;
            "and", where both are equally dense, whatever the weight.
        weight: of ``a``.
    """
    check_options(mode, weight)
    prepared_a, prepared_b = prepare(a, obs), prepare(b, obs)

    def by_a(z: Tensor, t: float) -> Tensor:
        return a.head.clean(z, t, prepared_a, clip=False)

    def by_b(z: Tensor, t: float) -> Tensor:
        return b.head.clean(*translate(z, a.head, t, b.head), prepared_b, clip=False)

    if mode == "convex":
        return _convex(a.head, by_a, by_b, noise, weight)
    return _superposition(a.head, by_a, by_b, noise, mode, weight)


def _convex(head: Head, by_a: Estimate, by_b: Estimate, noise: Tensor, weight: float) -> Tensor:
    z, times = head.start(noise), head.schedule()
    for t, after in zip(times, [*times[1:], None], strict=True):
        z = step(head, z, torch.lerp(by_b(z, t), by_a(z, t), weight), t, after)
    return z


def _superposition(head: Head, by_a: Estimate, by_b: Estimate, noise: Tensor, mode: Mode, weight: float) -> Tensor:
    z, times = head.start(noise[:, 0]), head.schedule()
    prior = torch.tensor([weight, 1 - weight], device=z.device, dtype=z.dtype).log()
    log_density = prior.expand(len(z), 2)
    for i, (t, after) in enumerate(zip(times, [*times[1:], None], strict=True)):
        estimates = bounded(head, torch.stack([by_a(z, t), by_b(z, t)]))
        share = log_density.softmax(1) if mode == "or" else torch.full_like(log_density, 0.5)
        if after is None:
            return _mix(share, estimates)
        means, std = ancestral(head, z, estimates, t, after)
        drawn = noise[:, i + 1]
        if mode == "and":
            drawn = drawn - _along(drawn, means[0] - means[1])
        z = _mix(share, means) + std * drawn
        log_density = log_density - (z - means).square().sum((2, 3)).T / (2 * std**2)
    return z


def ancestral(head: Head, z: Tensor, clean: Tensor, t: float, after: float) -> tuple[Tensor, float]:
    """Mean and std of z at ``after``, given z at t and A: DDPM's posterior, on any path."""
    (alpha, sigma), (alpha_after, sigma_after) = head.path(t), head.path(after)
    kept = (alpha * sigma_after / (alpha_after * sigma)) ** 2  # of the squared noise-to-signal ratio
    of_z = alpha * sigma_after**2 / (alpha_after * sigma**2)
    return alpha_after * (1 - kept) * clean + of_z * z, sigma_after * math.sqrt(1 - kept)


def _mix(share: Float[Tensor, "b n"], values: Float[Tensor, "n b h da"]) -> Float[Tensor, "b h da"]:
    return torch.einsum("bn,nbhd->bhd", share, values)


def _along(x: Tensor, direction: Tensor) -> Tensor:
    """The part of x (B, H, Da) along ``direction``."""
    inner = (x * direction).sum((1, 2), keepdim=True)
    return inner / direction.square().sum((1, 2), keepdim=True).clamp(min=1e-12) * direction
