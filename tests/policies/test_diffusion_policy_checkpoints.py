"""Diffusion Policy's .ckpt files, written here in its layout: what is in them, and what must never run.

The U-Net on vectors; the other kinds are in test_diffusion_policy_kinds.py.
"""

import contextlib
import os
import pickle
import zipfile

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from data.errors import ConfigError, DataError
from policies.checkpoint import load_policy, read_config
from policies.foreign.unpickle import Archive
from tests.policies.diffusion_policy_parts import Unet

TO, TA, H, DO, DA = 2, 3, 8, 5, 2
CONFIG = {
    "n_obs_steps": TO,
    "task": {"name": "pusht_lowdim"},
    "training": {"use_ema": True, "device": "cuda:0"},
    "policy": {
        "_target_": "diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
        "model": {
            "_target_": "diffusion_policy.model.diffusion.conditional_unet1d.ConditionalUnet1D",
            "input_dim": DA, "local_cond_dim": None, "global_cond_dim": TO * DO, "diffusion_step_embed_dim": 16,
            "down_dims": [8, 16], "kernel_size": 5, "n_groups": 4, "cond_predict_scale": True,
        },
        "noise_scheduler": {
            "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler", "num_train_timesteps": 20,
            "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2",
            "variance_type": "fixed_small", "clip_sample": True, "prediction_type": "epsilon",
        },
        "horizon": H, "obs_dim": DO, "action_dim": DA, "n_action_steps": TA, "n_obs_steps": TO,
        "num_inference_steps": 20, "obs_as_local_cond": False, "obs_as_global_cond": True,
        "pred_action_steps_only": False, "oa_step_convention": True,
    },
}  # fmt: skip


def changed(**changes):
    """CONFIG with other values, "policy__model__n_groups" for policy.model.n_groups; "..." removes one."""
    config = OmegaConf.create(CONFIG)
    for name, value in changes.items():
        *path, last = name.split("__")
        section = config
        for part in path:
            section = section[part]
        if value is ...:
            section.pop(last)
        else:
            section[last] = value
    return config


def payload(config=None, seed=0):
    config = changed() if config is None else config
    torch.manual_seed(seed)
    states = {}
    for which in ("model", "ema_model"):
        model = Unet(OmegaConf.to_container(config.policy.model))
        state = {f"model.{k}": v.clone() for k, v in model.state_dict().items()}
        for key, n in (("obs", DO), ("action", DA)):
            state[f"normalizer.params_dict.{key}.scale"] = 0.5 + torch.rand(n)
            state[f"normalizer.params_dict.{key}.offset"] = torch.randn(n)
            state[f"normalizer.params_dict.{key}.input_stats.min"] = torch.zeros(n)
        states[which] = {**state, "_dummy_variable": torch.empty(0), "mask_generator._dummy_variable": torch.empty(0)}
    states["optimizer"] = {"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": []}
    return {"cfg": config, "state_dicts": states, "pickles": {"epoch": pickle.dumps(5)}}


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize(("prediction", "scale"), [("epsilon", True), ("sample", False)])
def test_the_same_noise_gives_the_same_actions(tmp_path, scheduler, prediction, scale):
    config = changed(
        policy__noise_scheduler___target_=f"diffusers.{scheduler.__name__}",
        policy__noise_scheduler__prediction_type=prediction,
        policy__model__cond_predict_scale=scale,
        policy__num_inference_steps=10,
    )
    content = payload(config)
    torch.save(content, tmp_path / "a.ckpt")
    policy = load_policy(tmp_path / "a.ckpt")
    assert {k: f.shape for k, f in policy.spec.obs.items()} == {"obs": (DO,)}
    state = content["state_dicts"]["ema_model"]
    model = Unet(CONFIG["policy"]["model"] | {"cond_predict_scale": scale})
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    scale_, offset = (state[f"normalizer.params_dict.obs.{n}"] for n in ("scale", "offset"))
    obs, noise = torch.randn(2, TO, DO), torch.randn(2, H, DA)
    torch.manual_seed(3)
    options = {k: v for k, v in CONFIG["policy"]["noise_scheduler"].items() if k not in ("_target_", "variance_type")}
    steps, z = scheduler(**{**options, "prediction_type": prediction}), noise
    steps.set_timesteps(10)
    with torch.no_grad():
        for k in steps.timesteps:
            z = steps.step(model(z, k, (obs * scale_ + offset).flatten(1)), k, z).prev_sample
    scale_, offset = (state[f"normalizer.params_dict.action.{n}"] for n in ("scale", "offset"))
    wanted = ((z - offset) / scale_)[:, TO - 1 : TO - 1 + TA]
    if scheduler is DDPMScheduler:
        torch.manual_seed(3)
        noise = torch.stack([noise, *(torch.randn_like(noise) for _ in range(9))], 1)
    torch.testing.assert_close(policy.act({"obs": obs}, noise=noise), wanted, rtol=0, atol=1e-5)


def test_whose_weights_and_names(tmp_path):
    torch.save(payload(changed(training__use_ema=False)), tmp_path / "plain.ckpt")
    (tmp_path / "checkpoints").mkdir()
    torch.save(payload(), tmp_path / "checkpoints" / "latest.ckpt")
    ema, plain = load_policy(tmp_path), load_policy(tmp_path / "plain.ckpt")
    assert not torch.equal(
        ema.state_dict()["head.network.film_time.bias"], plain.state_dict()["head.network.film_time.bias"]
    )
    assert read_config(tmp_path)["meta"]["source"].endswith("ema_model")
    parts = load_policy(tmp_path, features={"obs": {"goal": 2, "agent": 3}})
    assert {k: f.shape for k, f in parts.spec.obs.items()} == {"goal": (2,), "agent": (3,)}
    with pytest.raises(ConfigError, match=r"has no feature 'observation'"):
        load_policy(tmp_path, features={"observation": "state"})


REFUSED = {
    "other kind": ({"policy___target_": "x.IbcDfoHybridImagePolicy"}, "is a IbcDfoHybridImagePolicy"),
    "inpainting": ({"policy__obs_as_global_cond": False}, "cfg.policy.obs_as_global_cond must be true"),
    "other slice": ({"policy__oa_step_convention": False}, "oa_step_convention"),
    "no horizon": ({"policy__horizon": ...}, "cfg.policy.horizon=None must be of type int"),
    "unresolved": ({"policy__horizon": "8+0"}, "cfg.policy.horizon='8.0'"),
    "scheduler": ({"policy__noise_scheduler___target_": "x.PNDMScheduler"}, "PNDMScheduler"),
    "variance": ({"policy__noise_scheduler__variance_type": "learned"}, "variance_type='learned' must be one of"),
    "unknown option": ({"policy__noise_scheduler__thresholding": True}, "thresholding=True has no counterpart"),
    "no model": ({"policy__model": None}, "cfg.policy.model is missing"),
    "other size": ({"policy__model__down_dims": [8, 32]}, "expected"),
    "odd horizon": ({"policy__horizon": 7}, "makes no UNet1d"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_named(tmp_path, name):
    changes, message = REFUSED[name]
    content = {**payload(), "cfg": changed(**changes)}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match=message):
        load_policy(tmp_path / "a.ckpt")


@pytest.mark.parametrize("key", ["model.final_conv.1.bias", "normalizer.params_dict.obs.scale"])
def test_weights_that_are_missing_or_left_over(tmp_path, key):
    content = payload()
    value = content["state_dicts"]["ema_model"].pop(key)
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match=rf"a.ckpt .state_dicts.ema_model. has no '{key}'"):
        load_policy(tmp_path / "a.ckpt")
    content["state_dicts"]["ema_model"] |= {key: value, "more": torch.ones(1)}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match="no place for: 'more'"):
        load_policy(tmp_path / "a.ckpt")


class Hostile:
    """Runs a command when unpickled as usual."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_in_it_is_run(tmp_path):
    mark = tmp_path / "it ran"
    hostile = Hostile(f"touch '{mark}'")
    content = payload()
    content["pickles"]["hook"] = hostile
    torch.save(content, tmp_path / "a.ckpt")
    assert load_policy(tmp_path / "a.ckpt").horizon == H  # what is beside the weights does not matter
    for place in ("cfg", "state_dicts"):
        torch.save({**content, place: hostile}, tmp_path / "a.ckpt")
        with pytest.raises(DataError, match=r"a\.ckpt"):
            load_policy(tmp_path / "a.ckpt")
    content["state_dicts"]["ema_model"]["model.final_conv.1.bias"] = hostile
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match="no dictionary of tensors"):
        load_policy(tmp_path / "a.ckpt")
    assert not mark.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert mark.exists()  # the bait is good


def test_a_hostile_pickle_by_hand(tmp_path):
    """A global that is called, called again, built on, and a reference into a storage that is not there."""
    for program in (
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85RX\x01\x00\x00\x00a\x85R.",
        b"\x80\x02cbuiltins\ngetattr\n}b.",
        b"\x80\x02X\x07\x00\x00\x00storageQ.",
    ):
        with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as z:
            z.writestr("a/data.pkl", program)
        with pytest.raises(DataError, match=r"a\.ckpt"):
            load_policy(tmp_path / "a.ckpt")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files(tmp_path, data):
    file, whole = tmp_path / "a.ckpt", tmp_path / "whole.ckpt"
    if not whole.exists():
        torch.save(payload(), whole)
    raw = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    with contextlib.suppress(DataError, ConfigError):  # and nothing else
        load_policy(file)


def test_sizes_that_lie(tmp_path):
    torch.save(payload(), tmp_path / "whole.ckpt")
    with zipfile.ZipFile(tmp_path / "whole.ckpt") as z, zipfile.ZipFile(tmp_path / "a.ckpt", "w") as out:
        for info in z.infolist():
            bomb = "/data/" in info.filename
            kind = zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED
            out.writestr(info.filename, bytes(1 << 16) if bomb else z.read(info), kind)
    with pytest.raises(DataError, match="is compressed"):
        load_policy(tmp_path / "a.ckpt")
    assert isinstance(Archive(tmp_path / "whole.ckpt").content, dict)
