"""Diffusion Policy's own .ckpt files (Chi et al. 2023): the U-Net on low-dimensional observations.

{"cfg": OmegaConf, "state_dicts": {"model", "ema_model", ...}, "pickles"}, read without running the pickle. The facts
about its layout are those of real-stanford/diffusion_policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import DataError
from data.normaliser import Normaliser
from policies.foreign.layout import columns, fields, named, our_maps, targets, unknown_task
from policies.foreign.tensors import Tensors
from policies.foreign.unet import DIFFUSION_POLICY, read_unet
from policies.foreign.unpickle import Archive, plain_config
from policies.networks.unet1d import UNet1d

POLICY = "DiffusionUnetLowdimPolicy"
OBS, ACTION = "obs", "action"
N_GROUPS_OUT = 8
# Of the schedulers' options: what has a counterpart here (None: whatever it is).
SCHEDULER = {
    "_target_": None, "num_train_timesteps": None, "beta_schedule": None, "beta_start": (0.0001,), "beta_end": (0.02,),
    "prediction_type": ("epsilon", "sample"), "clip_sample": (True, False), "variance_type": ("fixed_small",),
    "set_alpha_to_one": (True,), "steps_offset": (0,),
}  # fmt: skip


def read_diffusion_policy(
    file: Path, features: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What config.json and model.safetensors of our own would hold.

    Args:
        file: .ckpt; its EMA weights are taken where it was trained with them.
        features: {"obs": our key, or {key: width} of several side by side}.

    Raises:
        DataError: something is missing, broken, or of a kind that has no counterpart here; named.
    """
    archive = Archive(file)
    if not isinstance(archive.content, Mapping) or not {"cfg", "state_dicts"} <= set(archive.content):
        raise DataError(f"{file} is no checkpoint of Diffusion Policy: it has no 'cfg' and 'state_dicts'.")
    cfg = _Section(file, "cfg", plain_config(archive.content["cfg"]))
    policy = cfg.section("policy")
    kind = str(policy.get("_target_", str)).rsplit(".", 1)[-1]
    if kind != POLICY:
        raise DataError(f"{file}: cfg.policy is a {kind}; of Diffusion Policy's, {POLICY} can be read.")
    expected = {"obs_as_global_cond": True, "obs_as_local_cond": False, "pred_action_steps_only": False,
                "oa_step_convention": True}  # fmt: skip
    for name, wanted in expected.items():
        if policy.get(name, bool) != wanted:
            raise DataError(
                f"{file}: cfg.policy.{name} must be {str(wanted).lower()}: nothing else has a counterpart here."
            )
    sections = _sections(policy)
    obs_dim, action_dim = policy.get("obs_dim", int), policy.get("action_dim", int)
    target = targets({OBS: OBS}, features, str(file))[OBS]
    observed = [named(OBS, (obs_dim,), obs_dim, target, str(file))]
    task = unknown_task(f"diffusion_policy/{file.stem}", fields(observed), action_dim)
    ema = bool(cfg.section("training").options.get("use_ema", False))
    which = "ema_model" if ema else "model"
    states = archive.content["state_dicts"]
    if not isinstance(states, Mapping) or which not in states:
        raise DataError(f"{file} has no state_dicts.{which}.")
    source = Tensors(f"{file} (state_dicts.{which})", archive.tensors(states[which], f"state_dicts.{which}"))
    source.drop(lambda name: name.endswith("_dummy_variable") or ".input_stats." in name)
    maps = {OBS: _map(source, OBS, obs_dim)}
    built = Normaliser.from_maps({**our_maps(observed, maps), ACTION: _map(source, ACTION, action_dim)}, {})
    weights = {f"normaliser.{name}": x for name, x in built.state_dict().items()}
    options = {k: v for k, v in sections["network"].items() if k != "name"}
    to = sections["n_obs_steps"]
    try:
        with torch.device("meta"):
            network = UNet1d(action_dim, sections["horizon"], (to, obs_dim), **options)
    except (ValueError, RuntimeError) as e:
        raise DataError(f"{file}: cfg.policy.model makes no U-Net: {e}.") from e
    unet = read_unet(source, network, DIFFUSION_POLICY, columns(observed, list(task.obs), to))
    source.finish()
    weights |= {f"head.network.{name}": x for name, x in unet.items()}
    meta = {"train_config": sections, "source": f"Diffusion Policy, {file.resolve()}, {which}"}
    return {"config": sections, "task": task.to_dict(), "meta": meta, "shared": {}}, weights


class _Section:
    """A part of the configuration; its complaints name the key."""

    def __init__(self, file: Path, where: str, options: Any):
        if not isinstance(options, dict):
            raise DataError(f"{file}: {where} is missing.")
        self.file, self.where, self.options = file, where, options

    def section(self, name: str) -> _Section:
        return _Section(self.file, f"{self.where}.{name}", self.options.get(name))

    def get(self, name: str, kind: type) -> Any:
        value = self.options.get(name)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not fits or (isinstance(value, int) and kind is int and value < 1):
            raise DataError(f"{self.file}: {self.where}.{name}={value!r:.80} must be of type {kind.__name__}.")
        return value


def _map(source: Tensors, key: str, size: int) -> tuple[Tensor, Tensor]:
    """x * scale + offset as (x - centre) / scale."""
    scale, offset = (source.take(f"normalizer.params_dict.{key}.{n}", (size,)).double() for n in ("scale", "offset"))
    if bool((scale == 0).any()):
        raise DataError(f"{source.file}: 'normalizer.params_dict.{key}.scale' must not be 0.")
    return -offset / scale, 1 / scale


def _sections(policy: _Section) -> dict[str, Any]:
    model, scheduler = policy.section("model"), policy.section("noise_scheduler")
    name = str(scheduler.get("_target_", str)).rsplit(".", 1)[-1]
    if name not in ("DDPMScheduler", "DDIMScheduler"):
        raise DataError(f"{policy.file}: {scheduler.where} is a {name}; DDPMScheduler or DDIMScheduler can be read.")
    smooth = scheduler.get("beta_schedule", str) == "squaredcos_cap_v2"  # takes no bounds
    for key, value in scheduler.options.items():
        if key not in SCHEDULER:
            raise DataError(f"{policy.file}: {scheduler.where}.{key}={value!r:.80} has no counterpart here.")
        known = SCHEDULER[key]
        if known is not None and value not in known and not (smooth and key.startswith("beta_")):
            raise DataError(f"{policy.file}: {scheduler.where}.{key}={value!r:.80} must be one of {known}.")
    n_train = scheduler.get("num_train_timesteps", int)
    if model.get("kernel_size", int) % 2 == 0:
        raise DataError(f"{policy.file}: {model.where}.kernel_size must be odd.")
    steps = policy.options.get("num_inference_steps")
    return {
        **{key: policy.get(key, int) for key in ("n_obs_steps", "horizon", "n_action_steps")},
        "policy": {
            "name": "diffusion",
            "n_inference_steps": n_train if steps is None else policy.get("num_inference_steps", int),
            "n_train_steps": n_train,
            "beta_schedule": scheduler.get("beta_schedule", str),
            "prediction": scheduler.get("prediction_type", str),
            "sampler": name[:4].lower(),
            "spacing": "leading",
            "clip_sample": scheduler.get("clip_sample", bool),
            "noise_per_obs": 1,
        },
        "network": {
            "name": "unet1d",
            "down_dims": list(model.get("down_dims", list)),
            "kernel_size": model.get("kernel_size", int),
            "n_groups": model.get("n_groups", int),
            "n_groups_out": N_GROUPS_OUT,
            "time_dim": model.get("diffusion_step_embed_dim", int),
            "film_scale": model.get("cond_predict_scale", bool),
        },
        "encoder": {"state": {"hidden": []}},
    }
