"""Diffusion Policy's image policies and transformers: the same noise gives the same actions; what is refused.

Judged by the published architecture written down once more and, in the slow test, by the encoders of robomimic 0.2 and
torchvision themselves: benchmarks/peers/install_robomimic.sh, and DEFT_PEERS=its environment where that is not
.venv-peers.
"""

import contextlib
import copy
import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from data.errors import ConfigError, DataError
from policies.checkpoint import load_policy, read_config, save_policy
from tests.policies.diffusion_policy_encoders import MultiImage, Robomimic, width
from tests.policies.diffusion_policy_parts import (
    DDIM,
    DDPM,
    IMAGE_CASES,
    ONE,
    Published,
    hybrid,
    multi_image,
    ours,
    payload,
    transformer,
    watched,
)

TRANSFORMERS = {
    "mlp": transformer(DDIM),
    "mlp_everywhere": transformer(DDPM, causal_attn=False),
    "encoder": transformer(DDPM, n_cond_layers=2),
    "encoder_everywhere": transformer(DDIM, n_cond_layers=1, causal_attn=False, n_head=4),
}
IMAGES = {name: IMAGE_CASES[name] for name in ("hybrid", "image", "image_shared")}


def published(policy, seed=0):
    """In eval mode, with random weights."""
    torch.manual_seed(seed)
    if "shape_meta" not in policy:
        return Published(policy).eval()
    encoder = MultiImage(policy["obs_encoder"]) if "obs_encoder" in policy else Robomimic(policy)
    return Published(policy, encoder, width(policy)).eval()


def saved(policy, file):
    module = published(policy)
    torch.save(payload(policy, module), file)
    return module


def compared(loaded, policy, module):
    obs, noise = watched(policy)
    wanted, chunk = module.act(obs, noise, seed=3)
    assert (chunk.abs() < 0.999).float().mean() > 0.3, "the actions say nothing: they are at the limits"
    got = loaded.act(obs, noise=ours(policy, noise, seed=3))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMERS | IMAGES)
def test_the_same_noise_gives_the_same_actions(tmp_path, name):
    policy = (TRANSFORMERS | IMAGES)[name]
    module = saved(policy, tmp_path / "a.ckpt")
    loaded = load_policy(tmp_path / "a.ckpt")
    compared(loaded, policy, module)
    if "shape_meta" in policy:
        fields = policy["shape_meta"]["obs"]
        shapes = {k: (*f["shape"][1:], 3) if f.get("type") == "rgb" else tuple(f["shape"]) for k, f in fields.items()}
        assert {k: f.shape for k, f in loaded.spec.obs.items()} == shapes


def test_it_is_then_an_ordinary_policy(tmp_path):
    """Saved as our own, under other names, two vectors in one and one in two, it acts as before."""
    policy = hybrid("transformer", DDIM, shape_meta=copy.deepcopy(ONE))
    policy["shape_meta"]["obs"]["angle"] = {"shape": [2]}
    module = saved(policy, tmp_path / "a.ckpt")
    names = {"front": "rgb", "pos": {"x": 1, "rest": 2}, "angle": "rest"}
    first, second = load_policy(tmp_path / "a.ckpt"), load_policy(tmp_path / "a.ckpt", features=names)
    compared(first, policy, module)
    obs, noise = watched(policy)
    rest = torch.cat([obs["pos"][..., 1:], obs["angle"]], -1)
    renamed = {"rgb": obs["front"], "x": obs["pos"][..., :1], "rest": rest}
    wanted = first.act(obs, noise=noise)
    torch.testing.assert_close(second.act(renamed, noise=noise), wanted, rtol=0, atol=2e-6)
    save_policy(tmp_path / "ours", second, read_config(tmp_path / "a.ckpt", features=names)["config"])
    assert torch.equal(load_policy(tmp_path / "ours").act(renamed, noise=noise), second.act(renamed, noise=noise))


@pytest.fixture(scope="module")
def contents():
    """What a checkpoint of each kind holds."""
    policies = {
        "transformer": TRANSFORMERS["mlp"],
        "hybrid": hybrid("unet", DDIM, shape_meta=ONE),
        "image": multi_image(DDIM, ONE),
    }
    return {name: (policy, payload(policy, published(policy))) for name, policy in policies.items()}


REFUSED = {
    "inpainting": ("transformer", {"obs_as_cond": False}, "cfg.policy.obs_as_cond must be true"),
    "part": ("transformer", {"pred_action_steps_only": True}, "pred_action_steps_only must be false"),
    "BERT": ("transformer", {"model.time_as_cond": False}, "cfg.policy.model.time_as_cond=False must be true"),
    "heads": ("transformer", {"model.n_head": 3}, "makes no Transformer: width=16 must be a multiple of n_heads=3"),
    "layers": ("transformer", {"model.n_layer": 3}, r"has no 'model.decoder.layers.2"),
    "unmasked": ("transformer", {"model.causal_attn": False}, "no place for: 'model.mask'"),
    "unknown": ("transformer", {"eta": 0.5}, "cfg.policy.eta=0.5 has no counterpart"),
    "random crop": ("hybrid", {"eval_fixed_crop": False}, "eval_fixed_crop=False must be true"),
    "crop": ("hybrid", {"crop_shape": [76, 76]}, "does not fit its images: crop=.76, 76. is larger"),
    "norm": ("hybrid", {"obs_encoder_group_norm": False}, r"has no 'obs_encoder.obs_nets.front.nets.0.nets.1.run"),
    "depth": ("hybrid", {"shape_meta.obs.front.type": "depth"}, "its type is 'depth'"),
    "flat": ("hybrid", {"shape_meta.obs.front.type": "low_dim"}, "obs.front.shape=.3, 48, 57. must be"),
    "more": ("hybrid", {"shape_meta.obs.pos.horizon": 3}, "obs.pos.horizon=3 has no counterpart"),
    "backbone": ("image", {"obs_encoder.rgb_model.name": "resnet50"}, "name='resnet50' must be resnet18 or resnet34"),
    "each": ("image", {"obs_encoder.crop_shape": {"front": [9, 9]}}, r"crop_shape=.* must be one \[height, width\]"),
    "another": ("image", {"obs_encoder._target_": "x.TimmObsEncoder"}, "is a TimmObsEncoder"),
    "other shapes": ("image", {"shape_meta": ONE | {"more": 1}}, "must be the same"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_named(tmp_path, contents, name):
    kind, changes, message = REFUSED[name]
    content = dict(contents[kind][1])
    small = {k: x for k, x in content["state_dicts"]["ema_model"].items() if x.numel() < 20_000}
    content |= {"cfg": copy.deepcopy(content["cfg"]), "state_dicts": {"ema_model": small}}
    for path, value in changes.items():
        *parts, last = path.split(".")
        section = content["cfg"].policy
        for part in parts:
            section = section[part]
        section[last] = value
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match=message):
        load_policy(tmp_path / "a.ckpt")


def leaves(section, path=()):
    """Where the values of a configuration are."""
    if isinstance(section, dict):
        return [leaf for key, value in section.items() for leaf in [(*path, key), *leaves(value, (*path, key))]]
    return [path]


VALUES = st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=3) | st.just([3, 5])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_configurations_that_make_no_sense(tmp_path, contents, data):
    policy, content = contents[data.draw(st.sampled_from(list(contents)))]
    changed = copy.deepcopy(policy)
    *path, last = data.draw(st.sampled_from(leaves(policy)))
    section = changed
    for part in path:
        section = section[part]
    section[last] = data.draw(VALUES | st.just({"a": 1}))
    small = {k: x for k, x in content["state_dicts"]["ema_model"].items() if x.numel() < 20_000}
    cfg = OmegaConf.create({"policy": changed, "training": {"use_ema": True}})
    torch.save({"cfg": cfg, "state_dicts": {"ema_model": small}}, tmp_path / "a.ckpt")
    with contextlib.suppress(DataError, ConfigError):  # and nothing else
        load_policy(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("transformer", "model.cond_pos_emb", torch.zeros(1, 4, 16), r"is \(1, 4, 16\), expected \(1, 3, 16\)"),
        ("hybrid", "obs_encoder.obs_nets.front.nets.1.temperature", torch.tensor([0.5]), "temperature' must be 1"),
        ("hybrid", "normalizer.params_dict.front.scale", torch.ones(3), r"scale' is \(3,\), expected \(1,\)"),
        ("image", "obs_encoder.key_model_map.front.fc.weight", torch.ones(2), "no place for: 'obs_encoder.key_model"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, contents, kind, key, value, message):
    content = contents[kind][1]
    content = {**content, "state_dicts": {"ema_model": {**content["state_dicts"]["ema_model"], key: value}}}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match=message):
        load_policy(tmp_path / "a.ckpt")


# ------------------------------------------------------------------------------------- robomimic and torchvision

PYTHON = Path(os.environ.get("DEFT_PEERS", Path(__file__).parents[2] / ".venv-peers")) / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(
    not any(PYTHON.parents[1].glob("lib/python*/site-packages/robomimic")),
    reason=f"robomimic is not in {PYTHON}: install_robomimic.sh",
)
def test_the_encoders_of_robomimic_and_torchvision(tmp_path):
    script = Path(__file__).with_name("diffusion_policy_judge.py")
    done = subprocess.run([PYTHON, script, tmp_path], capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr
    for name in IMAGE_CASES:
        asked = torch.load(tmp_path / f"{name}.pt")
        got = load_policy(tmp_path / f"{name}.ckpt").act(asked["obs"], noise=asked["noise"])
        torch.testing.assert_close(got, asked["action"], rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
        print(f"{name}: {float((got - asked['action']).abs().max()):.1e}")
