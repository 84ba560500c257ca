"""DSRL: the base exactly at the start, a density that integrates, a distilled critic that is the one it came from."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from algos.dsrl import DSRL
from algos.gate import check_gate
from algos.replay import Transition
from algos.steered import SteeredPolicy
from data.errors import ConfigError, TrainingError
from policies.checkpoint import load_policy, save_policy, wrapped_config
from tests.algos.conftest import Rollout, base_config, demos, outcomes, returns

SMALL = {
    "hidden": [16, 16], "critic_hidden": [16, 16], "n_critics": 3, "batch_size": 16, "learning_starts": 8,
    "warmup_steps": 30, "n_candidates": 4, "utd_ratio": 0.5,
}  # fmt: skip
NA = SMALL | {"variant": "na", "steer": "chunk"}
every_head = pytest.mark.parametrize("head", ["flow", "ddim"])


@every_head
def test_inactive_steering_is_the_base(make_base, head):
    base = make_base(head)
    check_gate(outcomes(base), outcomes(SteeredPolicy(base)), exact=True)


def test_gate_finds_repeated_noise(make_base):
    """Noise repeated over the chunk is not what the base was trained on: public code starts from it unnoticed."""
    base = make_base()

    class Repeated(SteeredPolicy):
        def sample(self, obs, *, noise=None):
            assert noise is not None
            return self.base.sample(obs, noise=noise[:, :1].expand_as(noise))

    with pytest.raises(TrainingError, match="does not act as its base"):
        check_gate(outcomes(base), outcomes(Repeated(base)), exact=True)


def test_bases_that_are_no_function_of_one_noise_are_refused(make_base):
    with pytest.raises(ConfigError, match="ddim"):
        SteeredPolicy(make_base("ddpm"))


@every_head
@pytest.mark.parametrize("steer", ["chunk", "vector", "offset"])
def test_save_and_load_act_alike(make_base, head, steer, tmp_path):
    base = make_base(head)
    policy = SteeredPolicy(base, steer=steer, hidden=[16], bound=1.2).eval()
    policy.active.fill_(True)
    save_policy(tmp_path / "c", policy, wrapped_config(policy, base_config(head)))
    loaded = load_policy(tmp_path / "c")
    assert isinstance(loaded, SteeredPolicy)
    obs = {"state": torch.randn(5, 2, 4)}
    drawn = torch.randn(5, 6, 2)
    with torch.no_grad():
        w = policy.steer(obs)
        noise = policy.noise(w, drawn)
    assert w.abs().max() <= 1.2
    if steer == "vector":
        assert (noise == noise[:, :1]).all()
    if steer == "offset":
        temperature = (w[:, -1] / 1.2 + 1) / 2
        assert (temperature > 0).all()
        expected = drawn * temperature[:, None, None] + w[:, None, :2]
        torch.testing.assert_close(noise, expected)
    assert torch.equal(policy.act(obs, noise=drawn), base.act(obs, noise=noise))
    assert torch.equal(policy.act(obs, noise=drawn), loaded.act(obs, noise=drawn))
    assert np.array_equal(returns(outcomes(policy)), returns(outcomes(loaded)))


def test_offset_ranges_from_the_base_itself_to_one_vector(make_base):
    policy = SteeredPolicy(make_base(), steer="offset", hidden=[8], bound=2.0)
    drawn = torch.randn(4, 6, 2)
    assert torch.equal(policy.noise(policy.unsteered(torch.randn(4, 3)), drawn), drawn)
    cold = torch.tensor([[0.5, -1.0, -2.0]])
    assert torch.equal(policy.noise(cold, drawn[:1]), torch.tensor([0.5, -1.0]).expand(1, 6, 2))
    features = torch.randn(100, policy.features.out_dim())
    with torch.no_grad():
        w, _ = policy.draw(features, torch.zeros(100, 3))
    assert (w[:, :2].abs() < 0.5).all()  # untrained it is nearly the base
    assert (w[:, 2] > 1.5).all()


def test_density_of_the_noise(make_base):
    """exp(log_prob) is the density of w / b: the mean of its inverse is the volume of the support."""
    policy = SteeredPolicy(make_base(), steer="vector", hidden=[8], bound=2.0)
    features = torch.randn(1, policy.features.out_dim()).expand(200_000, -1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        w, log_prob = policy.draw(features, torch.randn(len(features), 2, generator=generator))
    assert w.abs().max() <= 2.0
    inside = (w.abs() < 1.9).all(1)
    volume = torch.where(inside, (-log_prob).exp(), 0.0).mean()
    assert float(volume) == pytest.approx((2 * 0.95) ** 2, rel=0.1)


def test_entropy_is_driven_to_its_target(make_base):
    learner = DSRL(make_base(), 1, **SMALL | {"alpha_lr": 0.02, "actor_lr": 3e-3}, alpha=0.5, target_entropy=0.0)
    batch = Transition(
        obs={"features": torch.zeros(64, 1, learner.policy.features.out_dim())}, action=torch.zeros(64, 1),
        reward=torch.zeros(64), discount=torch.zeros(64), done=torch.zeros(64) > 0, next_obs={}, extras={},
    )  # fmt: skip
    entropies = [float(learner.update_actor(batch)["entropy"]) for _ in range(800)]
    assert np.mean(entropies[-100:]) == pytest.approx(0.0, abs=0.3)


def test_rates_fall_to_nothing_in_the_last_part(make_base):
    learner = DSRL(make_base(), 1, **SMALL | {"actor_lr": 1e-3, "critic_lr": 2e-3}, lr_decay=0.5, env_steps=1000)
    for step, share in ((500, 1.0), (750, 0.5), (1000, 0.0)):
        learner.core.env_steps = step
        learner.update()
        rates = [o.param_groups[0]["lr"] for o in (learner.actor.optimiser, learner.critic_optimiser)]
        assert rates == pytest.approx([share * 1e-3, share * 2e-3])


def test_td_target_by_hand(make_base):
    learner = DSRL(make_base(), 1, **NA, n_target_critics=3, value_low=None, value_high=None)
    n, f = 5, learner.policy.features.out_dim()
    obs = {"state": torch.randn(n, 2, 4)}
    seen = {k: v[:, None] for k, v in learner.acting.see(obs).items()}
    assert seen["features"].shape == (n, 1, f)
    batch = Transition(
        obs={}, action=torch.zeros(n, 8), reward=torch.rand(n), discount=torch.rand(n), done=torch.zeros(n) > 0,
        next_obs=seen, extras={},
    )  # fmt: skip
    learner.core.env_steps = 1000  # past the warm-up
    eps = torch.randn(n, 12, generator=_copy(learner.generator))
    got = learner.td_target(batch)
    with torch.no_grad():
        w, _ = learner.policy.draw(seen["features"][:, 0], eps)
        actions = learner.base.act(obs, noise=learner.policy.noise(w, torch.zeros(n, 6, 2))).flatten(1)
        q = learner.target(torch.cat([seen["features"][:, 0], actions], 1))[..., 0].min(0).values
    torch.testing.assert_close(got, batch.reward + batch.discount * q)


@pytest.mark.parametrize("steer", ["vector", "offset"])
def test_td_target_in_noise_space_by_hand(make_base, steer):
    """The better of the steered noise and the base's own, each by its minimum over the critics."""
    learner = DSRL(make_base(), 1, **SMALL, steer=steer, n_target_critics=3, value_low=None, value_high=None)
    n, f, d = 40, learner.policy.features.out_dim(), learner.policy.steer_dim
    seen = {"features": torch.randn(n, 1, f), "tokens": torch.zeros(n, 1, 1)}
    batch = Transition(
        obs={}, action=torch.zeros(n, d), reward=torch.rand(n), discount=torch.rand(n), done=torch.zeros(n) > 0,
        next_obs=seen, extras={},
    )  # fmt: skip
    learner.core.env_steps = 1000
    eps = torch.randn(n, d, generator=_copy(learner.generator))
    got = learner.td_target(batch)
    own = eps if steer == "vector" else torch.tensor([0.0, 0.0, 2.5]).expand(n, 3)
    with torch.no_grad():
        steered, _ = learner.policy.draw(seen["features"][:, 0], eps)
        q = [learner.target(torch.cat([seen["features"][:, 0], w], 1))[..., 0].min(0).values for w in (steered, own)]
    assert (q[0] > q[1]).any()
    assert (q[0] < q[1]).any()
    torch.testing.assert_close(got, batch.reward + batch.discount * torch.maximum(*q))


@pytest.mark.parametrize("steer", ["vector", "offset"])
def test_demonstrations_become_the_noise_that_leads_to_them(make_base, steer):
    learner = DSRL(make_base(), 1, **SMALL, steer=steer)
    tokens = learner.base.encode({"state": torch.randn(20, 2, 4)})
    w = torch.rand(20, learner.policy.steer_dim) * 4 - 2
    if steer == "offset":
        w[:, -1] = -2.5
    with torch.no_grad():
        demonstrated = learner.acting.chunk(tokens, w)[1].view(20, 4, 2)
        found = learner.acting.chunk(tokens, learner._nearest_noise(tokens, demonstrated))[1].view(20, 4, 2)
        other = learner.acting.chunk(tokens, w[torch.randperm(20)])[1].view(20, 4, 2)
    error = (found - demonstrated).mean(1).norm(dim=1).mean()
    assert error < 0.3 * (other - demonstrated).mean(1).norm(dim=1).mean()


def _copy(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(generator.get_state())


def test_distilled_critic_is_the_critic_of_the_chunk(make_base, store):
    """Q_W(s, w) ends up as Q_A(s, pi_dp(s, w)) for noise it has not seen."""
    learner = DSRL(make_base(), 1, **NA | {"critic_hidden": [64, 64], "critic_lr": 1e-3, "n_candidates": 16})
    assert learner.critic is not None
    learner.critic_optimiser.param_groups[0]["lr"] = 2e-3
    Rollout(learner, 1).run(60)
    for p in learner.critic.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        p.requires_grad_(False)
    for _ in range(700):
        learner.distill(learner.core.replay.sample(64, generator=learner.generator))
    batch = learner.core.replay.sample(256, generator=learner.generator)
    features, tokens = batch.obs["features"][:, 0], batch.obs["tokens"][:, 0]
    w = learner.acting.gaussian(256)
    with torch.no_grad():
        truth = learner.critic(torch.cat([features, learner.acting.chunk(tokens, w)[1]], 1))[..., 0].mean(0)
        got = learner.noise_critic(torch.cat([features, w], 1))[..., 0].mean(0)
    error = (got - truth).square().mean() / truth.var()
    assert float(error) < 0.3, float(error)


@pytest.mark.parametrize(
    ("variant", "steer"),
    [
        ("na", "offset"),
        ("sac", "offset"),
        pytest.param("na", "chunk", marks=pytest.mark.slow),
        pytest.param("sac", "vector", marks=pytest.mark.slow),
    ],
)
def test_resumes_bit_exactly(make_base, store, variant, steer):
    def learner():
        torch.manual_seed(3)
        new = DSRL(make_base(), 2, **SMALL, variant=variant, steer=steer, base_fraction=0.3)
        for demo in demos(store, new):
            new.add_demo(demo)
        return new

    whole = Rollout(learner(), 2).run(30)
    half = Rollout(learner(), 2).run(12)
    resumed = Rollout(learner(), 2).load(copy.deepcopy(half.state())).run(18)
    assert all(math.isfinite(float(v)) for v in whole.metrics.values())
    assert {k: float(v) for k, v in whole.metrics.items()} == {k: float(v) for k, v in resumed.metrics.items()}
    for (a, _), (b, _) in zip(whole.steps[12:], resumed.steps, strict=True):
        assert torch.equal(a, b)
