"""Methods that sample differently from a trained head: real-time chunking, warm starts, ensembles."""

import math

import numpy as np
import pytest
import torch

from data.errors import ConfigError
from policies.inference.compose import translate
from policies.inference.ensemble import ensemble
from policies.inference.evaluations import count_evaluations
from policies.inference.execution import EXECUTIONS, build_execution
from policies.inference.realtime import guidance_weight, guided, inpaint, rtc, soft_mask
from policies.inference.smoothness import jerk, jumps, smoothness
from policies.inference.walk import chunk_noise, prepare, shift, walk
from policies.inference.warm_start import last_times, rti
from tests.policies.conftest import make, make_batch
from tests.policies.gaussians import MEAN, gaussian_head, gaussian_policy

WALKED = ["diffusion-sample", "diffusion-epsilon", "flow", "edm"]  # their own samplers take the steps of ``walk``


# ---------------------------------------------------------------------- real-time chunking


def test_soft_mask_by_hand():
    """H = 8, d = 2, s = 3: c = (5 - i) / 4 for i = 2, 3, 4."""
    c = torch.tensor([3 / 4, 2 / 4, 1 / 4])
    expected = torch.cat([torch.ones(2), c * (c.exp() - 1) / (math.e - 1), torch.zeros(3)])
    torch.testing.assert_close(soft_mask(8, 2, 3), expected)
    assert soft_mask(8, 0, 3)[0] < 1
    torch.testing.assert_close(soft_mask(8, 5, 3), torch.tensor([1.0] * 5 + [0.0] * 3))


@pytest.mark.parametrize("t", [0.9, 0.5, 0.2])
def test_guidance_weight_is_that_of_the_paper(t):
    """(1 - s) / s * (s^2 + (1 - s)^2) / (1 - s)^2, at most beta, with s = 1 - t from noise to data."""
    s = 1 - t
    expected = (1 - s) / s * (s**2 + (1 - s) ** 2) / (1 - s) ** 2
    assert guidance_weight(1 - t, t, 100.0) == pytest.approx(expected)
    assert guidance_weight(1 - t, t, 1.5) == 1.5
    assert guidance_weight(0.0, 1.0, 5.0) == 5.0


@pytest.mark.parametrize("name", [*WALKED, "meanflow", "shortcut", "flowpolicy"])
def test_guidance_follows_the_gradient(state_store, obs, name):
    """J^T W (Y - A_hat) against finite differences of -|sqrt(W) (Y - A_hat(z))|^2 / 2, under no_grad."""
    policy = make(state_store, name).double().eval()
    obs = {k: v.double() for k, v in obs.items()}
    head, prepared, t = policy.head, prepare(policy, obs), 0.4
    generator = torch.Generator().manual_seed(0)
    z, y, direction = (torch.randn(3, 8, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    weights = soft_mask(8, 2, 3).double()[:, None]

    @torch.no_grad()
    def potential(z):
        return -0.5 * (weights * (y - head.clean(z, t, prepared, clip=False)).square()).sum((1, 2))

    with torch.no_grad():
        pulled = guided(head, z, t, prepared, y, weights, 5.0, line_search=False)
        pulled = pulled - head.clean(z, t, prepared, clip=False)
    alpha, sigma = head.path(t)
    gradient = pulled / (sigma * guidance_weight(alpha, sigma, 5.0))
    slope = (potential(z + 1e-5 * direction) - potential(z - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum((1, 2)), slope, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("kind", ["diffusion", "flow", "edm"])
def test_a_full_mask_reproduces_the_previous_chunk(state_store, obs, kind):
    """For A ~ N(0, I), pi-GDM's posterior is exact: guided estimates are Y where beta does not clip."""
    policy = gaussian_policy(state_store, kind, torch.zeros(8, 3), n_inference_steps=10)
    y = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(inpaint(policy, obs, y, torch.ones(8, 1), beta=1e6), y, atol=1e-4, rtol=0)
    clipped = inpaint(policy, obs, y, torch.ones(8, 1), beta=5.0)
    assert (clipped - y).square().mean().sqrt() < 0.25 * y.square().mean().sqrt()


def test_guidance_is_the_same_on_every_path():
    """A diffusion or EDM head of the same denoiser: the estimates of scaled z are equal, guided or not."""
    y, weights = torch.randn(3, 8, 3), torch.rand(8, 1)
    head = gaussian_head("diffusion", MEAN, 0.7, n_train_steps=1000)
    t = 0.5
    z = torch.randn(3, 8, 3)
    expected = guided(head, z, t, torch.zeros(3, 1, 1), y, weights, 5.0)
    for kind in ("flow", "edm"):
        other = gaussian_head(kind, MEAN, 0.7)
        moved, t_other = translate(z, head, t, other)
        torch.testing.assert_close(guided(other, moved, t_other, torch.zeros(3, 1, 1), y, weights, 5.0), expected)


@pytest.mark.parametrize("kind", ["diffusion", "flow", "edm"])
def test_a_pull_ends_where_the_estimate_agrees_best(kind):
    """Where J is larger than the paper takes it to be: A ~ N(0, 3^2), or actions of a chunk that go together."""
    head = gaussian_head(kind, torch.zeros(8, 3), 3.0)
    t = translate(torch.zeros(1, 8, 3), gaussian_head("flow", MEAN), 0.6, head)[1]
    z, y = torch.randn(5, 8, 3), torch.randn(5, 8, 3)
    start, weights = head.clean(z, t, torch.zeros(5, 1, 1), clip=False), soft_mask(8, 2, 3)[:, None]

    def off(size, **options):
        end = guided(head, z, t, torch.zeros(5, 1, 1), y, weights, 5.0, **options)
        return (weights * (y - start - size * (end - start)).square()).sum((1, 2))

    sizes = torch.linspace(0, 2, 201)
    best = torch.stack([off(size) for size in sizes]).argmin(0)
    assert torch.equal(sizes[best], torch.ones(5))
    assert (off(1.0, line_search=False) > off(0.0)).all()  # further away than without any guidance


@pytest.mark.parametrize("name", WALKED)
def test_an_empty_mask_is_the_plain_sampler(state_store, obs, name):
    policy = make(state_store, name).eval()
    noise = chunk_noise(policy, 3, torch.Generator().manual_seed(2))
    free = inpaint(policy, obs, torch.ones(3, 8, 3), torch.zeros(8, 1), noise=noise)
    with torch.no_grad():
        torch.testing.assert_close(free, policy.sample(obs, noise=noise))


@pytest.mark.parametrize(("kind", "options"), [("diffusion", {"sampler": "ddpm"}), ("diffusion", {}), ("flow", {})])
def test_rtc_continues_the_previous_chunk(state_store, obs, kind, options):
    policy = gaussian_policy(state_store, kind, MEAN, 0.5, **options)
    previous = 0.5 * torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(3))
    noise = chunk_noise(policy, 3, torch.Generator().manual_seed(4))
    with torch.no_grad():
        chunk = rtc(policy, obs, previous, delay=2, execution_horizon=4, noise=noise)
        free = inpaint(policy, obs, previous, torch.zeros(8, 1), noise=noise)
        torch.testing.assert_close(chunk[:, 4:], free[:, 4:])  # nothing holds the last s actions of a chunk
        again = rtc(policy, obs, previous, delay=2, execution_horizon=4, noise=noise, hold_past=False)
    assert not chunk.requires_grad

    def off(x):
        return (x - shift(previous, 4))[:, 1:3].square().mean()

    assert off(chunk) < 0.2 * off(free)
    assert not torch.equal(chunk[:, 0], again[:, 0])


# ---------------------------------------------------------------------- warm starts


def test_no_steps_give_the_shifted_chunk(state_store, obs):
    policy = make(state_store, "diffusion-sample").eval()
    chunk = torch.rand(3, 8, 3)
    for streaming in (False, True):
        same = rti(policy, obs, chunk, execution_horizon=3, times=[], streaming=streaming)
        assert torch.equal(same[:, :5], chunk[:, 3:])
        assert torch.equal(same[:, 5:], chunk[:, -1:].expand(3, 3, 3))


def test_last_times(state_store):
    head = make(state_store, "diffusion-sample").head  # 5 of 100 steps
    assert last_times(head, 2) == head.schedule()[-2:]
    assert last_times(head, 3, start=0.3) == pytest.approx([0.3, 0.2, 0.1])
    with pytest.raises(ValueError, match="n_steps=6"):
        last_times(head, 6)


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_warm_start_walks_the_last_steps(state_store, obs, kind):
    """On the path of a Gaussian every step is linear, so the result is known; renoised, all steps are the sampler."""
    policy = gaussian_policy(state_store, kind, MEAN, 0.3, n_inference_steps=10)
    head, chunk, noise = policy.head, torch.rand(3, 8, 3), torch.randn(3, 8, 3)
    (t,) = last_times(head, 1)
    alpha, sigma = head.path(t)
    expected = head.network.posterior(shift(chunk, 2), alpha, sigma)
    torch.testing.assert_close(rti(policy, obs, chunk, execution_horizon=2, times=[t]), expected)
    with torch.no_grad():
        whole = rti(policy, obs, chunk, execution_horizon=2, times=head.schedule(), renoise=True, noise=noise)
        tolerance = 1e-5 if kind == "flow" else 2e-2  # DDPM's last step is not quite pure noise
        torch.testing.assert_close(whole, policy.sample(obs, noise=noise), atol=tolerance, rtol=0)


def test_streaming_denoises_later_actions_further(state_store, obs):
    """The farther ahead an action is, the more it has moved from its guess towards the data."""
    policy = gaussian_policy(state_store, "flow", MEAN, 0.3, n_inference_steps=4)
    chunk, noise = MEAN + torch.ones(3, 8, 3), torch.zeros(3, 8, 3)
    z = rti(policy, obs, chunk, execution_horizon=0, times=[0.6, 0.45, 0.3, 0.15], streaming=True, noise=noise)
    off = (z - MEAN).mean((0, 2))
    assert (off[1:].diff() <= 1e-6).all()
    assert off[7] < 0.7 * off[1] < off[1] < 1


def test_gripper_clip(state_store, obs):
    """The guess's gripper counts +-1 / factor; what comes out is +-1, turned over where the network insists."""
    mean = MEAN.clone()
    mean[:, 2] = -0.8
    policy = gaussian_policy(state_store, "flow", mean, 0.3)
    chunk = torch.full((3, 8, 3), 0.9)
    how = {"execution_horizon": 1, "times": last_times(policy.head, 2)}
    kept = rti(policy, obs, chunk, **how)
    turned = rti(policy, obs, chunk, gripper_dims=[-1], **how)
    assert (kept[..., 2] > 0).all()
    assert torch.equal(turned[..., 2], -torch.ones(3, 8))
    torch.testing.assert_close(turned[..., :2], kept[..., :2])
    assert torch.equal(chunk, torch.full((3, 8, 3), 0.9))


# ---------------------------------------------------------------------- ensembles, smoothness


def test_ensemble_by_hand():
    old, new = torch.arange(4.0).view(1, 4, 1), torch.full((1, 4, 1), 10.0)
    w = math.exp(-0.5)
    both = [(2 + 10 * w) / (1 + w), (3 + 10 * w) / (1 + w)]
    mean = ensemble([old, new], [2, 0], decay=0.5)
    torch.testing.assert_close(mean, torch.tensor([*both, 10.0, 10.0]).view(1, 4, 1))
    assert torch.equal(ensemble([new], [0]), new)


def test_smoothness_by_hand():
    cubic = np.arange(10.0)[:, None] ** 3
    assert jerk(cubic) == pytest.approx(36.0)
    assert jerk(cubic**0) == 0
    steps = np.repeat([0.0, 0.0, 1.0, 1.0, 1.0, 3.0], 2)[:, None]  # changes at 4 and 10
    assert jumps(steps, 6, 4) == (pytest.approx(4.0), pytest.approx(1 / 10))
    assert smoothness([cubic[:3], cubic], 4, 0)["jerk"] == pytest.approx(36.0)
    assert smoothness([cubic[:3]], 4, 0) == {
        "jerk": None,
        "jump_at_switch": None,
        "jump_elsewhere": pytest.approx(25.0),
    }


# ---------------------------------------------------------------------- execution


def run_episode(policy, seed, decisions=3):
    """Actions, one decision after the other, (decisions, 1, Ta, Da)."""
    generator, memory, out = torch.Generator().manual_seed(seed), None, []
    for i in range(decisions):
        obs = {k: torch.full((1, 2, *field.shape), i / 10) for k, field in policy.spec.obs.items()}
        actions, memory = policy.act_from(obs, memory, generator)
        out.append(actions)
    return torch.stack(out)


def short(policy):
    """Ta = 3 of H = 8, To = 2: room for a delay of 3."""
    policy.n_action_steps = 3
    return policy


METHODS = [name for name in EXECUTIONS if name != "sync"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("delay", [0, 2, 3])
def test_late_chunks(state_store, name, delay):
    """The first chunk is waited for; later ones find ``delay`` actions decided; all of it is repeatable."""
    policy = short(make(state_store, "diffusion-sample", prefix=4 if name == "prefix" else 0).eval())
    late = build_execution(policy, {"name": name, "delay": delay})
    waited = run_episode(policy, 0)
    actions = run_episode(late, 0)
    assert actions.shape == waited.shape
    assert torch.equal(actions[0], waited[0])
    assert torch.equal(actions, run_episode(late, 0))
    assert not torch.equal(actions, run_episode(late, 1))
    generator = torch.Generator().manual_seed(0)
    obs = {k: v[:1] for k, v in make_batch(state_store, 1).obs.items()}
    _, memory = late.act_from(obs, None, generator)
    before = policy.unnormalise_action(memory.plan)[:, 1 + 3 : 1 + 3 + delay]
    after, _ = late.act_from({k: v + 0.3 for k, v in obs.items()}, memory, generator)
    assert torch.equal(after[:, :delay], before)


def test_asynchronous_without_a_delay_is_synchronous(state_store):
    for name in ("flow", "diffusion-ddpm"):
        policy = short(make(state_store, name).eval())
        late = build_execution(policy, {"name": "async", "delay": 0})
        assert torch.equal(run_episode(late, 5), run_episode(policy, 5))
    assert build_execution(policy, {"name": "sync", "delay": 0}) is policy


def test_ensemble_execution_averages_all_chunks_at_hand(state_store):
    policy = make(state_store, "flow").eval()
    policy.n_action_steps = 1
    late = build_execution(policy, {"name": "ensemble", "decay": 0.1})
    generator, memory, chunks = torch.Generator().manual_seed(0), None, []
    obs = {k: v[:1] for k, v in make_batch(state_store, 1).obs.items()}
    for i in range(9):
        actions, memory = late.act_from(obs, memory, generator)
        chunks.append(memory.chunks[-1][0])
        covering = [chunks[j][:, 1 + i - j] for j in range(i + 1) if 1 + i - j < 8]
        w = torch.exp(-0.1 * torch.arange(len(covering)))
        mean = (torch.cat(covering) * w[:, None]).sum(0) / w.sum()
        torch.testing.assert_close(actions[0], policy.unnormalise_action(mean[None, None])[0])
        assert len(memory.chunks) <= 7


@pytest.mark.parametrize(("name", "steps"), [("async", 5), ("rtc", 5), ("rti", 2), ("ensemble", 5)])
def test_evaluations_are_counted(state_store, name, steps):
    policy = short(make(state_store, "diffusion-sample").eval())
    late = build_execution(policy, {"name": name, "delay": 0, **({"n_steps": 2} if name == "rti" else {})})
    with count_evaluations(late) as count:
        run_episode(late, 0, decisions=4)
    assert count.n == 5 + 3 * steps


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "rct"}, "Did you mean"),
        ({"name": "async", "delay": 4}, "0..n_action_steps=3"),
        ({"name": "async", "beta": 3.0}, "Unknown option 'execution.beta'"),
        ({"name": "rtc", "beta": math.inf}, "beta=inf"),
        ({"name": "rti", "n_steps": 6}, "n_steps=6"),
        ({"name": "rti", "start": 1.5}, "start=1.5"),
        ({"name": "rti", "gripper_dims": [3]}, "-3..2"),
        ({"name": "sync", "delay": 1}, "leave out"),
        ({"name": "prefix", "delay": 1}, "trained with policy.prefix"),
    ],
)
def test_wrong_options_are_named(state_store, options, words):
    with pytest.raises(ConfigError, match=words):
        build_execution(short(make(state_store, "diffusion-sample")), options)


def test_a_delay_needs_the_horizon(state_store):
    policy = make(state_store, "flow")
    policy.n_action_steps = 6
    build_execution(policy, {"name": "async", "delay": 1})
    with pytest.raises(ConfigError, match="lower n_action_steps"):
        build_execution(policy, {"name": "async", "delay": 2})


def test_walk_takes_the_samplers_steps(state_store, obs):
    policy = make(state_store, "flow").eval()
    noise, prepared = chunk_noise(policy, 3), prepare(policy, obs)
    with torch.no_grad():
        chunk = walk(
            policy.head, noise, policy.head.schedule(), lambda z, t: policy.head.clean(z, t, prepared, clip=False)
        )
        torch.testing.assert_close(chunk, policy.sample(obs, noise=noise))
