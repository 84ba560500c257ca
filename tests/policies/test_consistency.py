"""Consistency heads and distillation: boundary conditions, Gaussians in closed form, and a mixture in one jump."""

import copy
import math
from itertools import pairwise

import pytest
import torch

from algos.distill import Distillation, Teaching, copy_fitting
from data.errors import ConfigError
from policies.build import denoiser_config
from policies.heads.consistency import Asked, ConsistencyHead
from policies.heads.ctm import TrajectoryHead
from policies.heads.diffusion import DiffusionHead
from policies.heads.edm import EDMHead
from policies.heads.flow import FlowHead
from policies.networks.mlp import ResidualMLP
from policies.rng import BatchRng
from tests.policies import mixture
from tests.policies.conftest import POLICIES, make, make_batch
from tests.policies.mixture import MODES, SHARE
from tests.policies.test_heads import COND

FORMS = {"lcm": ConsistencyHead, "ctm": TrajectoryHead}
DENOISERS = {
    "flow": lambda: FlowHead(Asked()),
    "diffusion": lambda: DiffusionHead(Asked(), clip_sample=False),
    "edm": lambda: EDMHead(Asked()),
}


class AnyField(torch.nn.Module):
    def prepare(self, cond):
        return cond

    def forward(self, x, t, prepared):
        return torch.sin(3 * x.flip(-1)) + t.view(len(t), -1).sum(1)[:, None, None]


@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("form", FORMS)
def test_boundary_conditions(form, denoiser):
    """At the data f is the identity, whatever the network says; and so is every jump that goes nowhere."""
    head = FORMS[form](AnyField(), denoiser=DENOISERS[denoiser](), n_levels=20, skip=1)
    z, ask = torch.randn(21, 8, 3), head.ask(torch.zeros(21, 1))
    levels = torch.arange(21)
    ends = head.to_data(z, head.level(levels), ask)
    torch.testing.assert_close(ends[20], z[20])
    assert all((ends[i] - z[i]).abs().max() > 0.1 for i in range(12))
    if form == "ctm":
        torch.testing.assert_close(head.jump(z, head.level(levels), head.level(levels), ask), z, atol=1e-4, rtol=1e-4)


class Gaussian:
    """Data N(mean, std^2): z_t = alpha mean + sqrt(alpha^2 std^2 + sigma^2) xi, xi the same all along a path."""

    def __init__(self, mean=0.4, std=0.3):
        self.mean, self.std = mean, std

    def move(self, z, now, then):
        (_, alpha, sigma), (_, alpha_then, sigma_then) = now, then

        def spread(a, s):
            return torch.as_tensor(a * a * self.std**2 + s * s).sqrt()

        xi = (z - alpha * self.mean) / spread(alpha, sigma)
        return alpha_then * self.mean + spread(alpha_then, sigma_then) * xi

    def clean(self, z, alpha, sigma):
        gain = alpha * self.std**2 / (alpha * alpha * self.std**2 + sigma * sigma)
        return self.mean + gain * (z - alpha * self.mean)


class ExactJump(torch.nn.Module):
    """What the network has to say on straight paths for every jump to be exact."""

    def __init__(self, gaussian, sigma_data=None):
        super().__init__()
        self.gaussian, self.d = gaussian, sigma_data

    def prepare(self, cond):
        return cond

    def forward(self, z, times, prepared):
        t = times.reshape(len(z), -1)[:, 0, None, None]
        s = times[:, 1, None, None] if times.ndim == 2 else torch.zeros_like(t)
        moved = self.gaussian.move(z, (t, 1 - t, t), (s, 1 - s, s))
        if self.d is None:  # z_s = alpha_s g + sigma_s / sigma (z - alpha g)
            clean = (moved - s / t * z) / (1 - s - s / t * (1 - t)).clamp(min=1e-6)
        else:  # f = c_skip x + (1 - c_skip) D
            skip = self.d**2 * (1 - t) / (t * t + self.d**2 * (1 - t) ** 2)
            clean = (moved - skip * z) / (1 - skip * (1 - t)).clamp(min=1e-6)
        return (z - clean) / t.clamp(min=1e-6)


class ExactLesson:
    def __init__(self, gaussian):
        self.step = gaussian.move

    def begin(self, cond, repeats):
        pass

    def goal(self):
        return None


@pytest.mark.parametrize("form", FORMS)
def test_loss_vanishes_for_the_exact_function_of_a_gaussian(form):
    gaussian = Gaussian()
    head = FORMS[form](
        ExactJump(gaussian, 0.1 if form == "lcm" else None),
        denoiser=FlowHead(Asked()), n_levels=20, skip=3, huber_delta=0.0, clip_sample=False,
    )  # fmt: skip
    head.lesson = ExactLesson(gaussian)
    action = 0.4 + 0.3 * torch.randn(500, 8, 3)
    batch = (action, torch.zeros(500, 1, 1), torch.zeros(500, 8, dtype=torch.bool))
    assert head.loss(*batch, BatchRng(0)) < 1e-6
    noise = torch.randn(2, 8, 3)
    torch.testing.assert_close(head.sample(COND, noise), 0.4 + 0.3 * noise, atol=1e-4, rtol=0)
    head.network = ExactJump(Gaussian(0.4, 0.2), head.network.d)
    assert head.loss(*batch, BatchRng(0)) > 1e-4
    head.lesson = None  # the data's own noise does not follow the path of one point
    head.network = ExactJump(gaussian, head.network.d)
    assert head.loss(*batch, BatchRng(0)) > 1e-4


class Velocity(torch.nn.Module):
    """(z - E[A | z]) / t on straight paths, for a function (z, t) -> E[A | z]."""

    def __init__(self, clean):
        super().__init__()
        self.clean = clean

    def prepare(self, cond):
        return cond

    def forward(self, z, t, prepared):
        t = t.view(-1, 1, 1)
        return (z - self.clean(z, 1 - t, t)) / t.clamp(min=1e-6)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_solvers_have_their_order(solver, order):
    """Twice the steps, an error half as large, or a quarter."""
    gaussian = Gaussian(0.4, 0.5)
    teaching = Teaching(FlowHead(Velocity(gaussian.clean)), solver)
    z, errors = torch.randn(50, 2, 2), []
    teaching.begin(torch.zeros(50, 1, 1), 1)
    for n in (8, 16, 32):
        levels = [torch.full((50,), 0.9 - 0.6 * i / n) for i in range(n + 1)]
        path = [(t, 1 - t[:, None, None], t[:, None, None]) for t in levels]
        x = z
        for now, then in pairwise(path):
            x = teaching.step(x, now, then)
        errors.append(float((x - gaussian.move(z, path[0], path[-1])).abs().mean()))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize("name", ["flow", "diffusion-sample", "edm"])
def test_students_levels_are_where_the_teacher_stops(state_store, name):
    """Steps over all levels, each row at its own time, make the teacher's sample."""
    teacher = make(state_store, name, n_inference_steps=4).eval()
    teacher.head.clip_sample = False
    denoiser = denoiser_config({**POLICIES[name], "n_train_steps": 100} if "diff" in name else POLICIES[name])
    student = make(state_store, "consistency", denoiser=denoiser, n_levels=4, skip=1)
    obs, noise = make_batch(state_store, 3).obs, teacher.draw_noise(3)
    teaching = Teaching(teacher.head, "ddim")
    with torch.no_grad():
        teaching.begin(teacher.encode(obs), 1)
        z = student.head.level(0)[2] * noise
        for i in range(4):
            z = teaching.step(z, *(student.head.level(torch.full((3,), j)) for j in (i, i + 1)))
        torch.testing.assert_close(z, teacher.sample(obs, noise=noise), atol=1e-3, rtol=1e-3)


WIDTH = 0.05


def mixture_clean(z, alpha, sigma):
    """E[A | z] of two narrow Gaussians, (B, 1, 2)."""
    variance = alpha * alpha * WIDTH**2 + sigma * sigma
    distance = (z - alpha * MODES).square().sum(-1)  # (B, 2)
    weight = (torch.tensor([1 - SHARE, SHARE]).log() - distance / (2 * variance[..., 0])).softmax(-1)
    ends = MODES + alpha * WIDTH**2 / variance * (z - alpha * MODES)
    return (weight[..., None] * ends).sum(1, keepdim=True)


@pytest.mark.parametrize("form", ["lcm", pytest.param("ctm", marks=pytest.mark.slow)])
def test_distils_two_modes_into_one_evaluation(form):
    """From a teacher that knows the mixture exactly; both modes keep their share."""
    torch.manual_seed(0)
    n_times = FORMS[form].n_times
    net = ResidualMLP(2, 1, (1, 1), hidden_dim=64, n_blocks=2, time_dim=16, time_scale=10.0, n_times=n_times)
    head = FORMS[form](net, denoiser=FlowHead(Asked()), n_levels=8, skip=2)
    head.lesson = Teaching(FlowHead(Velocity(mixture_clean)), "heun")
    near, share = mixture.fit(head, width=WIDTH, updates=400, lr=5e-3, batch_size=128)
    assert near > 0.8, near
    assert abs(share - SHARE) < 0.08, share


def test_huber_distance_has_its_gradient():
    head = ConsistencyHead(AnyField(), denoiser=FlowHead(Asked()), huber_delta=0.3)
    x = torch.randn(5, 8, 3, requires_grad=True)
    (got,) = torch.autograd.grad(head.distance(x).mean(), x)
    exact = ((x.square().mean((1, 2)) + 0.3**2).sqrt() - 0.3).mean()
    torch.testing.assert_close(got, torch.autograd.grad(exact, x)[0])


def test_chain_jumps_from_consistency_policys_bins():
    head = TrajectoryHead(AnyField(), denoiser=EDMHead(Asked(), sigma_max=80.0), n_inference_steps=3)
    assert head.chain() == [0, 27, 54]
    assert head.n_noise == 3
    assert head.schedule() == [head.denoiser.time(head.denoiser.sigmas(80)[i]) for i in (0, 27, 54)]


def test_warm_start_begins_as_the_teacher():
    """A network that sees one more time says what the teacher's says."""
    one, two = (ResidualMLP(3, 8, (1, 5), hidden_dim=16, n_blocks=1, time_dim=8, n_times=n) for n in (1, 2))
    copy_fitting(one, two)
    x, t, cond = torch.randn(4, 8, 3), torch.rand(4), torch.randn(4, 1, 5)
    both = two(x, torch.stack([t, torch.rand(4)], 1), two.prepare(cond))
    torch.testing.assert_close(both, one(x, t, one.prepare(cond)))
    other = ResidualMLP(3, 8, (1, 5), hidden_dim=32, n_blocks=1, time_dim=8)
    before = copy.deepcopy(other.state_dict())
    copy_fitting(one, other)  # of another size: nothing is taken
    assert all(torch.equal(w, before[name]) for name, w in other.state_dict().items())


@pytest.mark.parametrize("encoder", ["frozen", "learned"])
def test_encoder_learns_only_where_it_is_told(state_store, encoder):
    teacher = make(state_store, "flow", noise_per_obs=2)
    student = make(state_store, "consistency", seed=1, noise_per_obs=2)
    algo = Distillation(student, teacher=teacher, train_steps=10, lr=1e-2, encoder=encoder, target="ema")
    before = copy.deepcopy(teacher.state_dict())
    for _ in range(2):
        assert math.isfinite(algo.update(make_batch(state_store, 8))["loss"])
    assert all(torch.equal(w, before[name]) for name, w in teacher.state_dict().items())
    same = [torch.equal(a, b) for a, b in zip(student.encoder.parameters(), teacher.encoder.parameters(), strict=True)]
    assert all(same) if encoder == "frozen" else not any(same)
    assert algo.policy.head.lesson is None  # what is saved knows nothing of a teacher


def test_refusals(state_store):
    flow, student = make(state_store, "flow"), make(state_store, "consistency")
    with pytest.raises(ConfigError, match="policy=consistency or policy=ctm"):
        Distillation(flow, teacher=flow, train_steps=1)
    with pytest.raises(ConfigError, match="jumps already"):
        Distillation(student, teacher=student, train_steps=1)
    with pytest.raises(ConfigError, match="another path"):
        Distillation(student, teacher=make(state_store, "edm"), train_steps=1)
