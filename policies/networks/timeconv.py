"""Convolutions over short sequences, time first: (T, B, C). On a chunk, a convolution is a few matrix products.

A "same" convolution is sum_k x[t + k - K // 2] W_k. Time first, the rows x[a:b] of all samples are one contiguous
matrix, so each tap is one product over exactly the rows it touches: nothing is copied, and no work goes into padding
(30 % of a 5-tap convolution over 4 steps). oneDNN's 1-d convolutions are about half as fast at these sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_FEW = 16  # samples


def _plain(x: Tensor) -> bool:
    """Whether to use differentiable library operations: off the CPU, under autocast, in the compiler."""
    return (
        x.device.type != "cpu"
        or x.dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )


def _spans(t: int, offset: int) -> tuple[slice, slice]:
    """(output steps, input steps) of a tap that reads step t + offset."""
    return slice(max(0, -offset), t - max(0, offset)), slice(max(0, offset), t - max(0, -offset))


def _unfolded(x: Tensor, offsets: Sequence[int]) -> Tensor:
    """(T, B, K C): for every step the steps its taps read, zeros beyond the ends."""
    before, after = max(0, -min(offsets)), max(0, max(offsets))
    t, padded = len(x), F.pad(x, (0, 0, 0, 0, before, after))
    return torch.cat([padded[before + o : before + o + t] for o in offsets], dim=-1)


class _TapConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, offsets: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.offsets = offsets
        t, b, _ = x.shape
        out = bias.expand(t, b, -1).contiguous()
        for offset, w in zip(offsets, weight, strict=True):
            to, src = _spans(t, offset)
            if to.stop > to.start:
                out[to].flatten(0, 1).addmm_(x[src].flatten(0, 1), w)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        t = len(x)
        dx = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        dw = torch.zeros_like(weight)
        for k, offset in enumerate(ctx.offsets):
            to, src = _spans(t, offset)
            if to.stop > to.start:
                g = grad[to].flatten(0, 1)
                torch.mm(x[src].flatten(0, 1).t(), g, out=dw[k])
                if dx is not None:
                    dx[src].flatten(0, 1).addmm_(g, weight[k].t())
        return dx, dw, grad.sum((0, 1)), None


def tap_conv(
    x: Float[Tensor, "t b c"], weight: Float[Tensor, "k c o"], bias: Float[Tensor, " o"], offsets: tuple[int, ...]
) -> Float[Tensor, "t b o"]:
    """out[t] = bias + sum_k x[t + offsets[k]] @ weight[k], steps beyond the ends being zero."""
    if _plain(x) or x.shape[1] < _FEW:  # one product over copied rows then costs less than several
        return F.linear(_unfolded(x, offsets), weight.flatten(0, 1).t(), bias)
    return _TapConv.apply(x.contiguous(), weight, bias, offsets)  # type: ignore[no-any-return]


class _TimeKernel(nn.Module):
    """Weight (K, C_in, C_out) and bias, initialised as nn.Conv1d is."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, fan_in: int):
        super().__init__()
        bound = 1.0 / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(kernel_size, c_in, c_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(c_out).uniform_(-bound, bound))


class TimeConv(_TimeKernel):
    """nn.Conv1d(c_in, c_out, kernel_size, padding="same") on (T, B, C); kernel_size odd."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int):
        super().__init__(c_in, c_out, kernel_size, c_in * kernel_size)
        self.offsets = tuple(k - kernel_size // 2 for k in range(kernel_size))

    def forward(self, x: Float[Tensor, "t b c"]) -> Float[Tensor, "t b o"]:
        """Same length."""
        return tap_conv(x, self.weight, self.bias, self.offsets)


class Downsample(_TimeKernel):
    """nn.Conv1d(c, c, 3, stride=2, padding=1) on (T, B, C), T even."""

    def __init__(self, c: int):
        super().__init__(c, c, 3, 3 * c)

    def forward(self, x: Float[Tensor, "t b c"]) -> Float[Tensor, "t2 b c"]:
        """Half the length."""
        even, odd = x[0::2], x[1::2]  # out[i] = x[2i - 1] W_0 + x[2i] W_1 + x[2i + 1] W_2
        pairs = torch.cat([even, odd], dim=-1)
        here = tap_conv(pairs, self.weight[1:].flatten(0, 1)[None], self.bias, (0,))
        return here + tap_conv(odd, self.weight[:1], torch.zeros_like(self.bias), (-1,))


class Upsample(_TimeKernel):
    """nn.ConvTranspose1d(c, c, 4, stride=2, padding=1) on (T, B, C)."""

    def __init__(self, c: int):
        super().__init__(c, c, 4, 4 * c)

    def forward(self, x: Float[Tensor, "t b c"]) -> Float[Tensor, "t2 b c"]:
        """Twice the length."""
        w = self.weight  # out[2i] = x[i] W_1 + x[i - 1] W_3;  out[2i + 1] = x[i] W_2 + x[i + 1] W_0
        even = tap_conv(x, torch.stack([w[1], w[3]]), self.bias, (0, -1))
        odd = tap_conv(x, torch.stack([w[2], w[0]]), self.bias, (0, 1))
        return torch.stack([even, odd], dim=1).flatten(0, 1)


def _group_moments(x: Tensor, n_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / std over (time, channels of the group), each spread to (B, C)."""
    t, b, c = x.shape
    per_group = c // n_groups
    sums = torch.stack([x.sum(0), x.square().sum(0)]).view(2, b, n_groups, per_group).sum(-1) / (t * per_group)
    mean, rstd = sums[0], (sums[1] - sums[0].square()).clamp_min(0).add(eps).rsqrt()
    return mean.repeat_interleave(per_group, 1), rstd.repeat_interleave(per_group, 1)


class _GroupNormMish(torch.autograd.Function):
    """What is per sample and channel is folded into two (B, C) factors: few passes over x in each direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, n_groups: int, eps: float) -> Tensor:
        mean, rstd = _group_moments(x, n_groups, eps)
        scale = rstd * gamma
        shift = beta - mean * scale
        ctx.save_for_backward(x, gamma, mean, rstd, scale, shift)
        ctx.n_groups = n_groups
        return F.mish(torch.addcmul(shift, x, scale), inplace=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        x, gamma, mean, rstd, scale, shift = ctx.saved_tensors
        t, b, c = x.shape
        per_group = c // ctx.n_groups
        dz = torch.ops.aten.mish_backward(grad, torch.addcmul(shift, x, scale))
        s1 = dz.sum(0)  # (B, C) sums over time of dz and of dz * normalised x
        s2 = ((dz * x).sum(0) - mean * s1) * rstd

        def group_mean(v: Tensor) -> Tensor:
            summed = (v * gamma).view(b, ctx.n_groups, per_group).sum(-1) / (t * per_group)
            return summed.repeat_interleave(per_group, 1)

        m1, m2 = group_mean(s1), group_mean(s2)
        # dx = rstd * (gamma dz - m1 - xhat m2), with xhat = (x - mean) rstd
        slope = -rstd.square() * m2
        dx = torch.addcmul(-rstd * m1 - mean * slope, x, slope).addcmul_(dz, scale)
        return dx, s2.sum(0), s1.sum(0), None, None


class GroupNormMish(nn.Module):
    """mish(nn.GroupNorm(n_groups, c)(x)) on (T, B, C)."""

    def __init__(self, n_groups: int, c: int, eps: float = 1e-5):
        super().__init__()
        if c % n_groups:
            raise ValueError(f"{c} channels cannot be normalised in n_groups={n_groups} groups")
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
        self.n_groups, self.eps = n_groups, eps

    def forward(self, x: Float[Tensor, "t b c"]) -> Float[Tensor, "t b c"]:
        """Per sample, over time and the channels of a group."""
        if x.shape[1] < _FEW and not torch.is_grad_enabled():  # one library call: at batch 1, calls are what costs
            h = F.group_norm(x.permute(1, 2, 0), self.n_groups, self.weight, self.bias, self.eps)
            return F.mish(h).permute(2, 0, 1)
        if _plain(x):
            mean, rstd = _group_moments(x.float(), self.n_groups, self.eps)
            scale = rstd * self.weight
            return F.mish(torch.addcmul(self.bias - mean * scale, x, scale))
        return _GroupNormMish.apply(x, self.weight, self.bias, self.n_groups, self.eps)  # type: ignore[no-any-return]
