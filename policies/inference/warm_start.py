"""Warm starts: RTI-DP (Duan et al. 2025) and its kin, which denoise the previous chunk instead of pure noise.

RTI takes the previous chunk, shifted by what was executed, for a sample that is nearly denoised already, and runs only
the last few steps of the sampler on it, without adding noise. ``renoise`` adds the noise of the first step (SDEdit),
and ``streaming`` adds more of it to later actions than to earlier ones, as Streaming Diffusion Policy has it. That
needs a network trained with a noise level for each action; with an ordinary one all actions walk the same steps, but
an earlier one is held on the path of its guess, with that step's noise, until few steps are left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from policies.chunk_policy import ChunkPolicy
from policies.heads.head import Head
from policies.inference.walk import chunk_noise, prepare, shift, step
from policies.policy import Obs


def last_times(head: Head, n_steps: int, start: float | None = None) -> list[float]:
    """Times of ``n_steps`` steps: the last ones of the head's schedule, or evenly from ``start`` to 0 (not included).

    Raises:
        ValueError: the schedule has fewer steps.
    """
    if start is not None:
        return [start * (1 - i / n_steps) for i in range(n_steps)]
    times = head.schedule()
    if n_steps > len(times):
        raise ValueError(f"n_steps={n_steps} is more than the sampler's {len(times)} steps")
    return times[len(times) - n_steps :]


def rti(
    policy: ChunkPolicy,
    obs: Obs,
    previous: Float[Tensor, "b h da"],
    *,
    execution_horizon: int,
    times: Sequence[float],
    renoise: bool = False,
    streaming: bool = False,
    gripper_dims: Sequence[int] = (),
    gripper_factor: float = 10.0,
    noise: Float[Tensor, "b h da"] | None = None,
) -> Float[Tensor, "b h da"]:
    """The previous chunk, shifted and denoised for ``obs``.

    Args:
        policy: of any head.
        obs: (B, To, *shape), environment units.
        previous: the chunk being executed, normalised.
        execution_horizon: control steps since ``previous`` was sampled.
        times: of the steps, from noise to data, see ``last_times``; none of them gives the shifted chunk back.
        renoise: start from alpha A + sigma eps at the first time, instead of the chunk itself.
        streaming: hold earlier actions for longer; implies ``renoise``.
        gripper_dims: dimensions that only open or close ("clip"). In the guess they count +-1 / ``gripper_factor``,
            so that a few steps can turn them over, and what comes out is +-1.
        gripper_factor: see ``gripper_dims``.
        noise: (B, H, Da), for ``renoise``; drawn here when not given.

    Returns:
        (B, H, Da) normalised.
    """
    guess, dims = shift(previous, execution_horizon), list(gripper_dims)
    if dims and times:
        guess[..., dims] = _sign(guess[..., dims]) / gripper_factor
    renoise = renoise or streaming
    if renoise and noise is None:
        noise = chunk_noise(policy, len(guess))
    z = denoise(policy, obs, guess, times, noise if renoise else None, streaming)
    if dims:
        z[..., dims] = _sign(z[..., dims])
    return z


@torch.no_grad()
def denoise(
    policy: ChunkPolicy,
    obs: Obs,
    guess: Float[Tensor, "b h da"],
    times: Sequence[float],
    noise: Float[Tensor, "b h da"] | None,
    streaming: bool,
) -> Float[Tensor, "b h da"]:
    """``guess`` after a step at each of ``times``; ``noise`` and ``streaming`` see ``rti``."""
    if not times:
        return guess
    head, prepared = policy.head, prepare(policy, obs)
    joins = _joins(policy, len(times), guess.device) if streaming else None
    z = guess
    if noise is not None:
        z = _at(head, guess, noise, times[0])
    for i, (t, after) in enumerate(zip(times, [*times[1:], None], strict=True)):
        z = step(head, z, head.clean(z, t, prepared, clip=False), t, after)
        if joins is not None and noise is not None and after is not None:
            z = torch.where(joins > i, _at(head, guess, noise, after), z)
    return z


def _joins(policy: ChunkPolicy, n: int, device: torch.device) -> Float[Tensor, "h 1"]:
    """The step that each action takes part in first: past and present ones in the last, the farthest in the first."""
    ahead = torch.arange(policy.horizon, device=device) - (policy.n_obs_steps - 1)
    part = ahead.clamp(min=0) / max(policy.horizon - policy.n_obs_steps, 1)
    return ((1 - part) * (n - 1)).round()[:, None]


def _at(head: Head, chunk: Tensor, noise: Tensor, t: float) -> Tensor:
    alpha, sigma = head.path(t)
    return alpha * chunk + sigma * noise


def _sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x)
