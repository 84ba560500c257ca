"""What a head is: a training objective and a sampler around a denoising network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.heads.guidance import Guidance
from policies.rng import BatchRng


class Network(Protocol):
    """A denoising network: ``network(x, t, network.prepare(cond))``.

    One with ``embed_times``, (K,) times -> (K, W), takes a row (1, W) of it in place of t, see ``Head.network_times``.
    For heads with ``n_times`` > 1 a time is a row of that many. ``hidden_blocks()`` see ``hidden_features``.
    """

    def prepare(self, cond: Tensor) -> Tensor:
        """What depends on the observation tokens (B, L, C) alone, first axis B; computed once per observation."""
        ...

    def __call__(self, x: Tensor, t: Tensor, prepared: Tensor) -> Tensor:
        """Noisy chunk (B, H, Da), time (B,) or (B, n_times) in [0, 1], prepared observation -> (B, H, Da)."""
        ...


class Head(nn.Module, ABC):
    """Time runs from t = 1 (noise) to t = 0 (data).

    Args:
        network: see Network.
        n_inference_steps: K, network evaluations per chunk.
        noise_per_obs: noise draws per encoded observation in one training batch (Mini-Diffuser's level-2
            minibatch): the encoder runs once, the denoising network on B * noise_per_obs rows.
        mask_padding: leave actions beyond the episode's ends out of the loss. Diffusion Policy trains on them.
        dispersive: weight of the dispersive loss on the network's hidden blocks; MP1 takes 0.5. Costs nothing later.
        cfg_dropout: probability that a row is trained without its condition, for guidance; 0 trains none.
        cfg_scale: how far to follow the condition in sampling, see Guidance; needs a network trained with dropout.
        cond_mask: (L, C), the entries of the observation tokens that are the condition.
    """

    network: Network  # type: ignore[assignment]
    n_times = 1  # that the network takes for a row
    guided_target = False  # guidance is learned: sampling follows the condition alone
    clip_sample = False  # the sampler clips its estimates of A to [-1, 1]

    def __init__(
        self,
        network: nn.Module,
        *,
        n_inference_steps: int,
        noise_per_obs: int = 1,
        mask_padding: bool = False,
        dispersive: float = 0.0,
        cfg_dropout: float = 0.0,
        cfg_scale: float = 1.0,
        cond_mask: Bool[Tensor, "l c"] | None = None,
    ):
        super().__init__()
        if not 0 <= cfg_dropout < 1:
            raise ValueError(f"cfg_dropout={cfg_dropout} must lie in [0, 1)")
        if cfg_dropout > 0:
            if cond_mask is None:
                raise ValueError("cfg_dropout needs cond_mask")
            network = Guidance(network, cond_mask, 1.0 if self.guided_target else cfg_scale)
        elif cfg_scale != 1 and not self.guided_target:
            raise ValueError(f"cfg_scale={cfg_scale} needs a network trained with cfg_dropout > 0")
        self.network = network  # type: ignore[assignment]
        self.cfg_dropout, self.cfg_scale = cfg_dropout, cfg_scale
        self.n_inference_steps = n_inference_steps
        self.noise_per_obs = noise_per_obs
        self.mask_padding = mask_padding
        self.dispersive = dispersive

    @property
    def n_noise(self) -> int | None:
        """Noise tensors of a chunk's shape that one sample consumes; None for exactly one, without a leading axis."""
        return None

    def objective(
        self, action: Float[Tensor, "n h da"], rng: BatchRng, n: int
    ) -> tuple[Float[Tensor, "n h da"], Float[Tensor, " n"], Float[Tensor, "n h da"]]:
        """(noisy chunk, t, regression target) for n rows of normalised action chunks."""
        raise NotImplementedError

    def error(self, action: Float[Tensor, "n h da"], prepared: Tensor, rng: BatchRng) -> Float[Tensor, "n h da"]:
        """What the loss is the mean of; the squared error against ``objective``'s target where a head has one."""
        x, t, target = self.objective(action, rng, len(action))
        return (self.network(x, t, prepared) - target).square()

    # The path from data to noise, z_t = alpha A + sigma eps, for everything that steps along it in its own way
    # (real-time chunking, composition, distillation, other solvers). Straight unless a head says otherwise.

    def path(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at t."""
        return 1.0 - t, t

    def time_at(self, ratio: float) -> float:
        """The t at which sigma / alpha is ``ratio``, infinite for pure noise; the nearest one that the head knows."""
        return 1.0 if math.isinf(ratio) else ratio / (1.0 + ratio)

    def schedule(self) -> list[float]:
        """Where the sampler's K steps begin, from noise to data."""
        return [1.0 - i / self.n_inference_steps for i in range(self.n_inference_steps)]

    def start(self, noise: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """What the sampler makes of standard normal noise to begin with."""
        return noise

    def clean(
        self, z: Float[Tensor, "b h da"], t: float | Float[Tensor, " b"], prepared: Any, *, clip: bool = True
    ) -> Float[Tensor, "b h da"]:
        """The head's estimate of A from z_t, clipped if the sampler clips and ``clip``; on straight paths z - t v.

        t is one for all rows, or one for each.

        ``prepared`` is whatever the network takes.
        """
        return z - per_row(t) * self.network(z, self.instant(t, z), prepared)

    def instant(self, t: float | Float[Tensor, " b"], like: Float[Tensor, "b h da"]) -> Tensor:
        """What the network takes for time where it is asked for the velocity at t."""
        if isinstance(t, Tensor):
            return t if self.n_times == 1 else torch.stack([t] + [torch.zeros_like(t)] * (self.n_times - 1), 1)
        return self.network_times([t if self.n_times == 1 else (t, *[0.0] * (self.n_times - 1))], like)[0]

    @abstractmethod
    def sample(self, cond: Float[Tensor, "b l c"], noise: Tensor) -> Float[Tensor, "b h da"]:
        """A normalised chunk from observation tokens and noise."""

    def network_times(self, times: Sequence[float | Sequence[float]], like: Float[Tensor, "b h da"]) -> list[Tensor]:
        """What the network takes for t at each of a sampler's steps, embedded for all of them at once where it can."""
        t = torch.tensor(times, device=like.device, dtype=like.dtype)
        embed = getattr(self.network, "embed_times", None)
        return list(t[:, None].expand(-1, len(like), *t.shape[1:]) if embed is None else embed(t).split(1))

    def integrate(
        self,
        cond: Float[Tensor, "b l c"],
        z: Float[Tensor, "b h da"],
        times: Sequence[float | Sequence[float]],
    ) -> Float[Tensor, "b h da"]:
        """From z, pure noise, to data in equal steps along the network's direction, one at each of ``times``."""
        prepared = self.network.prepare(cond)
        for t in self.network_times(times, z):
            z = z - self.network(z, t, prepared) / len(times)
        return z

    def prepare_training(self, cond: Float[Tensor, "b l c"], rng: BatchRng) -> Tensor:
        """``network.prepare``; some rows without their condition."""
        if not isinstance(self.network, Guidance):
            return self.network.prepare(cond)
        dropped = self.network.drop(cond, self.cfg_dropout, rng)
        if self.guided_target:
            return self.network.prepare_both(dropped, cond)
        return self.network.network.prepare(dropped).unsqueeze(1)

    def loss(
        self,
        action: Float[Tensor, "b h da"],
        cond: Float[Tensor, "b l c"],
        is_pad: Bool[Tensor, "b h"],
        rng: BatchRng,
    ) -> Float[Tensor, ""]:
        """Mean of ``error``, and the dispersive loss.

        Padding counts in the denominator even when masked, so that the mean over processes is the mean over the batch.
        """
        m = self.noise_per_obs
        prepared = self.prepare_training(cond, rng)
        if m > 1:
            action, prepared = action.repeat_interleave(m, 0), prepared.repeat_interleave(m, 0)
            is_pad = is_pad.repeat_interleave(m, 0)
        with hidden_features(self.network, active=self.dispersive > 0) as hidden:
            error = self.error(action, prepared, rng)
        if self.mask_padding:
            error = error * (~is_pad).unsqueeze(-1)
        loss = error.mean()
        for features in hidden:
            loss = loss + self.dispersive * dispersion(features)
        return loss


def per_row(t: float | Float[Tensor, " b"]) -> Any:
    """``t`` so that it multiplies chunks: as it is, or (B, 1, 1)."""
    return t[:, None, None] if isinstance(t, Tensor) else t


def dispersion(features: Float[Tensor, "n f"]) -> Float[Tensor, ""]:
    """log mean_ij exp(-||z_i - z_j||^2), distances relative to the largest (Wang & He 2025; MP1)."""
    square = torch.cdist(features, features).square()
    return torch.exp(-square / square.detach().amax().clamp(min=1e-12)).mean().log()


@contextmanager
def hidden_features(network: Any, *, active: bool) -> Iterator[list[Tensor]]:
    """Collects (B, F) what comes out of ``network.hidden_blocks`` where gradients are recorded.

    ``hidden_blocks()`` names modules with the axis of their output that counts rows.
    """
    found: list[Tensor] = []

    def collector(axis: int) -> Any:
        def collect(module: nn.Module, args: Any, out: Tensor) -> None:
            if torch.is_grad_enabled():
                found.append(out.movedim(axis, 0).flatten(1))

        return collect

    handles = [m.register_forward_hook(collector(axis)) for m, axis in network.hidden_blocks()] if active else []
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
