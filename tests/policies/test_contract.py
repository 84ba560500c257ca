"""What every policy must hold, over all heads x networks x observations."""

import pytest
import torch

from algos.bc import BC
from data.errors import ContractError, DataError
from data.spec import FieldSpec, TaskSpec
from policies.checkpoint import check_contract, load_policy, save_policy
from policies.rng import BatchRng
from tests.policies.conftest import NETWORKS, POLICIES, config, make, make_batch, make_store

every_policy = pytest.mark.parametrize("policy_name", POLICIES)
every_network = pytest.mark.parametrize("network", NETWORKS)


@every_policy
@every_network
def test_shapes_and_determinism(store, policy_name, network):
    policy = make(store, policy_name, network).eval()
    obs = make_batch(store, 3).obs
    noise = policy.draw_noise(3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        chunk = policy.sample(obs, noise=noise)
        assert chunk.shape == (3, policy.horizon, 3)
        assert torch.equal(chunk, policy.sample(obs, noise=noise))
        assert not torch.equal(chunk, policy.sample(obs, noise=policy.draw_noise(3)))
        actions = policy.act(obs, noise=noise)
    assert actions.shape == (3, policy.n_action_steps, 3)
    assert torch.equal(actions, policy.unnormalise_action(chunk)[:, 1:5])
    assert actions.abs().max() <= 1
    tokens = policy.encode(obs)
    assert tokens.shape[:2] == (3, policy.n_obs_steps)


@every_policy
@every_network
def test_save_and_load_act_alike(store, tmp_path, policy_name, network):
    policy = make(store, policy_name, network, seed=3).eval()
    save_policy(tmp_path / "ckpt", policy, config(policy_name, network), {"step": 7})
    loaded = load_policy(tmp_path / "ckpt")
    obs, noise = make_batch(store, 2).obs, policy.draw_noise(2)
    assert torch.equal(policy.act(obs, noise=noise), loaded.act(obs, noise=noise))
    assert loaded.spec == policy.spec


@every_policy
@every_network
def test_overfits_one_batch(store, policy_name, network):
    """Samples come close to the two chunks that were learned; of diffusion, which takes longer, the loss falls."""
    policy = make(store, policy_name, network, noise_per_obs=8)
    algo = BC(policy, train_steps=500, lr=3e-3, lr_warmup_steps=5, seed=1)
    batch = make_batch(store, 2)
    noise = policy.draw_noise(2, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def distance():
        policy.eval()
        off = policy.sample(batch.obs, noise=noise) - policy.normaliser.normalise("action", batch.action)
        policy.train()
        return float(off.square().mean())

    before = distance()
    losses = [float(algo.update(batch)["loss"]) for _ in range(100)]
    if "diffusion" in policy_name:
        assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    else:
        assert distance() < 0.5 * before


@every_policy
@every_network
def test_learns_in_mixed_precision(store, policy_name, network):
    """The same loss but for rounding, and gradients in float32."""
    check_mixed_precision(make(store, policy_name, network), make_batch(store, 16))


@every_policy
@pytest.mark.parametrize(
    "options",
    [{"cfg_dropout": 0.3, "cfg_scale": 2.0}, {"dispersive": 0.5}, {"reconstruction": 0.1}, {"prefix": 2}],
    ids=lambda options: next(iter(options)),
)
def test_options_learn_in_mixed_precision(state_store, policy_name, options):
    check_mixed_precision(make(state_store, policy_name, **options), make_batch(state_store, 16))


def check_mixed_precision(policy, batch):
    exact, _ = policy.loss(batch, BatchRng(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = policy.loss(batch, BatchRng(5))
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0)
    rounded.backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)


def test_rows_of_a_batch_do_not_mix(state_store):
    policy = make(state_store, "flow", "unet1d").eval()
    obs, noise = make_batch(state_store, 5).obs, policy.draw_noise(5)
    together = policy.act(obs, noise=noise)
    alone = torch.cat([policy.act({k: v[i : i + 1] for k, v in obs.items()}, noise=noise[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("policy_name", ["flow", "diffusion-epsilon"])
def test_noise_per_obs_is_the_mean_over_repeated_observations(state_store, policy_name):
    """One batch with four draws per observation = the batch with every observation four times."""
    batch = make_batch(state_store, 6)
    policy = make(state_store, policy_name, noise_per_obs=4)
    repeated = type(batch)(
        {k: v.repeat_interleave(4, 0) for k, v in batch.obs.items()},
        batch.action.repeat_interleave(4, 0),
        batch.is_pad.repeat_interleave(4, 0),
    )
    shared, _ = policy.loss(batch, BatchRng(5))
    policy.head.noise_per_obs = 1
    separate, _ = policy.loss(repeated, BatchRng(5))
    torch.testing.assert_close(shared, separate)


def test_masked_padding_leaves_padded_actions_out(state_store):
    batch = make_batch(state_store, 20)  # the last windows reach beyond the episode
    assert batch.is_pad.any()
    policy = make(state_store, mask_padding=True)
    changed = batch.action.masked_fill(batch.is_pad.unsqueeze(-1), 0.9)
    assert not torch.equal(changed, batch.action)

    def gradient(action):
        policy.zero_grad()
        policy.head.t_distribution = "uniform"
        loss, _ = policy.loss(batch._replace(action=action), BatchRng(0))
        loss.backward()
        return loss.detach()

    # The padded inputs still reach the network, so compare through a network that looks at one step at a time.
    policy.head.network = _PerStep(3)
    assert torch.allclose(gradient(batch.action), gradient(changed))
    policy.head.mask_padding = False
    assert not torch.allclose(gradient(batch.action), gradient(changed))


class _PerStep(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.linear = torch.nn.Linear(dim, dim)

    def prepare(self, cond):
        return cond.flatten(1)

    def forward(self, x, t, prepared):
        return self.linear(x)


def test_contract_names_every_difference(state_store):
    policy = make(state_store)
    check_contract(policy, policy.spec)
    other = TaskSpec("other", {"agent_pos": FieldSpec((9,), "float32", "state")}, FieldSpec((4,), "float32", "action"))
    with pytest.raises(ContractError, match=r"'state' \(7,\) float32 is missing.*action is \(4,\), expected \(3,\)"):
        check_contract(policy, other)
    with pytest.raises(ContractError, match=r"'state' has shape \(2, 2, 6\); expected \(B, 2, 7\)"):
        policy.act({"state": torch.zeros(2, 2, 6)})


def test_too_long_a_slice_is_refused(state_store):
    policy = make(state_store)
    with pytest.raises(ContractError, match="n_action_steps=8 does not fit"):
        type(policy)(
            policy.spec, policy.normaliser, policy.encoder, policy.head, n_obs_steps=2, horizon=8, n_action_steps=8
        )


def test_corrupt_checkpoints(tmp_path, state_store):
    with pytest.raises(DataError, match="No checkpoint at"):
        load_policy(tmp_path / "nothing")
    policy = make(state_store)
    folder = tmp_path / "c"
    save_policy(folder, policy, config("flow", "mlp"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
        load_policy(folder)
    (folder / "config.json").write_text('{"schema_version": 99}')
    with pytest.raises(DataError, match="schema_version 99"):
        load_policy(folder)


def test_a_replaced_checkpoint_is_never_half(tmp_path, state_store):
    policy = make(state_store)
    for step in range(2):
        save_policy(tmp_path / "run" / "checkpoint", policy, config("flow", "mlp"), {"step": step})
    (tmp_path / "run" / "checkpoint").rename(tmp_path / "run" / "checkpoint.old")  # killed between the two renames
    assert load_policy(tmp_path / "run") is not None


def test_images_are_cropped_at_random_only_in_training(tmp_path):
    store = make_store(tmp_path / "d.zarr", ("rgb",))
    policy = make(store)
    obs = make_batch(store, 4).obs
    with torch.no_grad():
        assert not torch.equal(policy.encode(obs, BatchRng(0)), policy.encode(obs, BatchRng(1)))
        policy.eval()
        assert torch.equal(policy.encode(obs, BatchRng(0)), policy.encode(obs, BatchRng(1)))
