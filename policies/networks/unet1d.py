"""Diffusion Policy's conditional 1-D U-Net with FiLM (Chi et al. 2023, section III and appendix A)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from policies.networks.embed import TimeEmbedding
from policies.networks.timeconv import Downsample, GroupNormMish, TimeConv, Upsample


class _ConvBlock(nn.Module):
    """Conv1d -> GroupNorm -> Mish."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.conv = TimeConv(c_in, c_out, kernel_size)
        self.norm = GroupNormMish(n_groups, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class _ResBlock(nn.Module):
    """Two conv blocks; the first is modulated by FiLM (scale and bias, or bias alone) of time and observation."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.block1 = _ConvBlock(c_in, c_out, kernel_size, n_groups)
        self.block2 = _ConvBlock(c_out, c_out, kernel_size, n_groups)
        self.skip = nn.Linear(c_in, c_out) if c_in != c_out else nn.Identity()
        self.c_out = c_out

    def forward(self, x: Tensor, scale: Tensor | None, bias: Tensor) -> Tensor:
        h = self.block1(x)
        h = h + bias if scale is None else torch.addcmul(bias, scale, h)
        return self.block2(h) + self.skip(x)


class UNet1d(nn.Module):
    """Convolves over the chunk's time axis, halving it between levels.

    FiLM of [time, observation] is a linear map of their Mish. It is split into its time and its observation part, so
    that the observation part is computed once per observation: not once per noise draw in training
    (``noise_per_obs``), and not once per denoising step at inference. All blocks' FiLM maps are one matrix.

    Args:
        action_dim: Da.
        horizon: H, a multiple of 2 ** (levels - 1).
        cond_shape: (L, C) of the observation tokens.
        down_dims: channels of each level. Diffusion Policy: (512, 1024, 2048) on robots and DP3, (256, 512, 1024) else;
            Simple DP3: (128, 256, 384).
        n_blocks: residual blocks of each level on either side, and in the middle; 1 in Simple DP3.
        kernel_size, n_groups: of the convolutions and group norms.
        n_groups_out: of the last group norm, if others; always 8 in Diffusion Policy and LeRobot.
        time_dim: width of the time embedding.
        film_scale: FiLM with scale and bias; False adds a bias only.
        time_scale, n_times: see TimeEmbedding.

    Attributes:
        film_sizes: channels of every residual block, in the order in which the FiLM maps hold them.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_shape: tuple[int, int],
        *,
        down_dims: Sequence[int] = (64, 128, 256),
        n_blocks: int = 2,
        kernel_size: int = 5,
        n_groups: int = 8,
        n_groups_out: int | None = None,
        time_dim: int = 128,
        film_scale: bool = True,
        time_scale: float = 100.0,
        n_times: int = 1,
    ):
        super().__init__()
        dims = list(down_dims)
        factor = 2 ** (len(dims) - 1)
        if horizon % factor:
            raise ValueError(f"horizon={horizon} must be a multiple of {factor} for {len(dims)} U-Net levels")
        if n_blocks < 1:
            raise ValueError(f"n_blocks={n_blocks} must be at least 1")
        self.film_scale = film_scale
        self.time = TimeEmbedding(time_dim, time_scale, n_times)
        pairs = list(zip([action_dim, *dims[:-1]], dims, strict=True))

        def res(c_in: int, c_out: int) -> _ResBlock:
            return _ResBlock(c_in, c_out, kernel_size, n_groups)

        def level(c_in: int, c_out: int) -> list[nn.Module]:
            return [res(c_in if i == 0 else c_out, c_out) for i in range(n_blocks)]

        self.down = nn.ModuleList(
            nn.ModuleList([*level(a, b), Downsample(b) if i < len(dims) - 1 else nn.Identity()])
            for i, (a, b) in enumerate(pairs)
        )
        self.mid = nn.ModuleList(level(dims[-1], dims[-1]))
        self.up = nn.ModuleList(nn.ModuleList([*level(2 * b, a), Upsample(a)]) for a, b in reversed(pairs[1:]))
        last = _ConvBlock(dims[0], dims[0], kernel_size, n_groups_out or n_groups)
        self.final = nn.Sequential(last, nn.Linear(dims[0], action_dim))
        blocks = [m for m in self.modules() if isinstance(m, _ResBlock)]
        self.film_sizes = [b.c_out for b in blocks]
        width = (2 if film_scale else 1) * sum(self.film_sizes)
        self.film_time = nn.Linear(time_dim, width)
        self.film_cond = nn.Linear(math.prod(cond_shape), width, bias=False)

    def hidden_blocks(self) -> list[tuple[nn.Module, int]]:
        """Blocks whose outputs may be dispersed, and their batch axis: the levels going down, but for the last."""
        return [(level[-1], 1) for level in list(self.down)[:-1]]  # type: ignore[index]

    def prepare(self, cond: Float[Tensor, "b l c"]) -> Float[Tensor, "b w"]:
        """The observation's part of every block's FiLM."""
        return self.film_cond(F.mish(cond.flatten(1)))

    def embed_times(self, t: Float[Tensor, " k"] | Float[Tensor, "k n"]) -> Float[Tensor, "k w"]:
        """The time's part of every block's FiLM; a sampler computes it for all its steps at once."""
        return self.film_time(F.mish(self.time(t)))

    def forward(
        self, x: Float[Tensor, "b h da"], t: Float[Tensor, " b"] | Float[Tensor, "#b n"], prepared: Float[Tensor, "b w"]
    ) -> Float[Tensor, "b h da"]:
        """x noisy chunk, t in [0, 1] or ``embed_times(t)``, prepared = ``prepare(cond)`` -> the head's target."""
        film = (self.embed_times(t) if t.ndim == 1 or t.shape[1] == self.time.n_times else t) + prepared
        if self.film_scale:
            scale, bias = film.chunk(2, dim=1)
            films = list(zip(scale.split(self.film_sizes, 1), bias.split(self.film_sizes, 1), strict=True))
        else:
            films = [(None, b) for b in film.split(self.film_sizes, 1)]
        take = iter(films)
        h, skips = x.transpose(0, 1).contiguous(), []  # time first, see timeconv
        for *level, down in self.down:  # type: ignore[misc]
            for res in level:
                h = res(h, *next(take))
            skips.append(h)
            h = down(h)
        for res in self.mid:
            h = res(h, *next(take))
        for *level, up in self.up:  # type: ignore[misc]
            h = torch.cat([h, skips.pop()], -1)
            for res in level:
                h = res(h, *next(take))
            h = up(h)
        return self.final(h).transpose(0, 1)
