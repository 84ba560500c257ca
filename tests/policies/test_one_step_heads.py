"""Heads that jump: MeanFlow, shortcut and consistency flow against known answers; and every head on two modes."""

import pytest
import torch

from policies.heads.edm import EDMHead
from policies.heads.flow import FlowHead
from policies.heads.flowpolicy import FlowPolicyHead
from policies.heads.head import dispersion, hidden_features
from policies.heads.meanflow import MeanFlowHead
from policies.heads.shortcut import ShortcutHead
from policies.networks.dit import DiT
from policies.networks.mlp import ResidualMLP
from policies.networks.transformer import Transformer
from policies.networks.unet1d import UNet1d
from policies.rng import BatchRng
from tests.policies import mixture
from tests.policies.test_heads import COND, Field, PointTarget

SMALL = {"time_scale": 3.0, "n_times": 2}
TOKENS = {"width": 16, "n_layers": 2, "n_heads": 2, **SMALL}
# (network for chunks (8, 3) and one token of 5, its hidden blocks, their features)
NETWORKS = {
    "mlp": (lambda: ResidualMLP(3, 8, (1, 5), hidden_dim=32, n_blocks=3, time_dim=16, **SMALL), 2, 32),
    "unet1d": (lambda: UNet1d(3, 8, (1, 5), down_dims=[16, 32], time_dim=16, **SMALL), 1, 4 * 16),
    "transformer": (lambda: Transformer(3, 8, (1, 5), causal=True, **TOKENS), 1, 8 * 16),
    "dit": (lambda: DiT(3, 8, (1, 5), **TOKENS), 1, 8 * 16),
    "dit-in_context": (lambda: DiT(3, 8, (1, 5), conditioning="in_context", **TOKENS), 1, 9 * 16),
}


class AnyTimes(PointTarget):
    """The exact velocity for heads whose network sees (t, something)."""

    def forward(self, x, t, prepared):
        return super().forward(x, t[:, 0], prepared)


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_meanflow_at_one_point(derivative):
    """All data at one point: the velocity is the same along a path, so it is also the average, and du/dt is 0."""
    point = torch.linspace(-0.9, 0.9, 24).view(8, 3)
    head = MeanFlowHead(AnyTimes(point, "velocity"), derivative=derivative, adaptive_power=0.0, flow_ratio=0.0)
    action, pad = point.expand(64, 8, 3), torch.zeros(64, 8, dtype=torch.bool)
    assert head.loss(action, torch.zeros(64, 1, 1), pad, BatchRng(0)) < 1e-4
    for steps in (1, 3):
        head.n_inference_steps = steps
        torch.testing.assert_close(head.sample(COND, torch.randn(2, 8, 3)), point.expand(2, 8, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_meanflow_weighs_rows_by_their_mean_squared_error(power):
    """An error of 0.1 everywhere: 0.01 / (0.01 + 1e-3)^p, whatever the length of a chunk."""
    point = torch.linspace(-0.9, 0.9, 24).view(8, 3)
    exact = AnyTimes(point, "velocity")

    class Off(torch.nn.Module):
        prepare = staticmethod(lambda cond: cond)

        def forward(self, x, t, prepared):
            return exact(x, t, prepared) + 0.1

    for length in (8, 4):
        exact.point = point[:length]
        head = MeanFlowHead(Off(), adaptive_power=power, flow_ratio=1.0)
        action, pad = point[:length].expand(64, length, 3), torch.zeros(64, length, dtype=torch.bool)
        loss = head.loss(action, torch.zeros(64, 1, 1), pad, BatchRng(0))
        assert float(loss) == pytest.approx(0.01 / 0.011**power, rel=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_jvp_is_the_derivative_along_the_path(network):
    """Against central differences in double precision, over chunks large enough for the fast kernels."""
    torch.manual_seed(0)
    net = NETWORKS[network][0]().double()
    with torch.no_grad():  # some networks start as zero
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    head = MeanFlowHead(net)
    rng = torch.Generator().manual_seed(1)
    z, v = (torch.randn(20, 8, 3, dtype=torch.float64, generator=rng) for _ in range(2))
    t = 0.5 + 0.4 * torch.rand(20, dtype=torch.float64, generator=rng)
    gap = 0.8 * t
    prepared = net.prepare(torch.randn(20, 1, 5, dtype=torch.float64, generator=rng))
    with torch.no_grad():
        exact = head.total_derivative(z, v, t, gap, prepared)
        e = 1e-5
        ahead = net(z + e * v, torch.stack([t + e, gap + e], 1), prepared)
        behind = net(z - e * v, torch.stack([t - e, gap - e], 1), prepared)
    torch.testing.assert_close(exact, (ahead - behind) / (2 * e), atol=1e-6, rtol=1e-6)
    assert exact.abs().mean() > 0.05
    head.derivative = "difference"
    with torch.no_grad():
        torch.testing.assert_close(head.total_derivative(z, v, t, gap, prepared), exact, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_derivative_survives_mixed_precision(derivative):
    """A difference of bf16 numbers 0.01 apart would be mostly rounding."""
    torch.manual_seed(0)
    net = NETWORKS["mlp"][0]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    head, rng = MeanFlowHead(net, derivative=derivative), torch.Generator().manual_seed(1)
    z, v = torch.randn(64, 8, 3, generator=rng), torch.randn(64, 8, 3, generator=rng)
    t = 0.3 + 0.6 * torch.rand(64, generator=rng)
    with torch.no_grad():
        prepared = net.prepare(torch.randn(64, 1, 5, generator=rng))
        exact = head.total_derivative(z, v, t, t / 2, prepared)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = head.total_derivative(z, v, t, t / 2, prepared)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_meanflow_identity_where_the_average_is_known():
    """Path z_t = t^2 w: u = (t + r) w, v = 2 t w. The identity's target, made from v and du/dt, is u itself."""
    w = torch.randn(30, 8, 3, dtype=torch.float64)
    t = 0.2 + 0.8 * torch.rand(30, dtype=torch.float64)
    gap = 0.9 * t * torch.rand(30, dtype=torch.float64)

    class Average(torch.nn.Module):
        def forward(self, x, times, prepared):
            now, ahead = times[:, 0], times[:, 1]
            return (2 * now - ahead)[:, None, None] * x / now.square()[:, None, None]

    z, v = t.square()[:, None, None] * w, 2 * t[:, None, None] * w
    target = MeanFlowHead(Average()).target(z, v, t, gap, torch.zeros(30, 1, dtype=torch.float64))
    torch.testing.assert_close(target, (2 * t - gap)[:, None, None] * w)


def test_shortcut_at_one_point():
    point = torch.linspace(-0.9, 0.9, 24).view(8, 3)
    head = ShortcutHead(AnyTimes(point, "velocity"), consistency_ratio=0.9)
    action, pad = point.expand(256, 8, 3), torch.zeros(256, 8, dtype=torch.bool)
    assert head.loss(action, torch.zeros(256, 1, 1), pad, BatchRng(0)) < 1e-4
    with pytest.raises(ValueError, match="powers of two"):
        ShortcutHead(AnyTimes(point, "velocity"), n_inference_steps=3)


def test_shortcut_target_is_two_steps_of_the_sampler():
    head = ShortcutHead(AnyField(), n_inference_steps=8, max_steps=8)
    z, t = torch.randn(5, 8, 3), torch.tensor([1.0, 0.5, 0.25, 0.75, 1.0])
    half = torch.tensor([0.5, 0.25, 0.125, 0.125, 1 / 16])
    got = head.two_steps(z, t, half, COND)
    named = torch.where(half < 1 / 8, 0.0, half)  # finer than the finest: the velocity itself
    first = z - half[:, None, None] * head.network(z, torch.stack([t, named], 1), COND)
    second = first - half[:, None, None] * head.network(first, torch.stack([t - half, named], 1), COND)
    torch.testing.assert_close(z - 2 * half[:, None, None] * got, second)


class AnyField(Field):
    def forward(self, x, t, prepared):
        return super().forward(x, t[:, 0] + 0.3 * t[:, 1], prepared)


@pytest.mark.parametrize("n_segments", [1, 2, 5])
def test_flowpolicy_at_one_point(n_segments):
    point = torch.linspace(-0.9, 0.9, 24).view(8, 3)
    head = FlowPolicyHead(PointTarget(point, "velocity"), n_segments=n_segments, delta=0.05, alpha=1.0)
    action, pad = point.expand(256, 8, 3), torch.zeros(256, 8, dtype=torch.bool)
    assert head.loss(action, torch.zeros(256, 1, 1), pad, BatchRng(0)) < 1e-4
    torch.testing.assert_close(head.sample(COND, torch.randn(2, 8, 3)), point.expand(2, 8, 3), atol=1e-4, rtol=0)
    wrong = FlowPolicyHead(PointTarget(point + 0.3, "velocity"), n_segments=n_segments, delta=0.05, alpha=0.0)
    assert wrong.loss(action, torch.zeros(256, 1, 1), pad, BatchRng(0)) > 1e-5


# Head, updates, how much of the samples must be near a mode (of noise 5 % are), how far the rarer mode's share may be
# from 0.25: MeanFlow's robust weighting takes from it.
LEARNERS = {
    "flow": (lambda net: FlowHead(net, n_inference_steps=20), 800, 0.95, 0.08),
    "edm": (lambda net: EDMHead(net, n_inference_steps=9, sampler="heun"), 800, 0.95, 0.08),
    "meanflow": (MeanFlowHead, 800, 0.65, 0.2),
    "omp": (lambda net: MeanFlowHead(net, derivative="difference", alignment=0.05), 800, 0.65, 0.2),
    "shortcut": (ShortcutHead, 800, 0.65, 0.12),
    "flowpolicy": (lambda net: FlowPolicyHead(net, n_inference_steps=2, delta=0.05), 800, 0.65, 0.12),
}


QUICK = ("flow",)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LEARNERS])
def test_learns_two_modes(name):
    """Samples land near a mode, and both modes get their share."""
    make, updates, near, tolerance = LEARNERS[name]
    torch.manual_seed(0)
    n_times = 2 if name in ("meanflow", "omp", "shortcut") else 1
    head = make(ResidualMLP(2, 1, (1, 1), hidden_dim=64, n_blocks=2, time_dim=16, time_scale=10.0, n_times=n_times))
    found, share = mixture.fit(head, width=0.02, updates=updates, lr=3e-3, batch_size=256)
    assert found > near, found
    assert abs(share - mixture.SHARE) < tolerance, share


def test_dispersion_by_brute_force():
    features = torch.randn(6, 5, requires_grad=True)
    pairs = [[(a - b).square().sum() for b in features] for a in features]
    largest = max(float(d) for row in pairs for d in row)
    expected = torch.stack([torch.exp(-d / largest) for row in pairs for d in row]).mean().log()
    torch.testing.assert_close(dispersion(features), expected)
    (step,) = torch.autograd.grad(dispersion(features), features)
    together = (features - 0.01 * step).detach()
    assert torch.pdist(together).mean() > torch.pdist(features).mean()  # descending drives rows apart


@pytest.mark.parametrize("network", NETWORKS)
def test_dispersive_loss_is_added_once_for_each_hidden_block(network):
    """MeanFlow runs its network several times in a loss; only what gradients are recorded of counts."""
    torch.manual_seed(0)
    make, blocks, width = NETWORKS[network]
    net = make()
    head = MeanFlowHead(net)
    batch = (torch.randn(7, 8, 3), torch.randn(7, 1, 5), torch.zeros(7, 8, dtype=torch.bool))
    plain = head.loss(*batch, BatchRng(0))
    with hidden_features(net, active=True) as found:
        head.loss(*batch, BatchRng(0))
    assert [f.shape[0] for f in found] == [7] * blocks
    assert found[0].shape[1] == width
    head.dispersive = 0.5
    torch.testing.assert_close(head.loss(*batch, BatchRng(0)), plain + 0.5 * sum(dispersion(f) for f in found))
    assert not net._forward_hooks
    assert all(not m._forward_hooks for m in net.modules())
