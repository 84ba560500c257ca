"""Networks and encoders against their definitions."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from algos.bc import BC
from configs.loader import load_config
from data.construct import construct, lookup
from data.errors import ConfigError
from policies.build import build_policy
from policies.encoders.augment import crop
from policies.encoders.image import SpatialSoftmax
from policies.encoders.obs import ObsEncoder
from policies.encoders.pointcloud import PointCloudEncoder
from policies.encoders.reconstruction import chamfer
from policies.networks.embed import Sinusoid
from policies.networks.unet1d import UNet1d
from policies.rng import BatchRng
from tests.policies.conftest import ENCODER, config, make, make_batch, make_store, task


def test_critical_points_change_neither_features_nor_gradients():
    torch.manual_seed(0)
    short = PointCloudEncoder(3, hidden=(16, 32, 64), out_dim=8).double()
    whole = copy.deepcopy(short)
    whole.critical_points_only = False
    points = torch.randn(5, 200, 3, dtype=torch.float64)
    target = torch.randn(5, 8, dtype=torch.float64)
    for encoder in (short, whole):
        ((encoder(points) - target) ** 2).sum().backward()
    assert short.critical_points(points).shape[1] < 100
    for a, b in zip(short.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    with torch.no_grad():
        torch.testing.assert_close(short(points), whole._projected_all(points))


def test_point_order_and_repetition_do_not_matter():
    encoder = PointCloudEncoder(3)
    points = torch.randn(2, 50, 3)
    shuffled = points[:, torch.randperm(50)]
    repeated = torch.cat([points, points[:, :20]], 1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(points), encoder(shuffled))
        torch.testing.assert_close(encoder(points), encoder(repeated))


def test_spatial_softmax_finds_a_peak():
    pool = SpatialSoftmax(1, 1)
    torch.nn.init.constant_(pool.to_keypoints.weight, 1.0)
    torch.nn.init.zeros_(pool.to_keypoints.bias)
    x = torch.zeros(1, 1, 5, 9)
    x[0, 0, 1, 6] = 100.0
    torch.testing.assert_close(pool(x), torch.tensor([[0.5, -0.5]]))


def test_crop_takes_the_window():
    x = torch.arange(2 * 3 * 6 * 7).view(2, 3, 6, 7)
    out = crop(x, torch.tensor([0, 2]), torch.tensor([3, 1]), (4, 3))
    assert torch.equal(out[0], x[0, :, 0:4, 3:6])
    assert torch.equal(out[1], x[1, :, 2:6, 1:4])


def test_unet_film_is_one_linear_map_of_time_and_observation():
    """The split FiLM equals a linear layer on mish([time, observation])."""
    net = UNet1d(3, 8, (2, 5), down_dims=(16, 32), time_dim=16)
    t, cond = torch.rand(4), torch.randn(4, 2, 5)
    weight = torch.cat([net.film_time.weight, net.film_cond.weight], 1)
    joint = F.linear(F.mish(torch.cat([net.time(t), cond.flatten(1)], 1)), weight, net.film_time.bias)
    split = net.film_time(F.mish(net.time(t))) + net.prepare(cond)
    torch.testing.assert_close(joint, split)


def test_unet_depends_on_everything():
    net = UNet1d(3, 8, (2, 5), down_dims=(16, 32), time_dim=16)
    x, t, cond = torch.randn(2, 8, 3, requires_grad=True), torch.rand(2), torch.randn(2, 2, 5, requires_grad=True)
    net(x, t, net.prepare(cond))[:, 0].sum().backward()
    assert x.grad is not None
    assert cond.grad is not None
    assert (x.grad.abs().sum((0, 2)) > 0).all()
    assert (cond.grad != 0).all()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("film_scale", [True, False])
def test_unet_horizons(film_scale):
    net = UNet1d(2, 16, (1, 4), down_dims=(8, 16, 24), n_groups=4, time_dim=16, film_scale=film_scale)
    assert net(torch.randn(3, 16, 2), torch.rand(3), net.prepare(torch.randn(3, 1, 4))).shape == (3, 16, 2)
    with pytest.raises(ValueError, match="horizon=6 must be a multiple of 4"):
        UNet1d(2, 6, (1, 4), down_dims=(8, 16, 24))


def test_unknown_options_name_the_nearest(state_store):
    with pytest.raises(ConfigError, match=r"Unknown option 'policy.n_inference_step'.*'n_inference_steps'"):
        make(state_store, n_inference_step=3)
    wrong = {**config("flow", "mlp"), "network": {"name": "unet"}}
    with pytest.raises(ConfigError, match=r"Unknown network 'unet'.*'unet1d'"):
        build_policy(wrong, state_store.task, make(state_store).normaliser)
    deep = {**config("flow", "unet1d"), "network": {"name": "unet1d", "down_dims": [8] * 5}}
    with pytest.raises(ConfigError, match="network: horizon=8 must be a multiple of 16"):
        build_policy(deep, state_store.task, make(state_store).normaliser)
    with pytest.raises(ConfigError, match="head"):
        lookup({"flow": 1}, "glow", "head")
    with pytest.raises(ConfigError, match="thing"):
        construct(UNet1d, {"down_dims": (8,)}, "thing", action_dim=1)


def test_offsets_from_the_gripper_are_in_the_cloud_s_units(tmp_path):
    store = make_store(tmp_path / "d.zarr", ("pointcloud", "state"))
    policy = make(store)
    obs = make_batch(store, 3).obs
    seen = policy.encoder.relative(obs, policy.normaliser.normalise)["pointcloud"]
    scale = policy.normaliser.statistic("pointcloud", "scale")
    offset = (obs["pointcloud"] - obs["state"][:, :, None, :3]) / scale
    torch.testing.assert_close(seen[..., 3:], offset)
    torch.testing.assert_close(seen[..., :3], policy.normaliser.normalise("pointcloud", obs["pointcloud"]))
    with pytest.raises(ConfigError, match="relative_to='gripper' must be an observation"):
        ObsEncoder(policy.spec.obs, {"pointcloud": {"relative_to": "gripper"}})


def test_scenes_are_moved_as_a_whole(tmp_path):
    """Points and positions by one offset a sample, of every size up to the one asked for; offsets to the hand stay."""
    store = make_store(tmp_path / "d.zarr", ("pointcloud", "state"), n_episodes=8)
    cloud = {**ENCODER["pointcloud"], "translate": [0.5, 0.25, 0.0], "positions": {"state": [0]}}
    policy = make(store, encoder={**ENCODER, "pointcloud": cloud})
    obs = make_batch(store, 128).obs
    before = {key: value.clone() for key, value in obs.items()}
    moved = policy.encoder.translated(obs, BatchRng(0))
    assert all(torch.equal(obs[key], before[key]) for key in obs)
    by = moved["state"][:, 0, :3] - obs["state"][:, 0, :3]
    torch.testing.assert_close(moved["state"][..., :3], obs["state"][..., :3] + by[:, None])
    assert torch.equal(moved["state"][..., 3:], obs["state"][..., 3:])
    torch.testing.assert_close(moved["pointcloud"][..., :3], obs["pointcloud"][..., :3] + by[:, None, None])
    largest = torch.tensor([0.5, 0.25, 0.0])
    for end in (by.amax(0), -by.amin(0)):
        assert (end <= largest + 1e-5).all()
        assert (end >= 0.9 * largest).all()
    relative = partial(policy.encoder.relative, normalise=policy.normaliser.normalise)
    torch.testing.assert_close(
        relative(moved)["pointcloud"][..., 3:], relative(obs)["pointcloud"][..., 3:], atol=1e-5, rtol=0
    )


def test_training_sees_moved_scenes_and_acting_does_not(tmp_path):
    store = make_store(tmp_path / "d.zarr", ("pointcloud", "state"))
    cloud = {**ENCODER["pointcloud"], "translate": 0.3, "positions": {"state": [0]}}
    still, moving = make(store), make(store, encoder={**ENCODER, "pointcloud": cloud})
    batch = make_batch(store, 8)
    seen = []
    moving.encoder.encoders["state"].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    losses = [float(moving.loss(batch, BatchRng(seed))[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    noise = torch.randn(8, *still.noise_shape)
    assert torch.equal(still.sample(batch.obs, noise=noise), moving.sample(batch.obs, noise=noise))


@pytest.mark.parametrize(
    ("keys", "cloud", "message"),
    [
        (("pointcloud", "state"), {"translate": -0.1}, "at least 0"),
        (("pointcloud", "state"), {"translate": [0.1, 0.1]}, "at least 0"),
        (("pointcloud", "state"), {"translate": 0.1}, r"where positions .* start in 'state'"),
        (("pointcloud", "state"), {"translate": 0.1, "positions": {"state": [5]}}, "no three numbers at"),
        (("pointcloud", "rgb"), {"translate": 0.1}, "picture 'rgb'"),
    ],
)
def test_scenes_that_cannot_be_moved_are_refused(tmp_path, keys, cloud, message):
    fields = task(keys).obs
    with pytest.raises(ConfigError, match=message):
        ObsEncoder(fields, {**ENCODER, "pointcloud": {"hidden": [16, 32], "out_dim": 16, **cloud}})


def test_chamfer_by_brute_force():
    a, b = torch.randn(2, 5, 3), torch.randn(2, 7, 3)
    forth = [min(float((p - q).square().sum()) for q in y) for x, y in zip(a, b, strict=True) for p in x]
    back = [min(float((p - q).square().sum()) for p in x) for x, y in zip(a, b, strict=True) for q in y]
    torch.testing.assert_close(chamfer(a, b), torch.tensor(sum(forth) / 10 + sum(back) / 14))


@pytest.mark.parametrize("name", ["flow", "meanflow"])
def test_reconstruction_falls_and_leaves_sampling_alone(tmp_path, name):
    store = make_store(tmp_path / "d.zarr", ("rgb", "pointcloud", "depth", "state"))
    policy = make(store, name, reconstruction=0.5)
    algo = BC(policy, train_steps=60, lr=3e-3, lr_warmup_steps=2, seed=1)
    batch = make_batch(store, 4)
    errors = [float(algo.update(batch)["reconstruction"]) for _ in range(25)]
    assert errors[-1] < 0.5 * errors[0]
    plain = make(store, name).eval()
    own = {k: v for k, v in policy.state_dict().items() if not k.startswith("reconstruction")}
    plain.load_state_dict(own)
    noise = policy.draw_noise(4)
    assert torch.equal(policy.eval().act(batch.obs, noise=noise), plain.act(batch.obs, noise=noise))


@pytest.mark.parametrize("network", ["mlp", "unet1d", "transformer", "dit"])
def test_meanflow_s_derivative_is_not_drowned_by_the_embedding_of_its_times(state_store, network):
    """Sinusoids of integer steps change many times faster than they are large, and du/dt passes through them."""

    def ratio(**changes):
        section = load_config("train", ["policy=meanflow"])["policy"]
        whole = {**config("meanflow", network), "policy": {**section, **changes}}
        policy = build_policy(whole, state_store.task, make(state_store).normaliser)
        time = policy.head.network.time
        t = torch.rand(256, 2, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            value, rate = torch.func.jvp(partial(Sinusoid.forward, time), (t,), (torch.ones_like(t),))
        return (rate.square().mean() / value.square().mean()).sqrt()

    assert ratio() < 1
    assert ratio(time_scale=100.0) > 10
