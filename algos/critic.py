"""Ensembles of small networks, computed together: one batched product per layer for all members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from policies.policy import Metrics


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

        n = self.n_members if members is None else len(members)
        h = x.expand(n, -1, -1) if x.ndim == 2 else x
        for i in range(len(self.weights)):
            h = torch.baddbmm(pick(self.biases, i), h, pick(self.weights, i))
            if i + 1 < len(self.weights):
                if self.layer_norm:
                    normed = nn.functional.layer_norm(h, h.shape[-1:])
                    h = torch.addcmul(pick(self.betas, i), normed, pick(self.gammas, i))
                h = torch.relu(h)
        return h


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
