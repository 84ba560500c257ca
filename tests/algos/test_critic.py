"""The ensemble is E separate networks, and its gradients are theirs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from algos.critic import EnsembleMLP, move_towards, random_members


def separate(ensemble: EnsembleMLP, member: int) -> nn.Sequential:
    """The same member as a torch module."""
    layers: list[nn.Module] = []
    for i, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight[member].detach().T.clone(), bias[member, 0].detach().clone()
        layers.append(linear)
        if i + 1 < len(ensemble.weights):
            if ensemble.layer_norm:
                norm = nn.LayerNorm(weight.shape[2])
                norm.weight.data = ensemble.gammas[i][member, 0].detach().clone()
                norm.bias.data = ensemble.betas[i][member, 0].detach().clone()
                layers.append(norm)
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_equals_separate_networks(layer_norm):
    torch.manual_seed(0)
    ensemble = EnsembleMLP(4, 5, 2, hidden=(16, 8), layer_norm=layer_norm)
    for p in (*ensemble.gammas, *ensemble.betas):
        p.data += 0.3 * torch.randn_like(p)
    x = torch.randn(7, 5, requires_grad=True)
    y = torch.randn(7, 2)
    out = ensemble(x)
    members = [separate(ensemble, e) for e in range(4)]
    for e, member in enumerate(members):
        torch.testing.assert_close(out[e], member(x))
    chosen = torch.tensor([2, 0])
    torch.testing.assert_close(ensemble(x, chosen), out[chosen])
    torch.testing.assert_close(ensemble(x.expand(4, -1, -1)), out)
    (out - y).square().sum().backward()
    grad = x.grad
    assert grad is not None
    x.grad = None
    sum((m(x) - y).square().sum() for m in members).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(x.grad, grad)
    for e, member in enumerate(members):
        linears = [m for m in member if isinstance(m, nn.Linear)]
        for i, linear in enumerate(linears):
            torch.testing.assert_close(ensemble.weights[i].grad[e].T, linear.weight.grad)
            torch.testing.assert_close(ensemble.biases[i].grad[e, 0], linear.bias.grad)
        for i, norm in enumerate(m for m in member if isinstance(m, nn.LayerNorm)):
            torch.testing.assert_close(ensemble.gammas[i].grad[e, 0], norm.weight.grad)
            torch.testing.assert_close(ensemble.betas[i].grad[e, 0], norm.bias.grad)


def test_gradients_by_finite_differences():
    torch.manual_seed(1)
    ensemble = EnsembleMLP(2, 3, hidden=(6, 5)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *_: ensemble(x).square(), tuple(ensemble.parameters()))


def test_starts_at_zero_where_asked():
    ensemble = EnsembleMLP(1, 3, 2, final_scale=0.0)
    assert torch.equal(ensemble(torch.randn(5, 3)), torch.zeros(1, 5, 2))


def test_target_moves():
    a, b = EnsembleMLP(2, 3), EnsembleMLP(2, 3)
    want = [0.9 * p + 0.1 * q for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    move_towards(a, b, 0.1)
    for p, w in zip(a.parameters(), want, strict=True):
        torch.testing.assert_close(p, w)


def test_random_members_are_different_and_uniform():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_members(5, 2, generator) for _ in range(2000)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    assert torch.bincount(drawn.flatten(), minlength=5).float().std() < 50
