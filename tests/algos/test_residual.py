"""Residual TD3: the base exactly at the start, targets against known values, queues that never outlive an episode."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from algos.base_queue import BaseQueue
from algos.corrected import ResidualPolicy
from algos.gate import check_gate
from algos.replay import Transition
from algos.residual import Residual
from algos.temperature import Temperature
from data.chunks import ChunkBatch
from data.errors import ConfigError, ContractError, TrainingError
from policies.checkpoint import load_policy, save_policy, wrapped_config
from tests.algos.conftest import HEADS, Rollout, base_config, demos, outcomes, returns

SMALL = {
    "hold": 1, "hidden": [16, 16], "critic_hidden": [16, 16], "n_critics": 3, "batch_size": 16, "learning_starts": 5,
    "warmup_steps": 20, "utd_ratio": 0.5,
}  # fmt: skip
every_head = pytest.mark.parametrize("head", HEADS)


def learned(policy: ResidualPolicy) -> ResidualPolicy:
    """With corrections that are not zero."""
    torch.manual_seed(1)
    for p in policy.actor.parameters():
        p.data += 0.3 * torch.randn_like(p)
    policy.active.fill_(True)
    return policy


@every_head
@pytest.mark.parametrize(("active", "hold"), [(False, 1), (True, 1), (True, 2), (True, 4)])
def test_zero_residual_is_the_base(make_base, head, active, hold):
    base = make_base(head)
    policy = ResidualPolicy(base, hold=hold, hidden=[16])
    policy.active.fill_(active)
    check_gate(outcomes(base), outcomes(policy), exact=True)


@every_head
def test_save_and_load_act_alike(make_base, head, tmp_path):
    base = make_base(head)
    policy = learned(ResidualPolicy(base, hidden=[16], scale=0.3, hold=2)).eval()
    save_policy(tmp_path / "c", policy, wrapped_config(policy, base_config(head)))
    loaded = load_policy(tmp_path / "c")
    assert isinstance(loaded, ResidualPolicy)
    assert loaded.scale == 0.3
    obs = {"state": torch.randn(5, 2, 4)}
    noise = policy.draw_noise(5, torch.Generator().manual_seed(0))
    actions = policy.act(obs, noise=noise)
    assert actions.shape == (5, 2, 2)
    assert torch.equal(actions, loaded.act(obs, noise=noise))
    correction = actions - base.act(obs, noise=noise)[:, :2]
    assert (correction != 0).any()
    free = (actions.abs() < 1).all(1)
    torch.testing.assert_close(correction[:, 0][free], correction[:, 1][free], atol=1e-5, rtol=0)  # held
    assert np.array_equal(returns(outcomes(policy)), returns(outcomes(loaded)))
    with pytest.raises(ContractError, match="algo=residual"):
        loaded.loss(ChunkBatch(obs, torch.zeros(5, 6, 2), torch.zeros(5, 6) > 0))


def test_temperature_scales_the_noise_of_an_active_policy(make_base):
    base = make_base()
    policy = ResidualPolicy(base, hidden=[16])
    policy.temperature.fill_(0.5)
    obs = {"state": torch.randn(3, 2, 4)}
    noise = base.draw_noise(3, torch.Generator().manual_seed(0))
    for active, factor in ((False, 1.0), (True, 0.5)):
        policy.active.fill_(active)
        want = base.act(obs, noise=factor * noise)[:, :1]
        assert torch.equal(policy.act(obs, noise=noise), want)
        assert torch.equal(policy.act_from(obs, None, torch.Generator().manual_seed(0))[0], want)


def test_training_finds_the_temperature_at_which_the_base_succeeds(make_base):
    """Episodes succeed at 0.5 alone; it is found, and found anew when that changes."""
    bandit, generator = Temperature(make_base(), [1.0, 0.5, 0.0], 2), torch.Generator().manual_seed(0)
    assert bandit.best == 1.0
    for good in (0.5, 0.0):
        tried = []
        for _ in range(150):
            bandit.begin(torch.tensor([True, True]), generator)
            for env, temperature in enumerate(bandit.now.tolist()):
                bandit.add(env, temperature == good)
                tried.append(temperature)
        assert bandit.best == good
        assert tried[-100:].count(good) > 70
    before = bandit.now.clone()
    bandit.begin(torch.tensor([False, False]), generator)
    assert torch.equal(bandit.now, before)


def test_two_lucky_episodes_at_a_temperature_do_not_make_it_the_best(make_base):
    bandit = Temperature(make_base(), [1.0, 0.5], 1)
    for arm, successes, episodes in ((0, 26, 40), (1, 2, 2)):
        bandit.arm[:] = arm
        for i in range(episodes):
            bandit.add(0, (i + 1) * successes // episodes > i * successes // episodes)
    assert bandit.best == 1.0
    for _ in range(12):
        bandit.add(0, True)
    assert bandit.best == 0.5


def test_its_state_needs_no_unpickling(make_base, tmp_path):
    bandit = Temperature(make_base(), [1.0, 0.0], 2)
    bandit.add(1, True)
    torch.save(bandit.state_dict(), tmp_path / "state.pt")
    again = Temperature(make_base(), [1.0, 0.0], 2)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.won.tolist() == [1.0, 0.0]
    assert (again.best, again.arm.dtype) == (bandit.best, np.int64)


def test_what_has_no_noise_has_no_temperature(make_base):
    base = make_base()
    assert Temperature(ResidualPolicy(base), [1.0, 0.0], 1).arms == [1.0]
    with pytest.raises(ConfigError, match="temperatures"):
        Temperature(base, [], 1)
    with pytest.raises(ConfigError, match="temperatures"):
        Temperature(base, [2.0], 1)


def test_corrections_stay_within_their_scale(make_base):
    policy = learned(ResidualPolicy(make_base(), scale=0.1))
    features, base = torch.randn(50, policy.features.out_dim()), torch.rand(50, 1, 2) * 2 - 1
    corrected = policy.corrected(features, base)
    assert (corrected - base).abs().max() <= 0.1 + 1e-6
    assert corrected.abs().max() <= 1


def test_queue_asks_the_base_once_a_chunk_and_after_every_end(make_base):
    base = make_base()
    queue, generator = BaseQueue(base, 3), torch.Generator().manual_seed(0)
    obs = {"state": torch.randn(3, 2, 4)}
    asked = []
    act = base.act
    base.act = lambda o, noise: asked.append(len(noise)) or act(o, noise=noise)  # type: ignore[method-assign]
    first = [queue.next(base, obs, generator) for _ in range(4)]
    assert asked == [3]
    assert torch.equal(torch.cat(first, 1), queue.chunk)
    queue.next(base, obs, generator)
    assert asked == [3, 3]
    queue.clear(torch.tensor([False, True, False]))
    before = queue.chunk.clone()
    got = queue.next(base, obs, generator)
    assert asked == [3, 3, 1]
    assert torch.equal(got[[0, 2], 0], before[[0, 2], 1])
    assert torch.equal(got[1, 0], queue.chunk[1, 0])
    queue.next(base, obs, generator, torch.tensor([True, False, True]))
    assert queue.at.tolist() == [3, 1, 3]
    queue.clear(torch.tensor([True, True, True]))
    halves = [queue.next(base, obs, generator, steps=2) for _ in range(2)]
    assert torch.equal(torch.cat(halves, 1), queue.chunk)


def test_gate_finds_a_queue_that_outlives_its_episode(make_base):
    """A base that is never emptied: the fault of public code that the gate is there for."""
    base = make_base()

    class Stale(ResidualPolicy):
        shared = None

        def act_from(self, obs, memory, generator):
            action, Stale.shared = super().act_from(obs, Stale.shared, generator)
            return action, None

    with pytest.raises(TrainingError, match="acted differently"):
        check_gate(outcomes(base), outcomes(Stale(base)), exact=True)


def test_gate_finds_corrections_that_are_not_zero(make_base):
    base = make_base()
    with pytest.raises(TrainingError, match="does not act as its base"):
        check_gate(outcomes(base), outcomes(learned(ResidualPolicy(base, scale=0.5))), exact=True)


def test_td_target_by_hand(make_base):
    learner = Residual(make_base(), 1, **SMALL, target_std=0.0, n_target_critics=3)
    learner.actor.load_state_dict(learned(learner.policy).actor.state_dict())
    n, f = 6, learner.policy.features.out_dim()
    batch = Transition(
        obs={}, action=torch.zeros(n, 2), reward=torch.rand(n), discount=torch.rand(n), done=torch.zeros(n) > 0,
        next_obs={"features": torch.randn(n, 1, f)}, extras={"next_base": torch.rand(n, 1, 2) * 2 - 1},
    )  # fmt: skip
    got = learner.td_target(batch)
    for b in range(n):
        s, base = batch.next_obs["features"][b : b + 1], batch.extras["next_base"][b : b + 1]
        values = [
            float(learner.target(learner.judged({"features": s}, base, a)).detach().min())
            for a in (base, learner.policy.corrected(s[:, 0], base))
        ]
        want = float(batch.reward[b] + batch.discount[b] * max(values))
        assert float(got[b]) == pytest.approx(min(max(want, 0.0), 1.0), abs=1e-5)


def test_critics_find_the_values_of_a_chain(make_base):
    """Three states in a row, success at the end: Q = gamma^2, gamma, 1 whatever the action."""
    learner = Residual(make_base(), 1, **SMALL | {"n_step": 1, "tau": 0.2, "critic_lr": 5e-3})
    f = learner.policy.features.out_dim()
    states = torch.eye(3, f)[:, None]
    gamma = 0.8
    for _ in range(500):
        s = torch.randint(3, (32,), generator=learner.generator)
        last = s == 2
        base = torch.rand(2, 32, 1, 2) * 2 - 1
        batch = Transition(
            obs={"features": states[s]}, action=torch.rand(32, 1, 2) * 2 - 1, reward=last.float(),
            discount=gamma * (~last).float(), done=last, next_obs={"features": states[(s + 1).clamp(max=2)]},
            extras={"base": base[0], "next_base": base[1]},
        )  # fmt: skip
        learner.update_critic(batch)
    judged = learner.judged({"features": states}, torch.zeros(3, 1, 2), torch.zeros(3, 1, 2))
    q = learner.critic(judged)[..., 0].mean(0)
    torch.testing.assert_close(q.detach(), torch.tensor([gamma**2, gamma, 1.0]), atol=0.05, rtol=0)


@pytest.mark.parametrize(("prior", "want"), [(0.0, [0.1, 0.3]), (0.5, [0.0265, 0.238])])
def test_actor_climbs_its_critic(make_base, prior, want):
    """Against Q = -|a - target|^2 the correction goes where the critic is highest, or as far as its scale allows.

    With a prior p it is r = 0.3 target / (0.3^2 + p / 2) in units of the scale: the mean of two squares costs p.
    """
    learner = Residual(make_base(), 1, **SMALL | {"actor_lr": 1e-2, "actor_ema": 0.9}, scale=0.3, prior=prior)
    target = torch.tensor([0.1, 0.9])

    class Known(torch.nn.Module):
        def forward(self, x):
            return -(0.3 * x[:, -2:] - target).square().sum(1)[None, :, None]  # departures are in units of the scale

    learner.critic = Known()  # type: ignore[assignment]
    f = learner.policy.features.out_dim()
    batch = Transition(
        obs={"features": torch.randn(64, 1, f)}, action=torch.zeros(64, 1, 2), reward=torch.zeros(64),
        discount=torch.zeros(64), done=torch.zeros(64) > 0, next_obs={}, extras={"base": torch.zeros(64, 1, 2)},
    )  # fmt: skip
    for _ in range(300):
        learner.update_actor(batch)
    got = learner.policy.corrected(batch.obs["features"][:, 0], batch.extras["base"]).mean((0, 1))
    torch.testing.assert_close(got.detach(), torch.tensor(want), atol=0.03, rtol=0)


def test_the_policy_handed_out_follows_the_actor(make_base):
    """Episodes without noise are acted by the average, the others by the actor that learns."""
    learner = Residual(make_base(), 2, **SMALL, actor_ema=0.5, explore_std=0.0)
    start = [p.detach().clone() for p in learner.policy.actor.parameters()]
    for p in learner.actor.parameters():
        p.data += torch.randn_like(p)
    obs = {"features": torch.randn(8, 1, learner.policy.features.out_dim())}
    batch = Transition(
        obs=obs, action=torch.zeros(8, 1, 2), reward=torch.zeros(8), discount=torch.zeros(8),
        done=torch.zeros(8) > 0, next_obs={}, extras={"base": torch.zeros(8, 1, 2)},
    )  # fmt: skip
    learner.update_actor(batch)
    for before, mean, now in zip(start, learner.policy.actor.parameters(), learner.actor.parameters(), strict=True):
        torch.testing.assert_close(mean, (before + now) / 2)
    learner.core.env_steps = learner.core.warmup_steps
    roles = learner.core.roles
    roles.base_fraction, roles.quiet_fraction = 0.0, 0.5
    window = {"state": torch.randn(2, 2, 4)}
    while roles.quiet.tolist() != [True, False]:
        acted = learner.policy.range.unit(learner.explore(window, torch.ones(2) > 0))
    seen, base = learner.policy.features(window), learner.acting.now["base"]
    torch.testing.assert_close(acted[:1], learner.policy.corrected(seen, base)[:1])
    torch.testing.assert_close(acted[1:], learner.policy.corrected(seen, base, learner.actor)[1:])
    assert not torch.allclose(acted[:1], learner.policy.corrected(seen, base, learner.actor)[:1])


@pytest.mark.parametrize("hold", [1, 2])
def test_replay_holds_what_happened(make_base, store, hold):
    """Actions, rewards and the base's actions beside them, over ends of episodes in any environment."""
    learner = Residual(make_base(), 2, **SMALL | {"hold": hold}, explore_std=0.1)
    for demo in demos(store, learner):
        learner.add_demo(demo)
    rollout = Rollout(learner, 2).run(40)
    env = torch.arange(2)
    for t, (actions, step) in enumerate(rollout.steps):
        row = learner.core.replay.gather(torch.full((2,), t), env)
        torch.testing.assert_close(learner.policy.range.environment(row.action), actions)
        assert torch.equal(row.reward, step.reward)
        assert torch.equal(row.discount, step.discount)
        assert torch.equal(row.next_obs["features"][:, 0], learner.policy.features(step.next_obs))
        if t + 1 < len(rollout.steps):
            after = learner.core.replay.gather(torch.full((2,), t + 1), env)
            goes_on = ~row.done
            assert torch.equal(row.extras["next_base"][goes_on], after.extras["base"][goes_on])
    assert any(bool(s.truncated.any()) for _, s in rollout.steps)
    demo = learner.core.demos.sample(64, generator=torch.Generator().manual_seed(0))
    assert (demo.reward > 0).any()
    assert ((demo.reward > 0) == (demo.discount == 0)).all()


def test_rates_fall_to_nothing_in_the_last_part(make_base):
    learner = Residual(make_base(), 1, **SMALL, actor_lr=1e-3, critic_lr=2e-3, lr_decay=0.25, env_steps=1000)
    for step, share in ((0, 1.0), (750, 1.0), (875, 0.5), (1000, 0.0), (1100, 0.0)):
        learner.core.env_steps = step
        learner.update()
        rates = [o.param_groups[0]["lr"] for o in (learner.actor_optimiser, learner.critic_optimiser)]
        assert rates == pytest.approx([share * 1e-3, share * 2e-3])


@pytest.mark.parametrize("n_envs", [1, 3])
def test_resumes_bit_exactly(make_base, store, n_envs):
    def learner():
        torch.manual_seed(3)
        new = Residual(make_base(), n_envs, **SMALL | {"hold": n_envs // 3 + 1}, base_fraction=0.3)
        for demo in demos(store, new):
            new.add_demo(demo)
        return new

    whole = Rollout(learner(), n_envs).run(60)
    half = Rollout(learner(), n_envs).run(25)
    state = copy.deepcopy(half.state())
    resumed = Rollout(learner(), n_envs).load(state).run(35)
    for a, b in zip(whole.learner.policy.parameters(), resumed.learner.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    for (a, _), (b, _) in zip(whole.steps[25:], resumed.steps, strict=True):
        assert torch.equal(a, b)
    assert {k: float(v) for k, v in whole.metrics.items()} == {k: float(v) for k, v in resumed.metrics.items()}
