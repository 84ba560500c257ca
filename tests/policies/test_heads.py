"""Samplers against diffusers' own scheduler steps, and against distributions with known answers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler

from policies.heads.diffusion import DiffusionHead, inference_timesteps
from policies.heads.edm import EDMHead
from policies.heads.flow import FlowHead
from policies.heads.flowpolicy import FlowPolicyHead
from policies.heads.head import dispersion, hidden_features
from policies.heads.meanflow import MeanFlowHead
from policies.heads.shortcut import ShortcutHead
from policies.networks.mlp import ResidualMLP
from policies.networks.unet1d import UNet1d
from policies.rng import BatchRng


class Field(torch.nn.Module):
    """A fixed smooth network: deterministic in (x, t), independent of the observation."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(3, 3, bias=False)
        torch.manual_seed(0)
        torch.nn.init.orthogonal_(self.mix.weight)

    def prepare(self, cond):
        return cond

    def forward(self, x, t, prepared):
        return torch.tanh(self.mix(x)) * (0.5 + t[:, None, None])


COND = torch.zeros(2, 1, 1)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 4, 10, 16, 100])
def test_timesteps_are_those_of_diffusers(spacing, steps):
    scheduler = DDIMScheduler(num_train_timesteps=100, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert inference_timesteps(100, steps, spacing) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [True, False])
# Numbers of steps that divide 100: for others diffusers jumps to a step that is not the next one of its own list.
@pytest.mark.parametrize("steps", [1, 4, 10, 100])
def test_ddim_is_that_of_diffusers(prediction, spacing, clip, steps):
    head = DiffusionHead(
        Field(), prediction=prediction, spacing=spacing, clip_sample=clip, n_inference_steps=steps, sampler="ddim"
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        timestep_spacing=spacing,
        clip_sample=clip,
    )
    scheduler.set_timesteps(steps)
    noise = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        x = noise
        for k in scheduler.timesteps:
            out = head.network(x, torch.full((2,), float(k) / 100), None)
            x = scheduler.step(out, k, x, eta=0.0).prev_sample
        torch.testing.assert_close(head.sample(COND, noise), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("steps", [10, 100])
def test_ddpm_is_that_of_diffusers(prediction, steps):
    head = DiffusionHead(Field(), prediction=prediction, n_inference_steps=steps, sampler="ddpm", spacing="leading")
    scheduler = DDPMScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", prediction_type=prediction, clip_sample=True
    )
    scheduler.set_timesteps(steps)
    noise = torch.randn(2, steps, 8, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        # diffusers draws inside ``step``; its mean and its variance are compared separately, through its own formulas.
        x = noise[:, 0]
        for i, k in enumerate(scheduler.timesteps):
            out = head.network(x, torch.full((2,), float(k) / 100), None)
            generator = torch.Generator().manual_seed(0)
            mean_plus = scheduler.step(out, int(k), x, generator=generator).prev_sample
            if k > 0:
                drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
                std = scheduler._get_variance(int(k)) ** 0.5
                x = mean_plus - std * drawn + std * noise[:, i + 1]
            else:
                x = mean_plus
        torch.testing.assert_close(head.sample(COND, noise), x, atol=1e-4, rtol=1e-4)


class PointTarget(torch.nn.Module):
    """The exact velocity, noise or clean chunk when all data sit at one point."""

    def __init__(self, point, kind, abar=None):
        super().__init__()
        self.point, self.kind, self.abar = point, kind, abar

    def prepare(self, cond):
        return cond

    def forward(self, x, t, prepared):
        if self.kind == "velocity":  # (z - A) / t = eps - A on the straight path
            return (x - self.point) / t[:, None, None]
        if self.kind == "sample":
            return self.point.expand_as(x)
        abar = self.abar[(t * len(self.abar)).round().long()][:, None, None]
        return (x - abar.sqrt() * self.point) / (1 - abar).sqrt()


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_exact_networks_give_the_exact_chunk(steps):
    point = torch.linspace(-0.9, 0.9, 24).view(8, 3)
    noise = torch.randn(2, 8, 3)
    flow = FlowHead(PointTarget(point, "velocity"), n_inference_steps=steps)
    torch.testing.assert_close(flow.sample(COND, noise), point.expand(2, 8, 3), atol=1e-5, rtol=0)
    diffusion = DiffusionHead(PointTarget(point, "sample"), prediction="sample", n_inference_steps=steps)
    torch.testing.assert_close(diffusion.sample(COND, noise), point.expand(2, 8, 3), atol=1e-5, rtol=0)


def test_objectives_are_consistent():
    """The regression target is what the exact network would say: zero loss for a data set of one point."""
    point = torch.linspace(-0.9, 0.9, 24).view(8, 3)
    action, pad = point.expand(16, 8, 3), torch.zeros(16, 8, dtype=torch.bool)
    cond = torch.zeros(16, 1, 1)
    flow = FlowHead(PointTarget(point, "velocity"))
    assert flow.loss(action, cond, pad, BatchRng(0)) < 1e-6
    for prediction in ("epsilon", "sample"):
        head = DiffusionHead(PointTarget(point, prediction), prediction=prediction)
        head.network.abar = head.abar
        assert head.loss(action, cond, pad, BatchRng(0)) < 1e-6


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


@pytest.mark.parametrize("network", ["mlp", "unet1d"])
def test_jvp_is_the_derivative_along_the_path(network):
    """Against central differences in double precision, over chunks large enough for the fast kernels."""
    torch.manual_seed(0)
    if network == "mlp":
        net = ResidualMLP(3, 8, 5, hidden_dim=32, n_blocks=2, time_dim=16, time_scale=3.0, n_times=2).double()
    else:
        net = UNet1d(3, 8, 5, down_dims=[16, 32], time_dim=16, time_scale=3.0, n_times=2).double()
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
    head.derivative = "difference"
    with torch.no_grad():
        torch.testing.assert_close(head.total_derivative(z, v, t, gap, prepared), exact, atol=1e-2, rtol=1e-2)


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


class GaussianDenoiser(torch.nn.Module):
    """What EDM's network has to say when the data are N(0, std^2): then D(x) = std^2 / (std^2 + sigma^2) x."""

    def __init__(self, std):
        super().__init__()
        self.std, self.head = std, None

    def prepare(self, cond):
        return cond

    def forward(self, x, t, prepared):
        d = self.head.sigma_data
        low, high = math.log(self.head.sigma_min), math.log(self.head.sigma_max)
        sigma = torch.exp(low + t * (high - low))[:, None, None]
        norm = (sigma.square() + d * d).sqrt()
        noisy = x * norm
        clean = self.std**2 / (self.std**2 + sigma.square()) * noisy
        return (clean - (d / norm).square() * noisy) * norm / (sigma * d)


@pytest.mark.parametrize(("sampler", "steps", "tolerance"), [("ddim", 400, 2e-2), ("heun", 79, 5e-3)])
def test_edm_follows_the_exact_path_of_gaussian_data(sampler, steps, tolerance):
    """The flow of a Gaussian scales noise by std sigma_max / sqrt(std^2 + sigma_max^2)."""
    net = GaussianDenoiser(0.3)
    head = EDMHead(net, sampler=sampler, n_inference_steps=steps, sigma_max=10.0)
    object.__setattr__(net, "head", head)
    noise = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    # The last step, from sigma_min to 0, lands on D: the posterior mean and not a sample.
    low = head.sigma_min
    expected = noise * 10 * 0.3**2 / math.sqrt((0.3**2 + 100) * (0.3**2 + low**2))
    torch.testing.assert_close(head.sample(COND, noise), expected, atol=tolerance, rtol=tolerance)


def test_edm_loss_is_the_weighted_denoising_error():
    """E ||F - target||^2 is lambda(sigma) ||D - A||^2 with lambda = (sigma^2 + d^2) / (sigma d)^2 (table 1)."""
    head = EDMHead(Field(), sigma_max=80.0)
    action, rng = torch.rand(50, 8, 3) * 2 - 1, BatchRng(0)
    scaled, t, target = head.objective(action, rng, 50)
    out = head.network(scaled, t, COND)
    low, high = math.log(head.sigma_min), math.log(head.sigma_max)
    for i in range(50):
        sigma = math.exp(low + float(t[i]) * (high - low))
        x = scaled[i] * math.hypot(sigma, 0.5)
        clean = head.denoise(x[None], sigma, t[i : i + 1], COND)[0]
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        expected = weight * (clean - action[i]).square().sum()
        torch.testing.assert_close((out[i] - target[i]).square().sum(), expected, rtol=1e-3, atol=1e-3)
    karras = EDMEulerScheduler(sigma_min=0.02, sigma_max=80.0)
    karras.set_timesteps(5)
    torch.testing.assert_close(torch.tensor([*head.sigmas(5), 0.0]), karras.sigmas, rtol=1e-4, atol=0)


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


@pytest.mark.parametrize("name", LEARNERS)
def test_learns_two_modes(name):
    """Samples land near a mode, and both modes get their share."""
    make, updates, near, tolerance = LEARNERS[name]
    torch.manual_seed(0)
    modes = torch.tensor([[-0.7, -0.7], [0.7, 0.4]])
    n_times = 2 if name in ("meanflow", "omp", "shortcut") else 1
    head = make(ResidualMLP(2, 1, 1, hidden_dim=64, n_blocks=2, time_dim=16, time_scale=10.0, n_times=n_times))
    opt = torch.optim.Adam(head.parameters(), 3e-3)
    fade = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.02, updates)
    rng = BatchRng(0)
    for _ in range(updates):
        action = modes[(rng.rand(256) < 0.25).long()][:, None] + 0.02 * rng.randn(256, 1, 2)
        loss = head.loss(action, torch.zeros(256, 1, 1), torch.zeros(256, 1, dtype=torch.bool), rng)
        opt.zero_grad()
        loss.backward()
        opt.step()
        fade.step()
    with torch.no_grad():
        x = head.sample(torch.zeros(1000, 1, 1), rng.randn(1000, 1, 2))[:, 0]
    distance = torch.cdist(x, modes)
    share = (distance.argmin(1) == 1).float().mean()
    found = (distance.min(1).values < 0.2).float().mean()
    assert found > near, float(found)
    assert abs(share - 0.25) < tolerance, float(share)


def test_dispersion_by_brute_force():
    features = torch.randn(6, 5, requires_grad=True)
    pairs = [[(a - b).square().sum() for b in features] for a in features]
    largest = max(float(d) for row in pairs for d in row)
    expected = torch.stack([torch.exp(-d / largest) for row in pairs for d in row]).mean().log()
    torch.testing.assert_close(dispersion(features), expected)
    (step,) = torch.autograd.grad(dispersion(features), features)
    together = (features - 0.01 * step).detach()
    assert torch.pdist(together).mean() > torch.pdist(features).mean()  # descending drives rows apart


@pytest.mark.parametrize("network", ["mlp", "unet1d"])
def test_dispersive_loss_is_added_once_for_each_hidden_block(network):
    """MeanFlow runs its network several times in a loss; only what gradients are recorded of counts."""
    torch.manual_seed(0)
    if network == "mlp":
        net, blocks = ResidualMLP(3, 8, 5, hidden_dim=16, n_blocks=3, time_dim=8, n_times=2), 2
    else:
        net, blocks = UNet1d(3, 8, 5, down_dims=[16, 32], time_dim=8, n_times=2), 1
    head = MeanFlowHead(net)
    batch = (torch.randn(7, 8, 3), torch.randn(7, 1, 5), torch.zeros(7, 8, dtype=torch.bool))
    plain = head.loss(*batch, BatchRng(0))
    with hidden_features(net, active=True) as found:
        head.loss(*batch, BatchRng(0))
    assert [f.shape[0] for f in found] == [7] * blocks
    assert found[0].shape[1] == (16 if network == "mlp" else 4 * 16)
    head.dispersive = 0.5
    torch.testing.assert_close(head.loss(*batch, BatchRng(0)), plain + 0.5 * sum(dispersion(f) for f in found))
    assert not net._forward_hooks
    assert all(not m._forward_hooks for m in net.modules())


def test_draws_do_not_depend_on_the_number_of_processes():
    whole = BatchRng(3)
    parts = [BatchRng(3, rank=r, world_size=4) for r in range(4)]
    for draw in (lambda g, n: g.randn(n, 2), lambda g, n: g.rand(n), lambda g, n: g.randint(9, n)):
        assert torch.equal(draw(whole, 8), torch.cat([draw(p, 2) for p in parts]))
    saved = whole.state_dict()
    expected = whole.randn(4)
    whole.load_state_dict(saved)
    assert torch.equal(whole.randn(4), expected)
