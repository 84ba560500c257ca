"""Diffusion Policy's own .ckpt files (Chi et al. 2023): its U-Nets and transformers, on vectors and on images.

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
from policies.encoders.image import ImageEncoder
from policies.foreign.diffusion_policy_config import DiffusionPolicyConfig
from policies.foreign.layout import columns, fields, named, normaliser, targets, unknown_task
from policies.foreign.tensors import Tensors
from policies.foreign.transformer import read_transformer
from policies.foreign.unet import DIFFUSION_POLICY, read_unet
from policies.foreign.unpickle import Archive, plain_config
from policies.foreign.vision import read_encoders
from policies.networks.transformer import Transformer
from policies.networks.unet1d import UNet1d

ACTION = "action"
NETWORKS = {"unet1d": UNet1d, "transformer": Transformer}


def read_diffusion_policy(
    file: Path, features: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What config.json and model.safetensors of our own would hold.

    Args:
        file: .ckpt; its EMA weights are taken where it was trained with them.
        features: {their observation: our key, or {key: width} of several side by side}; "obs" is that of a policy on
            vectors.

    Raises:
        DataError: something is missing, broken, or of a kind that has no counterpart here; named.
    """
    archive = Archive(file)
    if not isinstance(archive.content, Mapping) or not {"cfg", "state_dicts"} <= set(archive.content):
        raise DataError(f"{file} is no checkpoint of Diffusion Policy: it has no 'cfg' and 'state_dicts'.")
    config = DiffusionPolicyConfig(file, plain_config(archive.content["cfg"]))
    encoder = _encoder(config)
    names = targets({name: name for name in config.observations}, features, str(file))
    widths = {n: encoder.out_dim if encoder and n in config.images else s[0] for n, s in config.observations.items()}
    observed = [named(n, s, widths[n], names[n], str(file)) for n, s in config.observations.items()]
    task = unknown_task(f"diffusion_policy/{file.stem}", fields(observed), config.action_dim)
    which = "ema_model" if config.use_ema else "model"
    states = archive.content["state_dicts"]
    if not isinstance(states, Mapping) or which not in states:
        raise DataError(f"{file} has no state_dicts.{which}.")
    source = Tensors(f"{file} (state_dicts.{which})", archive.tensors(states[which], f"state_dicts.{which}"))
    source.drop(lambda name: name.endswith("_dummy_variable") or ".input_stats." in name)
    maps = {name: _map(source, name, shape, config) for name, shape in config.observations.items()}
    weights, modes = normaliser(task, observed, maps, _map(source, ACTION, (config.action_dim,), config))
    sections = config.sections(normalised=bool(modes))
    network = _network(config, sections, sum(widths.values()))
    keys = list(task.obs)
    if isinstance(network, UNet1d):
        read = read_unet(source, network, DIFFUSION_POLICY, columns(observed, keys, config.steps["n_obs_steps"]))
    else:
        read = read_transformer(source, network, columns(observed, keys, 1))
    weights |= {f"head.network.{name}": x for name, x in read.items()}
    if encoder is not None:
        weights |= read_encoders(source, config, encoder, observed)
    source.finish()
    ours = {**sections, **({"normaliser": modes} if modes else {})}
    meta = {"train_config": sections, "source": f"Diffusion Policy, {file.resolve()}, {which}"}
    return {"config": ours, "task": task.to_dict(), "meta": meta, "shared": {}}, weights


def _encoder(config: DiffusionPolicyConfig) -> ImageEncoder | None:
    """One for all images, without weights."""
    if not config.images:
        return None
    options = {k: v for k, v in config.sections(False)["encoder"]["rgb"].items() if k != "shared"}
    try:
        with torch.device("meta"):
            encoder = ImageEncoder(3, **options)
        for name in config.images:
            encoder.window(*config.observations[name][:2])
    except ValueError as e:
        raise DataError(f"{config.file}: cfg.policy does not fit its images: {e}.") from e
    return encoder


def _network(config: DiffusionPolicyConfig, sections: Mapping[str, Any], width: int) -> UNet1d | Transformer:
    options = dict(sections["network"])
    made = NETWORKS[options.pop("name")]
    steps = config.steps
    try:
        with torch.device("meta"):
            return made(config.action_dim, steps["horizon"], (steps["n_obs_steps"], width), **options)
    except (ValueError, RuntimeError) as e:
        raise DataError(f"{config.file}: cfg.policy makes no {made.__name__}: {e}.") from e


def _map(source: Tensors, key: str, shape: tuple[int, ...], config: DiffusionPolicyConfig) -> tuple[Tensor, Tensor]:
    """x * scale + offset as (x - centre) / scale, (D,), or (3,) of images in [0, 1]; one number may stand for all."""
    image = key in config.images
    size = 3 if image else shape[0]

    def take(name: str) -> Tensor:
        name = f"normalizer.params_dict.{key}.{name}"
        x = source.take(name)
        if tuple(x.shape) not in ((1,), (1 if image else size,)):
            raise DataError(f"{source.file}: '{name}' is {tuple(x.shape)}, expected {(1 if image else size,)}.")
        return x.double().expand(size)

    scale, offset = take("scale"), take("offset")
    if bool((scale == 0).any()):
        raise DataError(f"{source.file}: 'normalizer.params_dict.{key}.scale' must not be 0.")
    if not image:
        return -offset / scale, 1 / scale
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (config.image_mean, config.image_std))
    return (mean - offset) / scale, std / scale
