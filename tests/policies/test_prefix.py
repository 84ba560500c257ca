"""Policies that were trained to go on from actions: where they are known a chunk stays in its mode."""

from __future__ import annotations

import copy

import pytest
import torch

from algos.bc import BC
from data.chunks import ChunkBatch
from data.errors import ConfigError
from policies.checkpoint import load_policy, save_policy
from policies.inference.execution import build_execution
from policies.prefix import PREFIX
from tests.policies.conftest import POLICIES, config, make, make_batch, make_store


def two_ways(policy, n=64):
    """The same observation, and chunks that go up or down: no telling which."""
    up = torch.where(torch.arange(n) % 2 == 0, 0.8, -0.8)[:, None, None].expand(n, 8, 3)
    obs = {"state": torch.full((n, 2, 7), 0.5)}
    return ChunkBatch(obs, policy.normaliser.unnormalise("action", up), torch.zeros(n, 8) > 0)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("prefix") / "demo.zarr", ("state",))
    policy = make(store, "flow", prefix=4, noise_per_obs=8, n_inference_steps=10)
    algo = BC(policy, train_steps=300, lr=3e-3, lr_warmup_steps=5, ema_max_decay=0.95)
    batch = two_ways(policy)
    for _ in range(250):
        algo.update(batch)
    return algo.policy.eval()


@torch.no_grad()
def test_chunks_go_on_from_what_is_known(policy):
    obs, noise = two_ways(policy).obs, policy.draw_noise(64, torch.Generator().manual_seed(0))
    free = policy.sample(obs, noise=noise).mean((1, 2))
    assert min((free > 0.4).sum(), (free < -0.4).sum()) > 12  # both ways
    for way in (0.8, -0.8):
        for known in ([0, 1, 2], [0], [1, 2]):  # of [1, 2], the first action is not known
            given = torch.full((64, max(known) + 1, 3), torch.nan)
            given[:, known] = way
            chunk = policy.sample({**obs, PREFIX: given}, noise=noise)
            assert (chunk.mean((1, 2)) * way > 0).float().mean() > 0.95
    nothing = policy.sample({**obs, PREFIX: torch.full((64, 4, 3), torch.nan)}, noise=noise).mean((1, 2))
    torch.testing.assert_close(nothing, free)


@torch.no_grad()
def test_execution_stays_in_its_way(policy):
    """Chunks that arrive late: trained ones go on as begun, naive ones turn round."""
    policy = copy.deepcopy(policy)
    policy.n_action_steps = 3
    obs = {"state": torch.full((1, 2, 7), 0.5)}
    turns = {}
    for name in ("prefix", "async"):
        late, turned = build_execution(policy, {"name": name, "delay": 2}), 0
        for seed in range(16):
            generator, memory, ways = torch.Generator().manual_seed(seed), None, []
            for _ in range(3):
                actions, memory = late.act_from(obs, memory, generator)
                ways.append(policy.normaliser.normalise("action", actions)[0, -1].mean() > 0)
            turned += len(set(map(bool, ways))) > 1
        turns[name] = turned
    assert turns["prefix"] <= 1
    assert turns["async"] >= 5


@pytest.mark.parametrize("name", list(POLICIES))
def test_every_head_takes_it(state_store, name, tmp_path):
    policy = make(state_store, name, "unet1d", prefix=3).eval()
    batch = make_batch(state_store, 4)
    if name not in ("consistency", "ctm"):  # they learn from a teacher
        loss, _ = policy.loss(batch)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.prefix.parameters())
    save_policy(tmp_path / "c", policy, config(name, "unet1d", prefix=3))
    noise, obs = policy.draw_noise(4), {**batch.obs, PREFIX: torch.rand(4, 2, 3)}
    loaded = load_policy(tmp_path / "c")
    assert torch.equal(loaded.act(obs, noise=noise), policy.act(obs, noise=noise))
    assert not torch.equal(policy.act(batch.obs, noise=noise), policy.act(obs, noise=noise))


def test_what_does_not_fit_is_named(state_store):
    with pytest.raises(ConfigError, match=r"policy\.prefix=8"):
        make(state_store, prefix=8)
    policy = make(state_store, prefix=2).eval()
    with pytest.raises(ConfigError, match=r"policy\.prefix=3"):
        policy.sample({**make_batch(state_store, 1).obs, PREFIX: torch.zeros(1, 3, 3)})
    policy.n_action_steps = 3
    build_execution(policy, {"name": "prefix", "delay": 1})
    with pytest.raises(ConfigError, match="it is 1 at most"):
        build_execution(policy, {"name": "prefix", "delay": 2})
