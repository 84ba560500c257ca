"""Kinds of observations, their encoders, and how they are fused."""

import colorsys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from algos.bc import BC
from algos.features import LearnedFeatures
from data.errors import ConfigError
from data.spec import FieldSpec
from policies.build import normaliser_modes
from policies.encoders.augment import ColourJitter, hue_rotation, jitter, shift
from policies.encoders.force import ForceEncoder
from policies.encoders.image import ImageEncoder
from policies.encoders.obs import ObsEncoder
from policies.encoders.resnet import ResNet
from policies.encoders.vector import LanguageEncoder
from policies.encoders.vit import ViT
from policies.rng import BatchRng
from tests.policies.conftest import ENCODER, FIELDS, make, make_batch, make_store, task

B, TO = 3, 2
TINY = {
    **ENCODER,
    "rgb": {**ENCODER["rgb"], "backbone": "vit", "vit": {"patch": 16, "dim": 8, "n_layers": 1, "n_heads": 1}},
}


def observe(fields, seed=0, to=TO, b=B):
    """Random normalised observations."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for key, f in fields.items():
        if f.dtype == "uint8":
            out[key] = torch.randint(256, (b, to, *f.shape), generator=g, dtype=torch.uint8)
        elif f.dtype == "int64":
            out[key] = torch.randint(3, (b, to, *f.shape), generator=g)
        else:
            out[key] = torch.randn(b, to, *f.shape, generator=g)
    return out


def encoder_of(*keys, seed=0, **changes):
    torch.manual_seed(seed)
    return ObsEncoder({k: FIELDS[k] for k in keys}, {**TINY, "pointcloud": {"out_dim": 4, "hidden": [8]}, **changes})


# ---------------------------------------------------------------------- fusion


@pytest.mark.parametrize("fusion", ["concat", "tokens", "gated"])
def test_token_mask_tells_where_every_key_goes(fusion):
    """By brute force: the entries that change with one key alone are those the mask names."""
    keys = ("state", "goal", "pointcloud", "force", "language")
    encoder = encoder_of(*keys, fusion=fusion, token_dim=8).eval()
    fields = {k: FIELDS[k] for k in keys}
    obs, other = observe(fields), observe(fields, seed=1)
    with torch.no_grad():
        tokens = encoder(obs)
        assert tokens.shape[1:] == encoder.token_shape(TO) == encoder.token_mask([], TO).shape
        for key in keys:
            changed = (encoder({**obs, key: other[key]}) != tokens).any(0)
            mask = encoder.token_mask([key], TO)
            assert (changed & mask).sum() > 0.7 * mask.sum()  # the rest are silent units
            assert not (changed & ~mask).any()
        masks = torch.stack([encoder.token_mask([key], TO) for key in keys])
        assert (masks.sum(0) == 1).all()
        assert torch.equal(masks[0] | masks[3], encoder.token_mask(["state", "force"], TO))
        assert encoder.token_mask(None, TO).all()
    with pytest.raises(ConfigError, match=r"Unknown observation 'gaol'.*'goal'"):
        encoder.token_mask(["gaol"], TO)


def test_gates_start_open_and_follow_the_force_of_their_frame():
    keys = ("state", "force")
    concat, gated = encoder_of(*keys), encoder_of(*keys, fusion="gated").eval()
    gated.load_state_dict(concat.state_dict(), strict=False)
    obs = observe({k: FIELDS[k] for k in keys})
    torch.testing.assert_close(gated(obs), concat(obs))
    torch.nn.init.normal_(gated.fusion.gate.weight)
    pushed = obs["force"].clone()
    pushed[:, -1] += 1.0
    change = (gated({**obs, "force": pushed}) != gated(obs)).any(0)
    state = gated.token_mask(["state"], TO)
    assert change[1][state[1]].float().mean() > 0.7  # the states' features of the pushed frame
    assert not change[0].any()
    with pytest.raises(ConfigError, match="gated needs an observation of kind force"):
        encoder_of("state", fusion="gated")
    with pytest.raises(ConfigError, match=r"Unknown encoder.fusion 'token'.*'tokens'"):
        encoder_of("state", fusion="token")
    with pytest.raises(ConfigError, match=r"Unknown option 'encoder.fussion'.*'fusion'"):
        encoder_of("state", fussion="tokens")


def test_tokens_tell_frames_and_keys_apart():
    encoder = encoder_of("state", "force", fusion="tokens", token_dim=8)
    same = torch.ones(1, TO, 7)
    tokens = encoder({"state": same, "force": torch.ones(1, TO, 8, 6)})[0]
    assert tokens.shape == (4, 8)
    assert torch.cdist(tokens, tokens).fill_diagonal_(1).min() > 0.1


# ---------------------------------------------------------------------- force


def test_force_features_are_causal_and_see_the_whole_history():
    torch.manual_seed(0)
    encoder = ForceEncoder((6,), width=8, n_layers=3, out_dim=4).double()
    x = torch.randn(1, 12, 6, dtype=torch.float64, requires_grad=True)
    for t in (0, 5, 11):
        (grad,) = torch.autograd.grad(encoder(x)[0, t].sum(), x)
        seen = torch.nonzero(grad[0].abs().sum(-1)).flatten().tolist()
        assert seen == list(range(max(0, t - 7), t + 1))
    history = ForceEncoder((8, 6), width=8, n_layers=3, out_dim=4).double()
    history.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(history(x[:, None, :8])[:, 0], encoder(x[:, :8])[:, -1])
    with pytest.raises(ValueError, match="n_layers=2 see 4 readings, but there are 8"):
        ForceEncoder((8, 6), n_layers=2)


# ---------------------------------------------------------------------- goals and language


def test_goals_are_encoded_once_and_cropped_by_themselves():
    fields = {"rgb": FIELDS["rgb"], "goal": FieldSpec((64, 64, 3), "uint8", "goal")}
    encoder = ObsEncoder(fields, {**TINY, "goal": {"shared": True}})
    assert encoder.encoders["rgb"] is encoder.encoders["goal"]
    x = observe(fields)["rgb"][:, -1:].expand(-1, TO, -1, -1, -1)
    features = encoder({"rgb": x, "goal": x}, BatchRng(0)).unflatten(-1, (2, -1))
    assert not torch.equal(features[:, :, 0], features[:, :, 1])  # other crops
    assert torch.equal(features[:, 0], features[:, 1])  # but one for all frames
    encoder.eval()
    features = encoder({"rgb": x, "goal": x}).unflatten(-1, (2, -1))
    torch.testing.assert_close(features[:, :, 0], features[:, :, 1])
    assert normaliser_modes(task(["goal"]))["goal"] == "minmax"
    own = ObsEncoder(fields, TINY)
    assert own.encoders["rgb"] is not own.encoders["goal"]
    with pytest.raises(ConfigError, match="no rgb observation"):
        ObsEncoder({"goal": fields["goal"]}, {**TINY, "goal": {"shared": True}})


def test_language_by_path_by_number_and_as_observed(tmp_path):
    table = torch.randn(3, 5)
    np.save(tmp_path / "one.npy", table[1].numpy())
    save_file({"embeddings": table}, tmp_path / "all.safetensors")
    torch.manual_seed(0)
    seen = LanguageEncoder(5, out_dim=4)
    numbered = LanguageEncoder(1, out_dim=4, path=str(tmp_path / "all.safetensors"))
    numbered.load_state_dict({**seen.state_dict(), "table": table})
    torch.testing.assert_close(numbered(torch.tensor([[1], [2]])), seen(table[1:]))

    options = {"language": {"path": str(tmp_path / "one.npy"), "out_dim": 4}, "state": {"hidden": [8]}}
    given = ObsEncoder({"state": FIELDS["state"]}, options)
    (tmp_path / "one.npy").unlink()
    rebuilt = ObsEncoder({"state": FIELDS["state"]}, given.options)  # from what a checkpoint holds
    rebuilt.load_state_dict(given.state_dict())
    obs = observe({"state": FIELDS["state"]})
    tokens = given(obs)
    assert torch.equal(tokens, rebuilt(obs))
    torch.testing.assert_close(tokens[0, 0, 8:], given.encoders["language"](torch.zeros(1, 1))[0])
    assert given.token_mask(["language"], TO).sum() == TO * 4
    with pytest.raises(ConfigError, match=r"one.npy cannot be read"):
        ObsEncoder({"state": FIELDS["state"]}, options)
    with pytest.raises(ConfigError, match="must be their number"):
        ObsEncoder({"language": FIELDS["language"]}, {"language": {"path": str(tmp_path / "all.safetensors")}})


# ---------------------------------------------------------------------- cameras


def test_cameras_share_an_encoder_or_do_not():
    keys = ("rgb_left", "rgb_right")
    shared = encoder_of(*keys, rgb={**TINY["rgb"], "shared": True})
    separate = encoder_of(*keys)
    count = [sum(p.numel() for p in e.parameters()) for e in (shared, separate)]
    assert 2 * count[0] == count[1]
    obs = observe({"rgb_left": FIELDS["rgb_left"]})["rgb_left"]
    left, right = shared.eval()({"rgb_left": obs, "rgb_right": obs}).chunk(2, -1)
    assert torch.equal(left, right)
    other = FieldSpec((48, 64, 3), "uint8", "rgb")
    with pytest.raises(ConfigError, match=r"'b' \(48, 64, 3\) and 'rgb' .* cannot share"):
        ObsEncoder({"rgb": FIELDS["rgb"], "b": other}, {"rgb": {**TINY["rgb"], "shared": True}})


def test_colour_and_depth_as_four_channels(tmp_path):
    fused = {"rgb": {**TINY["rgb"], "with_depth": True, "out_dim": 6}}
    encoder = encoder_of("rgb", "depth", **fused)
    assert list(encoder.encoders) == ["rgb"]
    assert encoder.encoders["rgb"].backbone.embed.in_channels == 4
    obs = observe({k: FIELDS[k] for k in ("rgb", "depth")})
    assert torch.equal(encoder.token_mask(["depth"], TO), encoder.token_mask(["rgb"], TO))

    # What is cropped and scaled: depth stays in metres and moves with the colours.
    seen = []
    encoder.encoders["rgb"].backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    position = torch.arange(64.0).expand(B, TO, 64, 64)
    encoder({"rgb": position[..., None].expand(-1, -1, -1, -1, 3), "depth": position}, BatchRng(0))
    torch.testing.assert_close((seen[0][:, 0] + 1) * 127.5, seen[0][:, 3], atol=1e-4, rtol=0)
    assert len({float(x) for x in seen[0][:, 3, 0, 0]}) > 1
    assert encoder(obs).shape == (B, TO, 6)
    with pytest.raises(ConfigError, match=r"'rgb_left' .* needs the depth of the same camera, 'depth_left'"):
        encoder_of("rgb_left", "depth", **fused)

    store = make_store(tmp_path / "d.zarr", ("rgb", "depth", "goal"))
    policy = make(store, encoder={**TINY, **fused})
    learned, sample = LearnedFeatures(policy, shift=3), make_batch(store, 4).obs
    sample["depth"] = sample["rgb"][..., 0].float()
    moved = []
    learned.encoder.encoders["rgb"].backbone.register_forward_pre_hook(lambda module, args: moved.append(args[0]))
    learned.augmented(sample, torch.Generator().manual_seed(0))
    learned(sample)
    torch.testing.assert_close((moved[0][:, 0] + 1) * 127.5, moved[0][:, 3], atol=1e-4, rtol=0)
    assert not torch.equal(*moved)


@pytest.mark.parametrize("relative_to", [None, "state"])
def test_coloured_clouds_end_to_end(tmp_path, relative_to):
    """Positions and colours are normalised per channel; offsets are of positions alone; the policy learns from both."""
    store = make_store(tmp_path / "d.zarr", ("state", "coloured"))
    options = {**ENCODER, "pointcloud": {**ENCODER["pointcloud"], "relative_to": relative_to}}
    policy = make(store, encoder=options)
    obs = make_batch(store, 4).obs
    assert policy.encoder.encoders["coloured"].linears[0].in_features == (9 if relative_to else 6)
    normalised = policy.normaliser.normalise("coloured", obs["coloured"])
    assert normalised.abs().max() <= 1
    assert (normalised.amax((0, 1, 2)) > 0.5).all()
    if relative_to:
        seen = policy.encoder.relative(obs, policy.normaliser.normalise)["coloured"]
        assert torch.equal(seen[..., :6], normalised)
        offset = obs["coloured"][..., :3] - obs["state"][:, :, None, :3]
        torch.testing.assert_close(seen[..., 6:], offset / policy.normaliser.statistic("coloured", "scale")[:3])
    painted = obs["coloured"].clone()
    painted[..., 3:] = painted[..., 3:].flip(-1)
    assert not torch.equal(policy.encode(obs), policy.encode({**obs, "coloured": painted}))
    algo = BC(policy, train_steps=100, lr=3e-3, lr_warmup_steps=1)
    assert float(algo.update(make_batch(store, 4))["grad_norm"]) > 0


# ---------------------------------------------------------------------- backbones


def test_backbones_differ_in_depth_and_reach_every_weight():
    n = {name: sum(p.numel() for p in ImageEncoder(backbone=name).parameters()) for name in ("resnet18", "resnet34")}
    assert 11e6 < n["resnet18"] < 11.4e6  # 11.2 M and 21.3 M without classifiers
    assert 21e6 < n["resnet34"] < 21.5e6
    assert len(ResNet(blocks=(1, 2, 1, 1), width=4).stages[1]) == 2
    torch.manual_seed(0)
    vit = ViT(3, patch=8, dim=16, n_layers=2, n_heads=2)
    x = torch.randn(2, 3, 32, 40)
    vit(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vit.parameters())
    with torch.no_grad():  # positions are seen: the same patches elsewhere are another image
        assert not torch.allclose(vit(x), vit(x.roll(8, -1)), atol=1e-3)
    with pytest.raises(ConfigError, match="backbone=resnet50 must be one of resnet18"):
        encoder_of("rgb", rgb={"backbone": "resnet50"})
    with pytest.raises(ConfigError, match="pool=max must be keypoints or mean"):
        encoder_of("rgb", rgb={"pool": "max"})
    with pytest.raises(ConfigError, match=r"vit.dim=6 must be a multiple of 4"):
        encoder_of("rgb", rgb={"backbone": "vit", "vit": {"dim": 6}})


# ---------------------------------------------------------------------- augmentation


def test_shift_and_crop_take_one_window_of_the_padded_image():
    x = torch.randint(256, (20, 2, 6, 7), dtype=torch.uint8)
    offset = torch.stack([torch.randint(7, (20,)), torch.randint(8, (20,))])
    padded = torch.nn.functional.pad(x.float(), (2, 2, 2, 2), mode="replicate")
    out = shift(x, offset, 2, (4, 4))
    for image, whole, (i, j) in zip(out, padded, offset.T.tolist(), strict=True):
        assert torch.equal(image.float(), whole[:, i : i + 4, j : j + 4])


def test_jitter_against_its_definitions():
    x = torch.rand(2, 3, 3, 4, 5)
    turn = torch.tensor([1 / 3, -0.2])
    torch.testing.assert_close(jitter(x, {"brightness": torch.tensor([0.0, -0.5])})[1], 0.5 * x[1])
    luma = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(2, keepdim=True)
    grey = jitter(x, {"saturation": torch.full((2,), -1.0)})
    torch.testing.assert_close(grey, luma.expand_as(x))
    flat = jitter(x, {"contrast": torch.full((2,), -1.0)})
    torch.testing.assert_close(flat, luma.mean((1, 3, 4), keepdim=True).expand_as(x))
    # Hue: greys and luma stay, a whole turn is none, and colours turn as in HSV.
    maps = hue_rotation(torch.cat([turn, torch.tensor([0.0, 1.0])]))
    torch.testing.assert_close(maps.sum(2), torch.ones(4, 3))
    torch.testing.assert_close(maps[2:], torch.eye(3).expand(2, 3, 3), atol=1e-6, rtol=0)
    weights = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(weights @ maps[0], weights)
    red = maps[0] @ torch.tensor([0.6, 0.4, 0.4])
    hue = colorsys.rgb_to_hsv(*red.tolist())[0]
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.07


def test_jitter_is_the_same_for_all_frames_and_resumes():
    colours = ColourJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
    x = torch.rand(4, 1, 3, 5, 5).expand(-1, 3, -1, -1, -1)
    rng = BatchRng(0)
    out = colours(x, rng)
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
    assert len({float(v) for v in (out - x).mean((1, 2, 3, 4))}) == 4
    state = {k: v.clone() for k, v in rng.state_dict().items()}
    after = colours(x, rng)
    rng.load_state_dict(state)
    assert torch.equal(after, colours(x, rng))
    rank = BatchRng(0, rank=1, world_size=2)
    torch.testing.assert_close(colours(x[2:], rank), out[2:])
    assert not ColourJitter()
    with pytest.raises(ValueError, match=r"jitter\.hue=0\.7"):
        ColourJitter(hue=0.7)


def test_augmentation_that_is_off_draws_nothing():
    """A policy without it keeps its random stream, and with it trains on other images than it acts on."""
    x = observe({"rgb": FIELDS["rgb"]})["rgb"]
    plain, strong = (
        encoder_of("rgb", rgb={**TINY["rgb"], **more}) for more in ({}, {"shift": 4, "jitter": {"hue": 0.2}})
    )
    rngs = [BatchRng(0) for _ in range(3)]
    plain({"rgb": x}, rngs[0])
    strong({"rgb": x}, rngs[1])
    rngs[2].rand(B, 2)
    assert torch.equal(rngs[0].rand(1), rngs[2].rand(1))
    assert not torch.equal(rngs[1].rand(1), rngs[2].rand(1))
    plain.eval()
    assert torch.equal(plain({"rgb": x}, BatchRng(1)), strong.eval()({"rgb": x}))


def test_every_kind_is_reconstructed_or_left_out(tmp_path):
    store = make_store(tmp_path / "d.zarr", ("force", "goal_image", "language", "rgb_left", "state"))
    policy = make(store, encoder=TINY, reconstruction=0.1)
    assert set(policy.reconstruction.decoders) == {"force", "goal_image", "rgb_left", "state"}
    loss, metrics = policy.loss(make_batch(store, 4), BatchRng(0))
    loss.backward()
    assert torch.isfinite(metrics["reconstruction"])
