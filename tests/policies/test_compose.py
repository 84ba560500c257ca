"""Two policies as one, against Gaussians with known answers."""

import dataclasses

import pytest
import torch

from data.errors import ContractError
from policies.inference.compose import ancestral, check_compatible, compose, noise_shape, translate
from policies.inference.composed import Composed
from policies.inference.walk import chunk_noise
from tests.policies.conftest import make, make_batch, make_store
from tests.policies.gaussians import MEAN, gaussian_head, gaussian_policy

KINDS = [("flow", "flow"), ("flow", "diffusion"), ("diffusion", "edm"), ("edm", "flow")]


@pytest.mark.parametrize("kinds", KINDS)
def test_convex_composition_of_gaussians(state_store, obs, kinds):
    """Scores of N(m_i, s^2), noised, add up to that of N(w m_1 + (1 - w) m_2, s^2), whatever the heads."""
    many = {"n_inference_steps": 40}
    (a, b), w, std = kinds, 0.3, 0.4
    first, second = gaussian_policy(state_store, a, MEAN, std, **many), gaussian_policy(state_store, b, -MEAN, std)
    exact = gaussian_policy(state_store, a, w * MEAN - (1 - w) * MEAN, std, **many)
    noise = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both, one = compose(first, second, obs, noise=noise, weight=w), exact.sample(obs, noise=noise)
    torch.testing.assert_close(both, one, atol=1e-5 if a == b else 2e-2, rtol=0)


def test_convex_composition_of_different_widths():
    """At every noise level the score is that of the normalised product of powers p_1^w p_2^(1 - w)."""
    w, stds, means = 0.3, (0.2, 0.9), (0.5, -0.4)
    head, other = (
        gaussian_head("flow", MEAN * 0 + means[0], stds[0]),
        gaussian_head("edm", MEAN * 0 + means[1], stds[1]),
    )
    z = torch.randn(3, 8, 3)
    for t in (0.3, 0.6):
        alpha, sigma = head.path(t)
        clean = torch.lerp(
            other.clean(*translate(z, head, t, other), torch.zeros(3, 1, 1)), head.clean(z, t, torch.zeros(3, 1, 1)), w
        )
        score = (alpha * clean - z) / sigma**2
        parts = [wi / (alpha**2 * s**2 + sigma**2) for wi, s in zip((w, 1 - w), stds, strict=True)]
        mean = sum(p * alpha * m for p, m in zip(parts, means, strict=True)) / sum(parts)
        torch.testing.assert_close(score, (mean - z) * sum(parts), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kinds", [("flow", "diffusion"), ("diffusion", "edm")])
def test_superposition_of_gaussians(state_store, kinds):
    """OR draws from the mixture with the weights asked for, AND only where both are equally dense."""
    n, mean, std = 1500, torch.full((8, 3), 0.25), 0.15
    steps = {"n_inference_steps": 50}
    first = gaussian_policy(state_store, kinds[0], mean, std, **steps)
    second = gaussian_policy(state_store, kinds[1], -mean, std)
    obs = {k: v[:1].expand(n, *v.shape[1:]) for k, v in make_batch(state_store, 1).obs.items()}
    noise = torch.randn(n, *noise_shape(first, "or"), generator=torch.Generator().manual_seed(0))
    either = compose(first, second, obs, noise=noise, mode="or", weight=0.7)
    side = either.mean((1, 2)) > 0
    assert float(side.float().mean()) == pytest.approx(0.7, abs=0.05)
    for sign, of in ((1, side), (-1, ~side)):
        torch.testing.assert_close(either[of].mean(0), sign * mean, atol=0.05, rtol=0)
        assert float(either[of].std(0).mean()) == pytest.approx(std, rel=0.2)
    both = compose(first, second, obs, noise=noise, mode="and")
    assert both.mean((1, 2)).abs().max() < 2e-3  # equally far from both means
    across = both - both.mean((1, 2), keepdim=True)
    assert float(across.std()) == pytest.approx(std, rel=0.2)


def test_ancestral_steps_are_ddpm():
    head = gaussian_head("diffusion", MEAN, sampler="ddpm", n_inference_steps=20)
    times, z, clean = head.schedule(), torch.randn(2, 8, 3), torch.rand(2, 8, 3)
    steps = [round(t * 100) for t in times]
    for i in (0, 7):
        mean, std = ancestral(head, z, clean, times[i], times[i + 1])
        *_, of_clean, of_z, expected = head._weights(steps, i, 0.0, 0.0)
        torch.testing.assert_close(mean, of_clean * clean + of_z * z)
        assert std == pytest.approx(expected)


def test_incompatible_policies_are_refused(state_store, obs):
    a, b = make(state_store, "flow"), make(state_store, "edm")
    check_compatible(a, b)
    with pytest.raises(ValueError, match="weight=2"):
        compose(a, b, obs, noise=chunk_noise(a, 3), weight=2.0)
    b.normaliser.statistic("action", "scale").mul_(2)
    with pytest.raises(ContractError, match="normalisation of actions"):
        check_compatible(a, b)
    b.horizon = 16
    with pytest.raises(ContractError, match="same horizon"):
        check_compatible(a, b)


def test_composed_with_itself_is_itself_and_sees_what_both_see(tmp_path):
    a = make(make_store(tmp_path / "a.zarr", ("state",)), "flow").eval()
    noise = a.draw_noise(3)
    store = make_store(tmp_path / "b.zarr", ("pointcloud", "state"))
    obs = make_batch(store, 3).obs
    torch.testing.assert_close(Composed(a, a).act(obs, noise=noise), a.act(obs, noise=noise))
    b = make(store, "diffusion-sample", clip_sample=False).eval()
    b.normaliser.load_state_dict({**b.normaliser.state_dict(), **a.normaliser.state_dict()})
    both = Composed(a, b, weight=1.0)
    assert set(both.spec.obs) == {"state", "pointcloud"}
    torch.testing.assert_close(both.act(obs, noise=noise), a.act(obs, noise=noise))
    assert not torch.allclose(Composed(a, b, weight=0.3).act(obs, noise=noise), a.act(obs, noise=noise))
    with pytest.raises(ContractError, match="needs observation 'pointcloud'"):
        both.act({"state": obs["state"]}, noise=noise)
    with pytest.raises(ContractError, match="not trained"):
        both.loss(make_batch(store, 3))


def test_composed_policies_do_the_same_task(state_store):
    a, b = make(state_store).eval(), make(state_store).eval()
    b.spec = dataclasses.replace(b.spec, env_args={"suite": "toy", "speed": 2})
    with pytest.raises(ContractError, match=r"differ in speed \(None, 2\), suite \(None, toy\)"):
        Composed(a, b)
