"""Samplers against diffusers' own scheduler steps, and against distributions with known answers."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler

from policies.heads.diffusion import DiffusionHead, inference_timesteps
from policies.heads.edm import EDMHead
from policies.heads.flow import FlowHead
from policies.rng import BatchRng
from tests.policies.conftest import make, make_batch


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


NAMES = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}  # ours, diffusers'


@pytest.mark.parametrize("prediction", NAMES)
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
        prediction_type=NAMES[prediction],
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


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50])
def test_dpm_solver_is_that_of_diffusers(prediction, steps):
    head = DiffusionHead(
        Field(), prediction=prediction, n_inference_steps=steps, sampler="dpmpp", clip_sample=False, spacing="trailing"
    )
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=NAMES[prediction],
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    x = noise = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for k in scheduler.timesteps:
            out = head.network(x, torch.full((2,), float(k) / 100), None)
            x = scheduler.step(out, k, x).prev_sample
        torch.testing.assert_close(head.sample(COND, noise), x, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("prediction", NAMES)
def test_the_target_is_what_the_sampler_takes_the_output_for(prediction):
    """A network that gives the training target leads the sampler to the clean chunk."""
    head = DiffusionHead(Field(), prediction=prediction, clip_sample=False)
    action = torch.randn(50, 8, 3)
    z, t, target = head.objective(action, BatchRng(0), 50)
    for row in range(50):
        signal, sigma = head.path(float(t[row]))
        clean, eps = head._clean_and_noise(z[row], target[row], signal, sigma)
        torch.testing.assert_close(clean, action[row], atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(signal * action[row] + sigma * eps, z[row], atol=1e-3, rtol=1e-3)


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


def test_draws_do_not_depend_on_the_number_of_processes():
    whole = BatchRng(3)
    parts = [BatchRng(3, rank=r, world_size=4) for r in range(4)]
    for draw in (lambda g, n: g.randn(n, 2), lambda g, n: g.rand(n), lambda g, n: g.randint(9, n)):
        assert torch.equal(draw(whole, 8), torch.cat([draw(p, 2) for p in parts]))
    saved = whole.state_dict()
    expected = whole.randn(4)
    whole.load_state_dict(saved)
    assert torch.equal(whole.randn(4), expected)


@pytest.mark.parametrize("name", ["diffusion-sample", "flow", "edm", "flowpolicy"])
def test_samplers_walk_along_the_path(state_store, name):
    """From the clean estimate at each of the schedule's times to the next, with the noise that explains z."""
    policy = make(state_store, name, n_inference_steps=4).eval()
    head = policy.head
    obs, noise = make_batch(state_store, 3).obs, policy.draw_noise(3)
    with torch.no_grad():
        prepared = head.network.prepare(policy.encode(obs))
        times = head.schedule()
        z = head.path(times[0])[1] * noise if name == "edm" else noise
        for i, t in enumerate(times):
            alpha, sigma = head.path(t)
            clean = head.clean(z, t, prepared)
            alpha_next, sigma_next = head.path(times[i + 1]) if i + 1 < len(times) else (1.0, 0.0)
            z = alpha_next * clean + sigma_next * (z - alpha * clean) / sigma
            assert head.time_at(sigma / alpha if alpha else math.inf) == pytest.approx(t)
        torch.testing.assert_close(z, policy.sample(obs, noise=noise))
