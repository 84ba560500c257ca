"""Time-first convolutions and norms against torch's own, values and gradients."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from policies.networks import timeconv
from policies.networks.timeconv import Downsample, GroupNormMish, TimeConv, Upsample


def same(ours, reference, x, tie):
    """Ours on (T, B, C) = the reference on (B, C, T), and so are the gradients of input and parameters."""
    tie(ours, reference)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(a), reference(b.permute(1, 2, 0)).permute(2, 0, 1)
    torch.testing.assert_close(out, expected)
    g = torch.randn_like(out)
    out.backward(g)
    expected.backward(g)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.bias.grad, reference.bias.grad)
    return ours.weight.grad, reference.weight.grad


def tie_conv(ours, reference):
    with torch.no_grad():
        reference.weight.copy_(ours.weight.permute(2, 1, 0))
        reference.bias.copy_(ours.bias)


batch = pytest.mark.parametrize("b", [1, 3, 20])  # few and many rows take different paths


@batch
@pytest.mark.parametrize("t", [1, 2, 4, 16])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_conv(b, t, k):
    x = torch.randn(t, b, 6, dtype=torch.float64)
    got, want = same(TimeConv(6, 5, k).double(), nn.Conv1d(6, 5, k, padding=k // 2).double(), x, tie_conv)
    torch.testing.assert_close(got, want.permute(2, 1, 0))


@batch
@pytest.mark.parametrize("t", [1, 2, 4, 16])
def test_conv_in_bf16(b, t):
    """Under autocast: bf16's rounding away from float32's values and gradients, which keep the parameters' type."""
    conv = TimeConv(32, 24, 5)
    x = torch.randn(t, b, 32)
    found = []
    for enabled in (False, True):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = conv(given)
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        (conv.weight.grad, conv.bias.grad) = (None, None)
        torch.manual_seed(0)
        out.backward(torch.randn(out.shape).to(out.dtype))
        found.append((out.detach().float(), given.grad, conv.weight.grad, conv.bias.grad))
    for exact, rounded in zip(*found, strict=True):
        assert exact is not None
        assert rounded is not None
        assert rounded.dtype == torch.float32
        assert (exact - rounded).abs().max() < 0.02 * exact.abs().max()


@batch
@pytest.mark.parametrize("t", [2, 4, 8])
def test_downsample(b, t):
    x = torch.randn(t, b, 6, dtype=torch.float64)
    got, want = same(Downsample(6).double(), nn.Conv1d(6, 6, 3, 2, 1).double(), x, tie_conv)
    torch.testing.assert_close(got, want.permute(2, 1, 0))


@batch
@pytest.mark.parametrize("t", [1, 4])
def test_upsample(b, t):
    def tie(ours, reference):
        with torch.no_grad():
            reference.weight.copy_(ours.weight.permute(1, 2, 0))
            reference.bias.copy_(ours.bias)

    x = torch.randn(t, b, 6, dtype=torch.float64)
    got, want = same(Upsample(6).double(), nn.ConvTranspose1d(6, 6, 4, 2, 1).double(), x, tie)
    torch.testing.assert_close(got, want.permute(2, 0, 1))


@pytest.mark.parametrize("plain", [False, True])
def test_group_norm_mish(plain, monkeypatch):
    monkeypatch.setattr(timeconv, "_plain", lambda x: plain)
    ours = GroupNormMish(2, 6).double()
    reference = nn.Sequential(nn.GroupNorm(2, 6), nn.Mish()).double()
    with torch.no_grad():
        for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
            p.normal_()
            q.copy_(p)
    x = 3 * torch.randn(4, 5, 6, dtype=torch.float64) + 1
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(a), reference(b.permute(1, 2, 0)).permute(2, 0, 1)
    g = torch.randn_like(x)
    if plain:  # computes its moments in float32
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        return
    torch.testing.assert_close(out, expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(a), expected)
    out.backward(g)
    expected.backward(g)
    torch.testing.assert_close(a.grad, b.grad)
    for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("t", [1, 2, 4])
@pytest.mark.parametrize("make", [lambda: TimeConv(6, 6, 5), lambda: GroupNormMish(2, 6)], ids=["conv", "norm"])
def test_forward_derivatives(make, t):
    """Of the paths for many samples, against differences; nothing is recorded of them."""
    module = make().double()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    x, v = (torch.randn(t, 20, 6, dtype=torch.float64) for _ in range(2))
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(module(forward_ad.make_dual(x, v))).tangent
    e = 1e-6
    with torch.no_grad():
        torch.testing.assert_close(tangent, (module(x + e * v) - module(x - e * v)) / (2 * e), atol=1e-7, rtol=1e-6)


def test_mish_and_slope_everywhere():
    z = torch.cat([torch.linspace(-120, 120, 2001), torch.tensor([-1e6, 1e6])])
    reference = z.double().requires_grad_()
    expected = torch.nn.functional.mish(reference)
    expected.sum().backward()
    out, slope = timeconv.mish_and_slope(z)
    torch.testing.assert_close(out.double(), expected.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(slope.double(), reference.grad, atol=2e-6, rtol=1e-6)
