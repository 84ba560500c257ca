"""Ensembles of small networks, computed together: one batched product per layer for all members."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from policies.policy import Metrics


class _NormReLU(torch.autograd.Function):
    """max(0, gamma * (x - mean) / std + beta) per member, with one buffer kept for the way back instead of four."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        normed, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
        out = torch.addcmul(beta, normed, gamma).relu_()
        ctx.save_for_backward(normed, rstd, gamma, out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        normed, rstd, gamma, out = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        scaled = grad * normed
        d_gamma = scaled.sum(1, keepdim=True) if ctx.needs_input_grad[1] else None
        d_beta = grad.sum(1, keepdim=True) if ctx.needs_input_grad[2] else None
        # Ba et al. 2016: dx = (g - mean(g) - x_hat * mean(g x_hat)) / std with g = grad * gamma
        size = normed.shape[-1]
        along = torch.matmul(scaled, gamma.transpose(1, 2)).div_(-size)
        g = grad.mul_(gamma)
        g.sub_(g.mean(-1, keepdim=True)).addcmul_(normed, along)
        return g.mul_(rstd), d_gamma, d_beta


class EnsembleMLP(nn.Module):
    """E independent networks of the same shape: linear, LayerNorm, ReLU per hidden layer, then linear.

    Args:
        n_members: E.
        in_dim, out_dim: of each member.
        hidden: widths.
        layer_norm: RLPD's remedy against values that run away (Ball et al. 2023).
        final_scale: factor on the initial weights of the last layer; 0 starts every member at 0.
    """

    def __init__(
        self,
        n_members: int,
        in_dim: int,
        out_dim: int = 1,
        *,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = True,
        final_scale: float = 1.0,
    ):
        super().__init__()
        self.n_members, self.in_dim, self.out_dim = n_members, in_dim, out_dim
        self.layer_norm = layer_norm
        sizes = [in_dim, *hidden, out_dim]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for i, (a, b) in enumerate(pairwise(sizes)):
            bound = a**-0.5 * (final_scale if i == len(hidden) else 1.0)
            self.weights.append(nn.Parameter((torch.rand(n_members, a, b) * 2 - 1) * bound))
            self.biases.append(nn.Parameter((torch.rand(n_members, 1, b) * 2 - 1) * bound))
        norms = list(hidden) if layer_norm else []
        self.gammas = nn.ParameterList([nn.Parameter(torch.ones(n_members, 1, h)) for h in norms])
        self.betas = nn.ParameterList([nn.Parameter(torch.zeros(n_members, 1, h)) for h in norms])

    def forward(self, x: Float[Tensor, "... d"], members: Int64[Tensor, " m"] | None = None) -> Float[Tensor, "m b o"]:
        """x (B, D), the same for all members, or (M, B, D); ``members`` chooses M of the E (default: all)."""

        def pick(parameters: nn.ParameterList, i: int) -> Tensor:
            return parameters[i] if members is None else parameters[i][members]

        h = x
        for i in range(len(self.weights)):
            weight, bias = pick(self.weights, i), pick(self.biases, i)
            if h.ndim == 2:  # the first layer of all members is one wide product
                n, d, o = weight.shape
                h = torch.mm(h, weight.transpose(0, 1).reshape(d, n * o)).view(len(h), n, o).transpose(0, 1) + bias
            else:
                h = torch.baddbmm(bias, h, weight)
            if i + 1 < len(self.weights):
                h = self._activate(h, i, pick)
        return h

    def _activate(self, h: Tensor, i: int, pick: Callable[[nn.ParameterList, int], Tensor]) -> Tensor:
        if not self.layer_norm:
            return torch.relu(h)
        return cast(Tensor, _NormReLU.apply(h, pick(self.gammas, i), pick(self.betas, i)))


def regress(
    critics: EnsembleMLP, optimiser: torch.optim.Optimizer, x: Float[Tensor, "b d"], y: Float[Tensor, " b"]
) -> Metrics:
    """One step on L_Q = sum_e mean_b (Q_e(x_b) - y_b)^2."""
    q = critics(x)[..., 0]
    loss = (q - y).square().mean(1).sum()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    q = q.detach()
    return {"critic_loss": loss.detach() / len(q), "q": q.mean(), "q_std": q.std(0).mean()}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through ``module`` but not into it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau source, all parameters at once."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)


def random_members(n: int, m: int, generator: torch.Generator) -> Int64[Tensor, " m"]:
    """m of n different members (REDQ's in-target subset, Chen et al. 2021)."""
    return torch.randperm(n, generator=generator)[:m]


def adam(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Adam in one kernel over all parameters; with ``weight_decay`` AdamW."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
