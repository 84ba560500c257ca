"""Classifier-free guidance around every head."""

import pytest
import torch

from data.errors import ConfigError
from policies.build import build_policy
from policies.checkpoint import load_policy, save_policy
from policies.heads.flow import FlowHead
from policies.heads.guidance import Guidance
from policies.heads.meanflow import MeanFlowHead
from policies.networks.mlp import ResidualMLP
from policies.rng import BatchRng
from tests.policies.conftest import NETWORKS, POLICIES, config, make, make_batch, make_store

SAMPLED = [name for name in POLICIES if name not in ("meanflow", "omp")]


class Twice(torch.nn.Module):
    """Guidance by its definition: the network asked twice, row by row."""

    def __init__(self, guidance: Guidance):
        super().__init__()
        self.guidance, self.network = guidance, guidance.network

    def prepare(self, cond):
        self.known, self.unknown = self.network.prepare(cond), self.network.prepare(self.guidance.without(cond))
        return self.known

    def forward(self, x, t, prepared):
        known, unknown = self.network(x, t, self.known), self.network(x, t, self.unknown)
        return unknown + self.guidance.scale * (known - unknown)


def trained_a_little(policy):
    """Away from the initialisation, where null tokens are zeros."""
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return policy.eval()


@pytest.mark.parametrize(("name", "network"), [(n, "mlp") for n in SAMPLED] + [("flow", n) for n in NETWORKS])
def test_sampling_follows_the_condition_further(state_store, name, network):
    policy = trained_a_little(make(state_store, name, network, cfg_dropout=0.1, cfg_scale=2.5))
    obs, noise = make_batch(state_store, 3).obs, policy.draw_noise(3)
    with torch.no_grad():
        guided = policy.sample(obs, noise=noise)
        assert isinstance(policy.head.network, Guidance)
        guidance = policy.head.network
        guidance.scale = 1.0
        assert not torch.allclose(guided, policy.sample(obs, noise=noise), atol=1e-3)
        guidance.scale = 2.5
        policy.head.network = Twice(guidance)
        torch.testing.assert_close(guided, policy.sample(obs, noise=noise), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["flow", "meanflow"])
def test_scale_one_costs_and_changes_nothing(state_store, name):
    plain = make(state_store, name).eval()
    policy = make(state_store, name, cfg_dropout=0.3).eval()
    policy.head.network.network.load_state_dict(plain.head.network.state_dict())
    policy.encoder.load_state_dict(plain.encoder.state_dict())
    obs, noise = make_batch(state_store, 2).obs, plain.draw_noise(2)
    assert torch.equal(policy.act(obs, noise=noise), plain.act(obs, noise=noise))


def test_rows_are_dropped_at_the_rate_and_the_null_token_learns():
    mask = torch.tensor([[True, True, False]] * 2)
    head = FlowHead(ResidualMLP(2, 4, (2, 3), hidden_dim=8, time_dim=8), cfg_dropout=0.25, cond_mask=mask)
    guidance = head.network
    assert isinstance(guidance, Guidance)
    torch.nn.init.constant_(guidance.null, 7.0)
    cond = torch.randn(4000, 2, 3)
    dropped = guidance.drop(cond, 0.25, BatchRng(0))
    rows = (dropped[:, :, :2] == 7.0).flatten(1).all(1)
    assert abs(rows.float().mean() - 0.25) < 0.03
    assert torch.equal(dropped[~rows], cond[~rows])
    assert torch.equal(dropped[:, :, 2], cond[:, :, 2])  # not part of the condition
    head.loss(torch.randn(64, 4, 2), cond[:64], torch.zeros(64, 4, dtype=torch.bool), BatchRng(0)).backward()
    assert guidance.null.grad is not None
    assert (guidance.null.grad[:, :2] != 0).all()
    assert (guidance.null.grad[:, 2] == 0).all()


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_meanflow_learns_the_guided_velocity(dropout):
    """By the formula; without dropout the reference is the network under the condition itself, as MP1 released it."""
    torch.manual_seed(0)
    net = ResidualMLP(2, 4, (1, 3), hidden_dim=16, time_dim=8, n_times=2)
    head = MeanFlowHead(
        net, cfg_scale=2.0, cfg_dropout=dropout, cond_mask=torch.ones(1, 3, dtype=torch.bool), flow_ratio=1.0
    )
    cond, z, v, t = torch.randn(5, 1, 3), torch.randn(5, 4, 2), torch.randn(5, 4, 2), torch.rand(5)
    known = net.prepare(cond)
    if dropout:
        torch.nn.init.normal_(head.network.null)
        prepared = head.network.prepare_both(cond, cond)
        reference = net.prepare(head.network.null.expand(5, 1, 3))
    else:
        prepared, reference = known, known
    with torch.no_grad():
        guided, own = head.guide(z, v, t, prepared)
        expected = 2 * v - net(z, torch.stack([t, 0 * t], 1), reference)
    torch.testing.assert_close(guided, expected)
    torch.testing.assert_close(own.flatten(1), known)


def test_only_the_chosen_observations_are_left_out(tmp_path):
    store = make_store(tmp_path / "d.zarr", ("pointcloud", "state"))
    policy = make(store, cfg_dropout=0.1, cfg_scale=3.0, cfg_keys=["state"])
    mask = policy.head.network.mask
    obs = make_batch(store, 2).obs
    other = {**obs, "state": obs["state"] + 0.5}
    policy.encoder.relative_to = None
    policy.encoder.encoders["pointcloud"] = Constant(policy.encoder.encoders["pointcloud"].out_dim)
    changed = (policy.encode(obs) != policy.encode(other)).any(0)
    assert torch.equal(changed & mask, changed)
    assert 0 < mask.sum() < mask.numel()
    with pytest.raises(ConfigError, match="Unknown observation 'stat'"):
        make(store, cfg_dropout=0.1, cfg_keys=["stat"])


class Constant(torch.nn.Module):
    def __init__(self, out_dim):
        super().__init__()
        self.out_dim = out_dim

    def forward(self, x):
        return torch.zeros(len(x), self.out_dim)


def test_scale_is_an_inference_option(state_store, tmp_path):
    policy = trained_a_little(make(state_store, cfg_dropout=0.1))
    save_policy(tmp_path / "c", policy, config("flow", "mlp", cfg_dropout=0.1))
    obs, noise = make_batch(state_store, 2).obs, policy.draw_noise(2)
    guided = load_policy(tmp_path / "c", overrides={"cfg_scale": 2.0})
    assert not torch.allclose(guided.act(obs, noise=noise), policy.act(obs, noise=noise))
    with pytest.raises(ConfigError, match="needs a network trained with cfg_dropout > 0"):
        build_policy(config("flow", "mlp", cfg_scale=2.0), policy.spec, policy.normaliser)
