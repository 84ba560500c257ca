"""SAC's parts against torch.distributions, hand-made targets, and problems whose solution is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from algos.replay import Transition
from algos.sac import SAC, GaussianPolicy
from algos.soft_actor import LOG_STD, raw_std, squashed_gaussian
from data.errors import ContractError
from data.normaliser import Normaliser
from data.spec import FieldSpec, TaskSpec
from policies.build import normaliser_modes
from policies.checkpoint import load_policy, save_policy, wrapped_config
from tests.algos.conftest import Rollout, demos

SMALL = {"critic_hidden": [16, 16], "batch_size": 16, "learning_starts": 10}


@pytest.fixture
def make_policy(store):
    def make(**options) -> GaussianPolicy:
        torch.manual_seed(0)
        normaliser = Normaliser.fit(store, normaliser_modes(store.task, action="identity"))
        return GaussianPolicy(store.task, normaliser, n_obs_steps=2, **{"hidden": [16, 16], **options})

    return make


def test_density_against_torch_distributions():
    out, eps = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    x, log_prob = squashed_gaussian(out, eps)
    mean, raw = out.chunk(2, 1)
    std = (LOG_STD[0] + (LOG_STD[1] - LOG_STD[0]) * torch.sigmoid(raw)).exp()
    truth = TransformedDistribution(Normal(mean, std), [TanhTransform(cache_size=1)])
    inside = (x.abs() < 1 - 1e-9).all(1)
    assert inside.sum() > 30
    torch.testing.assert_close(log_prob[inside], truth.log_prob(x)[inside].sum(1), atol=1e-5, rtol=1e-5)
    far, extreme = squashed_gaussian(torch.tensor([[30.0, 0.0]]), torch.tensor([[1.0]]))
    assert math.isfinite(float(extreme))
    assert float(far) == 1.0


def test_unit_std():
    x, _ = squashed_gaussian(torch.tensor([[0.0, raw_std(1.0)]]).expand(20000, -1), torch.randn(20000, 1))
    assert float(torch.atanh(x.clamp(-1 + 1e-6, 1 - 1e-6)).std()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("backup_entropy", [True, False])
def test_td_target_by_hand(make_policy, backup_entropy):
    learner = SAC(make_policy(), 1, **SMALL, n_critics=3, n_target_critics=3, backup_entropy=backup_entropy)
    n, f = 6, learner.policy.actor.in_dim
    batch = Transition(
        obs={}, action=torch.zeros(n, 2), reward=torch.rand(n), discount=torch.rand(n), done=torch.zeros(n) > 0,
        next_obs={"features": torch.randn(n, 1, f)}, extras={},
    )  # fmt: skip
    generator = torch.Generator().set_state(learner.generator.get_state())
    got = learner.td_target(batch)
    with torch.no_grad():
        features = batch.next_obs["features"][:, 0]
        action, log_prob = learner.policy.draw(features, torch.randn(n, 2, generator=generator))
        q = learner.target(torch.cat([features, action], 1))[..., 0].min(0).values
        want = batch.reward + batch.discount * (q - backup_entropy * learner.actor.alpha * log_prob)
    torch.testing.assert_close(got, want)


def test_entropy_reaches_its_target(make_policy):
    learner = SAC(make_policy(), 1, **SMALL, alpha_lr=0.05, actor_lr=1e-2, target_entropy=-1.0)
    features = torch.randn(64, 1, learner.policy.actor.in_dim)
    batch = Transition({"features": features}, *[torch.zeros(64)] * 3, torch.zeros(64) > 0, {}, {})
    entropies = [float(learner.update_actor(batch)["entropy"]) for _ in range(500)]
    assert sum(entropies[-100:]) / 100 == pytest.approx(-2.0, abs=0.3)


def test_actor_finds_the_best_action(make_policy):
    """One step, reward -|a - target|^2: critic and actor together must find the target."""
    learner = SAC(
        make_policy(), 1, **SMALL | {"critic_hidden": [64, 64]}, n_critics=4, layer_norm=True, actor_lr=3e-3,
        critic_lr=3e-3, alpha=0.01, alpha_lr=0.0,
    )  # fmt: skip
    target = torch.tensor([0.4, -0.3])
    f = learner.policy.actor.in_dim
    for _ in range(500):
        features, action = torch.randn(128, 1, f), torch.rand(128, 2) * 2 - 1
        reward = -(action - target).square().sum(1)
        batch = Transition(
            {"features": features}, action, reward, torch.zeros(128), torch.ones(128) > 0, {"features": features}, {}
        )
        learner.update_critic(batch)
        learner.update_actor(batch)
    with torch.no_grad():
        mean = torch.tanh(learner.policy.actor(torch.randn(200, f))[0, :, :2])
    torch.testing.assert_close(mean.mean(0), target, atol=0.1, rtol=0)


def test_save_and_load_act_alike(make_policy, tmp_path):
    policy = make_policy().eval()
    save_policy(tmp_path / "c", policy, wrapped_config(policy, None))
    loaded = load_policy(tmp_path / "c")
    assert isinstance(loaded, GaussianPolicy)
    obs = {"state": torch.randn(5, 2, 4)}
    actions = policy.act(obs)
    assert actions.shape == (5, 1, 2)
    assert torch.equal(actions, loaded.act(obs))
    assert torch.equal(actions, policy.act(obs, noise=policy.draw_noise(5)))


def test_states_only():
    spec = TaskSpec("t", {"rgb": FieldSpec((64, 64, 3), "uint8", "rgb")}, FieldSpec((2,), "float32", "action"))
    with pytest.raises(ContractError, match="obs=state"):
        GaussianPolicy(spec, Normaliser({"rgb": "identity", "action": "identity"}, {}))


@pytest.mark.parametrize("with_demos", [False, True])
def test_resumes_bit_exactly(make_policy, store, with_demos):
    def learner():
        torch.manual_seed(3)
        new = SAC(make_policy(), 2, **SMALL)
        for demo in demos(store, new) if with_demos else ():
            new.add_demo(demo)
        return new

    whole = Rollout(learner(), 2).run(40)
    half = Rollout(learner(), 2).run(15)
    resumed = Rollout(learner(), 2).load(copy.deepcopy(half.state())).run(25)
    assert {k: float(v) for k, v in whole.metrics.items()} == {k: float(v) for k, v in resumed.metrics.items()}
    for (a, _), (b, _) in zip(whole.steps[15:], resumed.steps, strict=True):
        assert torch.equal(a, b)
