"""On-policy fine-tuning: advantages and likelihoods against direct sums, exact starts, exact resumption."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.dppo import DPPO, FineTunedDiffusion
from algos.gate import check_gate
from algos.ppo import clipped_surrogate, gae
from algos.residual_ppo import ResidualGaussianPolicy, ResidualPPO
from algos.rollout import RewardScale, Rollout
from data.chunks import ChunkBatch
from data.errors import ConfigError, ContractError
from policies.checkpoint import load_policy, save_policy, wrapped_config
from policies.heads.diffusion import DiffusionHead, inference_timesteps
from tests.algos.conftest import Rollout as Loop
from tests.algos.conftest import base_config, outcomes

SMALL = {"rollout_steps": 6, "batch_size": 10, "epochs": 3, "critic_hidden": [16], "critic_warmup": 1}
LEARNERS = {
    "residual": lambda make, n, **o: ResidualPPO(make("flow"), n, **SMALL | o, hidden=[16], hold=1),
    "residual-held": lambda make, n, **o: ResidualPPO(make("flow"), n, **SMALL | o, hidden=[16], hold=2),
    "residual-ddpm": lambda make, n, **o: ResidualPPO(make("ddpm"), n, **SMALL | o, hidden=[16], hold=1),
    "dppo-ddim": lambda make, n, **o: DPPO(make("ddim"), n, **SMALL | o, n_finetuned_steps=2, hold=1),
    "dppo-ddpm": lambda make, n, **o: DPPO(make("ddpm"), n, **SMALL | o, n_finetuned_steps=3, hold=1),
    "dppo-held": lambda make, n, **o: DPPO(make("ddim"), n, **SMALL | o, n_finetuned_steps=2, hold=2),
    "dppo-all": lambda make, n, **o: DPPO(make("ddim"), n, **SMALL | o, n_finetuned_steps=10, hold=1),
}
WIDE = {
    "n_finetuned_steps": 10,
    "hold": 1,
    "target_kl": 0.02,
    "min_std": 0.2,
    "actor_lr": 1e-2,
    "clip_first": 0.2,
    "clip_last": 0.2,
}
every_learner = pytest.mark.parametrize("name", LEARNERS)
every_sampler = pytest.mark.parametrize("head", ["ddim", "ddpm"])


def make_learner(make_base, name, n_envs=2, **options):
    torch.manual_seed(3)
    return LEARNERS[name](make_base, n_envs, **options)


def acted(policy):
    """The actions of eight episodes, bit for bit."""
    return [episode.digest for episode in outcomes(policy)]


def disturb(module, scale=0.1):
    torch.manual_seed(1)
    for p in module.parameters():
        p.data += scale * torch.randn_like(p)


# ---------------------------------------------------------------------- advantages


@st.composite
def rollouts(draw):
    """Decisions of 1 to 8 steps; some end in success (discount 0), some by the clock (discount gamma^n)."""
    t, n = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    end = rng.choice(3, (t, n), p=[0.6, 0.2, 0.2])
    discount = 0.9 ** rng.integers(1, 9, (t, n)) * (end != 1)
    arrays = [*rng.normal(size=(3, t, n)), discount]
    return [torch.tensor(a) for a in arrays], torch.tensor(end > 0), draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))


@settings(max_examples=40, deadline=None)
@given(rollouts())
def test_gae_is_the_sum(drawn):
    (reward, value, next_value, discount), done, lam = drawn
    got = gae(reward, value, next_value, discount, done, lam)
    for t in range(len(reward)):
        for n in range(reward.shape[1]):
            want, weight = 0.0, 1.0
            for i in range(t, len(reward)):
                want += weight * (reward[i, n] + discount[i, n] * next_value[i, n] - value[i, n])
                if done[i, n]:
                    break
                weight *= lam * discount[i, n]
            assert float(got[t, n]) == pytest.approx(float(want), abs=1e-9)


def test_gae_by_hand():
    """Success at 1, time-out at 3: with lam = 1 the return, to which only the time-out's successor adds its value."""
    reward = torch.tensor([[0.0], [1.0], [0.0], [0.5], [0.0]])
    discount = torch.tensor([[0.5], [0.0], [0.5], [0.25], [0.5]])
    done = torch.tensor([[False], [True], [False], [True], [False]])
    value, after = torch.full((5, 1), 7.0), torch.tensor([[7.0], [99.0], [7.0], [8.0], [4.0]])
    returned = gae(reward, value, after, discount, done, 1.0) + value
    assert returned.flatten().tolist() == [0.5, 1.0, 0.5 * (0.5 + 0.25 * 8), 0.5 + 0.25 * 8, 2.0]


def test_reward_scale_is_the_std_of_returns():
    scale, returns_, generator = RewardScale(2), [], torch.Generator().manual_seed(0)
    running = torch.zeros(2)
    assert scale.std == 1.0
    for t in range(30):
        reward, done = torch.rand(2, generator=generator), torch.tensor([t % 7 == 6, t % 5 == 4])
        discount = torch.where(torch.tensor([True, t % 10 == 9]), 0.9, 0.0) * torch.ones(2)  # time-outs, successes
        running = running + reward
        returns_.append(running.clone())
        scale.update(reward, discount, done)
        running = running * discount * ~done
        if t == 15:
            state, scale = scale.state_dict(), RewardScale(2)
            scale.load_state_dict(state)
    assert scale.std == pytest.approx(float(torch.cat(returns_).std(correction=0)), rel=1e-5)


def test_surrogate_has_no_slope_where_it_is_clipped():
    log_ratio = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.0], requires_grad=True)
    loss, metrics = clipped_surrogate(log_ratio, torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0]), torch.full((5,), 0.2))
    loss.backward()
    assert log_ratio.grad is not None
    assert (log_ratio.grad == 0).tolist() == [True, True, False, False, False]
    assert float(metrics["clipped"]) == pytest.approx(0.8)
    e = math.exp(0.5)
    assert float(loss.detach()) == pytest.approx(-(1.2 - 0.8 - e + 1 / e + 1) / 5, abs=1e-6)


# ---------------------------------------------------------------------- chains


class Smooth(torch.nn.Module):
    """A fixed network, smooth in chunk, time and observation."""

    def prepare(self, cond):
        return cond.mean((1, 2))

    def forward(self, x, t, prepared):
        return torch.tanh(x.flip(-1) + prepared[:, None, None]) * (0.5 + t[:, None, None])


def smooth_head(**options):
    head = DiffusionHead(Smooth(), **{"n_inference_steps": 5, **options})
    generator = torch.Generator().manual_seed(0)
    return head, torch.randn(3, 1, 2, generator=generator), torch.randn(3, 6, 4, 2, generator=generator)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_chain_without_noise_is_sample(sampler, prediction):
    head, cond, noise = smooth_head(sampler=sampler, prediction=prediction)
    for_chain = None if sampler == "ddim" else noise[:, 1:5]
    chain = head.sample_chain(cond, noise[:, 0], for_chain)
    assert len(chain) == 6
    assert torch.equal(chain[-1], head.sample(cond, noise[:, 0] if sampler == "ddim" else noise[:, :5]))
    rest = None if for_chain is None else for_chain[:, 2:]
    for whole, half in zip(chain[2:], head.sample_chain(cond, chain[2], rest, start=2), strict=True):
        assert torch.equal(whole, half)
    short = head.sample_chain(cond, noise[:, 0], for_chain, stop=2)
    assert [torch.equal(a, b) for a, b in zip(short, chain[:3], strict=True)] == [True] * 3


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("min_std", [0.0, 0.15])
def test_steps_have_the_distribution_the_chain_is_drawn_from(sampler, min_std):
    """Every row at a step of its own; the noise put in comes out, and its std is the posterior's by diffusers."""
    head, cond, noise = smooth_head(sampler=sampler)
    chain = torch.stack(head.sample_chain(cond, noise[:, 0], noise[:, 1:], eta=1.0, min_std=min_std), 1)
    row, step = torch.arange(3).repeat_interleave(5), torch.arange(5).repeat(3)
    mean, std = head.step_dist(chain[row, step], step, cond[row], eta=1.0, min_std=min_std)
    torch.testing.assert_close(mean + std * noise[row, step + 1], chain[row, step + 1], atol=1e-5, rtol=1e-5)
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    want = [float(scheduler._get_variance(k)) ** 0.5 for k in inference_timesteps(100, 5, "trailing")]
    for i in range(5):
        floor = max(min_std, 0.0 if i == 4 else want[i])
        assert float(std[i]) == pytest.approx(floor, abs=1e-4)


def test_ddim_with_all_its_noise_is_ddpm():
    """Song et al. 2021, sec. 4.1; without clipping, which treats the noise differently."""
    results = []
    for sampler in ("ddim", "ddpm"):
        head, cond, noise = smooth_head(sampler=sampler, clip_sample=False)
        results.append(head.sample_chain(cond, noise[:, 0], noise[:, 1:], eta=1.0)[-1])
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- DPPO


@every_sampler
@pytest.mark.parametrize("n_finetuned_steps", [1, 2, 10])
def test_untrained_is_the_base(make_base, head, n_finetuned_steps):
    base = make_base(head)
    policy = FineTunedDiffusion(base, n_finetuned_steps=n_finetuned_steps)
    check_gate(outcomes(base), outcomes(policy), exact=True)


@every_sampler
def test_first_steps_are_the_bases(make_base, head):
    learner = DPPO(make_base(head), 2, **SMALL, n_finetuned_steps=2, hold=1)
    policy = learner.diffusion
    k = policy.head.n_inference_steps
    cond, noise = torch.randn(2, 1, 16), torch.randn(2, k + 1, 6, 2)
    before = policy.chain(cond, noise[:, 0], noise[:, 1:], eta=1.0, min_std=0.1)
    disturb(policy.head)
    after = policy.chain(cond, noise[:, 0], noise[:, 1:], eta=1.0, min_std=0.1)
    assert len(before) == 3
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    assert all(not p.requires_grad for p in policy.base.parameters())


@pytest.mark.parametrize("hold", [1, 2, 4])
@every_sampler
def test_chain_log_probability_is_the_sum_over_steps(make_base, head, hold):
    """By the noise that was drawn: log N = -noise^2 / 2 - log std - log(2 pi) / 2, over the executed numbers."""
    learner = DPPO(make_base(head), 2, **SMALL | {"epochs": 1}, n_finetuned_steps=2, min_std=0.2, hold=hold)
    disturb(learner.diffusion.head)
    drawn = []
    learner._draw = lambda *shape: drawn.append(torch.randn(*shape)) or drawn[-1]  # type: ignore[method-assign]
    Loop(learner, 2).run(5)
    first, want = learner.diffusion.first, torch.zeros(10)
    scheduler = DDPMScheduler(
        learner.diffusion.head.n_train_steps, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(learner.diffusion.head.n_inference_steps)
    for part in range(2):
        k = int(scheduler.timesteps[first + part])
        std = max(0.2, 0.0 if part == 1 else float(scheduler._get_variance(k)) ** 0.5)
        eps = torch.stack(drawn).flatten(0, 1)[:, 1 + first + part, 1:5]
        assert all(torch.equal(eps[:, i], eps[:, i - i % hold]) for i in range(4))  # held
        eps = eps[:, ::hold]
        single = -0.5 * eps.square() - math.log(std) - 0.5 * math.log(2 * math.pi)
        want += single.clamp(-5, 2).mean((1, 2))
    decision, part = torch.arange(10).repeat_interleave(2), torch.arange(2).repeat(10)
    learner.rollout.data = {k: v[:5] for k, v in learner.rollout.data.items()}
    log_prob, drift = learner.judge(decision, part)
    assert float(drift) < 1e-9  # nothing has changed
    got = log_prob.detach().view(10, 2).sum(1)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_clip_and_discount_over_steps(make_base):
    options = {"gamma_denoising": 0.9, "clip_first": 0.01, "clip_last": 0.1, "clip_rate": 3.0}
    learner = DPPO(make_base("ddim"), 1, **SMALL, **options, n_finetuned_steps=10, hold=1)
    part = torch.arange(3)
    middle = 0.01 + 0.09 * (math.exp(1.5) - 1) / (math.exp(3) - 1)
    assert learner.clip(part).tolist() == pytest.approx([0.01, middle, 0.1])
    assert learner.part_discount(part).tolist() == pytest.approx([0.81, 0.9, 1.0])


def test_other_heads_are_refused_by_name(make_base):
    with pytest.raises(ConfigError, match="FlowHead"):
        DPPO(make_base("flow"), 1)
    with pytest.raises(ConfigError, match="ResidualGaussianPolicy"):
        DPPO(ResidualGaussianPolicy(make_base("flow")), 1)


# ---------------------------------------------------------------------- residual


@pytest.mark.parametrize("head", ["flow", "ddpm"])
def test_zero_residual_is_the_base(make_base, head):
    base = make_base(head)
    check_gate(outcomes(base), outcomes(ResidualGaussianPolicy(base, hidden=[16])), exact=True)


def test_time_out_is_valued_with_the_chunk_gone_on_with(make_base):
    """What the critic sees of a decision's successor is what it sees next, unless the episode ended in between."""
    learner = make_learner(make_base, "residual")
    learner.rollout = Rollout(100)
    loop = Loop(learner, 2).run(40)
    seen, after = learner.rollout["features"], learner.rollout["next_features"]
    for t, (_, step) in enumerate(loop.steps[:-1]):
        goes_on = ~(step.terminated | step.truncated)
        assert torch.equal(after[t][goes_on], seen[t + 1][goes_on])
        states = learner.gaussian.features(step.next_obs)
        assert torch.equal(after[t][:, : states.shape[1]], states)
    assert any(bool(s.truncated.any()) for _, s in loop.steps)


# ---------------------------------------------------------------------- both


@every_learner
def test_save_and_load_act_alike(make_base, name, tmp_path):
    learner = make_learner(make_base, name)
    disturb(learner.actor, 0.3)
    head = "ddpm" if name.endswith("ddpm") else "ddim" if name.startswith("dppo") else "flow"
    save_policy(tmp_path / "c", learner.policy, wrapped_config(learner.policy, base_config(head)))
    loaded = load_policy(tmp_path / "c")
    assert type(loaded) is type(learner.policy)
    got, of_base = acted(loaded), acted(learner.policy.base)
    assert got == acted(learner.policy)
    assert not set(got) & set(of_base)
    with pytest.raises(ContractError, match="algo="):
        loaded.loss(ChunkBatch({}, torch.zeros(1, 6, 2), torch.zeros(1, 6) > 0))


@every_learner
def test_first_ratio_is_one(make_base, name):
    learner = make_learner(make_base, name)
    ratios = []
    judge = learner.judge
    learner.judge = lambda d, p: ratios.append((d, p, judge(d, p))) or ratios[-1][2]  # type: ignore[method-assign]
    loop = Loop(learner, 2)
    while learner.n_updates < 2:  # the first one is the critic's alone
        loop.run(1)
    n = 12 * learner.n_parts
    n_old = math.ceil(n / 10)
    old = torch.cat([r[2][0] for r in ratios[:n_old]])
    decision, part, (first, _) = ratios[n_old]
    torch.testing.assert_close(
        (first - old[decision * learner.n_parts + part]).exp(), torch.ones(len(first)), atol=1e-5, rtol=0
    )
    assert len(ratios) > n_old + 1
    of_actor = {"actor_loss", "kl", "clipped", "actor_updates", "actor_lr"}
    assert set(loop.metrics) == {"return_std", "value", "critic_loss"} | of_actor
    assert all(math.isfinite(v) for v in loop.metrics.values())


@pytest.mark.parametrize(("target", "lr"), [(1e-9, 1e-3 / 1.5), (1e9, 1.5e-3), (None, 1e-3)])
def test_rate_follows_divergence(make_base, target, lr):
    """Lower after a rollout given up early, higher after one that hardly moved it; as it is in between, or unasked."""
    torch.manual_seed(3)
    options = {**SMALL, "actor_lr": 1e-3, "target_kl": target or 1e9, "adapt_lr": target is not None}
    loop = Loop(ResidualPPO(make_base("flow"), 2, **options, hidden=[16], hold=1), 2)
    while loop.learner.n_updates < 2:
        loop.run(1)
    assert float(loop.metrics["actor_lr"]) == pytest.approx(1e-3)  # of what led to it
    assert loop.learner.actor_lr == pytest.approx(lr)
    loop.learner._adapt(1.0, 0.6e9)
    assert loop.learner.actor_lr == pytest.approx(lr)


@every_learner
def test_rates_fall_to_nothing_in_the_last_part(make_base, name):
    """From where they are then; divergence says no more about them."""
    learner = make_learner(make_base, name, lr_decay=0.5, env_steps=200, actor_lr=1e-3, critic_lr=2e-3, adapt_lr=True)
    loop, rates = Loop(learner, 2), {}
    while learner.env_steps < 200:
        before, n = learner.actor_lr, learner.n_updates
        loop.run(1)
        if learner.n_updates > n:
            rates[learner.env_steps] = [
                o.param_groups[0]["lr"] for o in (learner.actor_optimiser, learner.critic_optimiser)
            ]
            share = min(1.0, (200 - learner.env_steps) / 100)
            assert rates[learner.env_steps] == pytest.approx([before * share, 2e-3 * share])
            assert learner.actor_lr == before or share == 1
    assert min(rates) < 100 < max(rates)


@every_learner
def test_resumes_bit_exactly_in_mid_rollout(make_base, name):
    whole = Loop(make_learner(make_base, name), 2).run(21)
    half = Loop(make_learner(make_base, name), 2).run(9)
    state = copy.deepcopy(half.state())
    half.run(3)  # what was saved is not what goes on changing
    resumed = Loop(make_learner(make_base, name), 2).load(state).run(12)
    for (a, _), (b, _) in zip(whole.steps[9:], resumed.steps, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.learner.policy.parameters(), resumed.learner.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert {k: float(v) for k, v in whole.metrics.items()} == {k: float(v) for k, v in resumed.metrics.items()}


@pytest.mark.parametrize("name", ["residual", "dppo-ddim"])
def test_climbs(make_base, name):
    """One decision per episode, paid for going up: soon it goes further up than its base does."""
    n, options = 32, SMALL | {"rollout_steps": 4, "batch_size": 64, "epochs": 5, "adapt_lr": False}
    torch.manual_seed(0)
    if name == "residual":
        learner = ResidualPPO(make_base("flow"), n, **options, hidden=[16], hold=1, std=0.37, actor_lr=1e-2, scale=0.5)
    else:
        learner = DPPO(make_base("ddim"), n, **options, **WIDE)
    obs = {"state": torch.rand(n, 2, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1}
    noise = learner.policy.draw_noise(n, torch.Generator().manual_seed(0))
    before = learner.policy.act(obs, noise=noise)[..., 1].mean()
    over = torch.ones(n, dtype=torch.bool)
    for _ in range(24):
        reward = learner.explore(obs, over)[..., 1].mean(1)
        learner.observe(
            SimpleNamespace(
                next_obs=obs, reward=reward, discount=torch.zeros(n), terminated=over, truncated=~over,
                n_steps=over.long(),
            )
        )  # fmt: skip
        learner.update()
    assert float(learner.policy.act(obs, noise=noise)[..., 1].mean()) > float(before) + 0.15
