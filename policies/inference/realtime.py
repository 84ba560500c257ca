"""Real-time chunking (Black, Galliker & Levine 2025): a chunk that goes on where the previous one is still executing.

The next chunk is inpainted: its first ``delay`` actions are what will have been executed when it arrives, later ones
are held to the previous chunk less and less. At each step the estimate of A is pulled towards the previous chunk Y by
pi-GDM (Song et al. 2023). The paper writes it for straight paths. For z = alpha A + sigma eps and A ~ N(0, I),

    p(A | z) = N(A_hat, r^2),  r^2 = sigma^2 / (alpha^2 + sigma^2)      (flow: t^2 / (t^2 + (1 - t)^2), the paper's;
                                                                         diffusion: 1 - abar; EDM: s^2 / (1 + s^2))
    grad_z log p(Y | z) = J^T W (Y - A_hat) / r^2,  J = dA_hat / dz
    A_hat' = A_hat + sigma^2 / alpha * grad = A_hat + sigma w J^T W (Y - A_hat)
    w = (alpha^2 + sigma^2) / (alpha sigma)

by Tweedie's A_hat = (z + sigma^2 score) / alpha. On straight paths w is the paper's guidance weight (its eq. 2, with
t -> 1 - t), which it clips at beta. Scaling z, and with it alpha and sigma, changes neither w nor sigma J, so beta
means the same on every path, and a diffusion head is guided as the flow head of the same denoiser would be.

Actions of a chunk go together, so that along some directions J is up to H times what this prior makes of it. There the
paper's pull carries the estimate past Y, as far as into another mode. Ours goes no further than to where the estimate
agrees best with Y (``line_search``), which for A ~ N(0, I) and no beta is where the paper's ends:

    A_hat' = A_hat + min(sigma w, <W d, p> / <W p, p>) p,  d = Y - A_hat,  p = J^T W d
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from policies.chunk_policy import ChunkPolicy
from policies.heads.head import Head
from policies.inference.walk import chunk_noise, prepare, shift, walk
from policies.policy import Obs


def soft_mask(horizon: int, delay: int, execution_horizon: int) -> Float[Tensor, " h"]:
    """W (eq. 5): 1 for the first d actions, then c (e^c - 1) / (e - 1) falling to 0 for the last s.

    c_i = (H - s - i) / (H - s - d + 1).
    """
    end = horizon - execution_horizon
    i = torch.arange(horizon, dtype=torch.float32)
    c = ((end - i) / (end - min(delay, end) + 1)).clamp(0, 1)
    weights = c * torch.expm1(c) / (math.e - 1)
    return torch.where(i < min(delay, end), 1.0, torch.where(i < end, weights, 0.0))


def guidance_weight(alpha: float, sigma: float, beta: float) -> float:
    """w, see the module; at most ``beta``."""
    return min(beta, (alpha**2 + sigma**2) / (alpha * sigma)) if alpha * sigma > 0 else beta


def guided(
    head: Head,
    z: Float[Tensor, "b h da"],
    t: float,
    prepared: Tensor,
    target: Float[Tensor, "b h da"],
    weights: Float[Tensor, "h 1"],
    beta: float,
    *,
    line_search: bool = True,
) -> Float[Tensor, "b h da"]:
    """The estimate of A, pulled towards ``target`` where ``weights`` say so; not clipped.

    Neither is what is differentiated: nothing could pull an estimate back through its clipping.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        clean = head.clean(z, t, prepared, clip=False)
        missing = (weights * (target - clean)).detach()
        (pull,) = torch.autograd.grad(clean, z, missing)
    alpha, sigma = head.path(t)
    size = pull.new_full((len(pull), 1, 1), sigma * guidance_weight(alpha, sigma, beta))
    if line_search:
        gain, cost = (missing * pull).sum((1, 2), True), (weights * pull.square()).sum((1, 2), True)
        size = size.minimum(gain.clamp_min(0) / cost.clamp_min(torch.finfo(cost.dtype).tiny))
    return clean.detach() + size * pull


def rtc(
    policy: ChunkPolicy,
    obs: Obs,
    previous: Float[Tensor, "b h da"],
    *,
    delay: int,
    execution_horizon: int,
    beta: float = 5.0,
    hold_past: bool = True,
    line_search: bool = True,
    noise: Float[Tensor, "b h da"] | None = None,
) -> Float[Tensor, "b h da"]:
    """A chunk for ``obs`` that continues ``previous``.

    The guided sampler steps along the head's path (policies.inference.walk) at the times of its own one.

    Args:
        policy: of any head; differentiated, so each step costs a forward and a backward pass.
        obs: (B, To, *shape), environment units.
        previous: the chunk being executed, normalised, as it was sampled.
        delay: d, control steps until this chunk arrives; ``previous`` goes on for as long.
        execution_horizon: s, control steps since ``previous`` was sampled.
        beta: largest guidance weight.
        hold_past: hold the chunk's first To - 1 actions, which are executed already, as well.
        line_search: see the module; False is the paper's.
        noise: (B, H, Da); drawn here when not given.

    Returns:
        (B, H, Da) normalised.
    """
    past = policy.n_obs_steps - 1
    weights = soft_mask(policy.horizon, past + delay, execution_horizon).to(previous)[:, None]
    if not hold_past:
        weights[:past] = 0
    target = shift(previous, execution_horizon)
    return inpaint(policy, obs, target, weights, beta=beta, line_search=line_search, noise=noise)


def inpaint(
    policy: ChunkPolicy,
    obs: Obs,
    target: Float[Tensor, "b h da"],
    weights: Float[Tensor, "h 1"],
    *,
    beta: float = 5.0,
    line_search: bool = True,
    noise: Float[Tensor, "b h da"] | None = None,
) -> Float[Tensor, "b h da"]:
    """A chunk for ``obs`` that is held to ``target`` by ``weights`` in [0, 1]; see ``rtc``."""
    head, prepared = policy.head, prepare(policy, obs)
    noise = chunk_noise(policy, len(target)) if noise is None else noise
    return walk(
        head,
        head.start(noise),
        head.schedule(),
        lambda z, t: guided(head, z, t, prepared, target, weights, beta, line_search=line_search),
    )
