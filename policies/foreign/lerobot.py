"""LeRobot's DiffusionPolicy folders (0.1 to 0.4) as checkpoints of our own.

config.json and model.safetensors, and where its statistics are: until 0.3 among the weights
("normalize_inputs.buffer_observation_state.min"), later in policy_preprocessor.json, policy_postprocessor.json and the
files that these name. deft.json is there where we wrote the folder: the environment, and the names of observations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import DataError
from data.spec import TaskSpec
from policies.encoders.image import ImageEncoder
from policies.encoders.resnet import numbered_name
from policies.foreign.layout import Feature, columns, fields, named, normaliser, targets, unknown_task
from policies.foreign.lerobot_config import ENV_STATE, STATE, LeRobotConfig
from policies.foreign.lerobot_stats import statistics_of
from policies.foreign.tensors import Tensors, read_safetensors, side_by_side
from policies.foreign.unet import LEROBOT, read_unet
from policies.networks.unet1d import UNet1d

CONTRACT = "deft.json"
ENCODER = "diffusion.rgb_encoder."


def is_lerobot(document: Mapping[str, Any]) -> bool:
    """Whether a config.json is LeRobot's."""
    return "schema_version" not in document and ("type" in document or "input_features" in document)


def default_key(feature: str) -> str:
    """Our name for one of LeRobot's: state, environment_state, rgb_top of observation.images.top."""
    if feature in (STATE, ENV_STATE):
        return feature.removeprefix("observation.")
    camera = feature.removeprefix("observation.").removeprefix("images.").replace(".", "_")
    return "rgb" if camera == "image" else f"rgb_{camera}"


def read_lerobot(folder: Path, features: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What config.json and model.safetensors of our own would hold.

    Args:
        folder: that holds LeRobot's.
        features: {LeRobot's feature: our key, or {key: width} of several side by side}; see ``default_key``.

    Raises:
        DataError: something is missing, broken, or of a kind that has no counterpart here; named.
        ConfigError: features that the policy does not have.
    """
    config = LeRobotConfig.read(folder / "config.json")
    contract = _read_contract(folder / CONTRACT) if features is None else {}
    known = {name: default_key(name) for name in config.observations()}
    names = targets(known, features or contract.get("features"), str(folder))
    width = 2 * config.n_keypoints
    sizes = config.observations()
    observed = [
        named(name, sizes[name], width if len(sizes[name]) > 1 else next(iter(sizes[name])), target, str(folder))
        for name, target in names.items()
    ]
    task = unknown_task(f"lerobot/{folder.resolve().name}", fields(observed), config.action_dim)
    if contract:
        task = _contracted(task, contract, folder / CONTRACT)
    file = folder / "model.safetensors"
    source = Tensors(file, read_safetensors(file))
    maps, inverse = statistics_of(folder, config, source)
    weights, modes = normaliser(task, observed, maps, inverse)
    sections = config.sections(normalised=bool(modes))
    weights |= _network(source, config, sections, observed, list(task.obs))
    if config.images:
        weights |= _encoders(source, config, sections, observed)
    source.finish()
    ours = {**sections, **({"normaliser": modes} if modes else {})}
    meta = contract.get("meta", {"train_config": sections, "source": f"LeRobot, {folder.resolve()}"})
    return {"config": ours, "task": task.to_dict(), "meta": meta, "shared": {}}, weights


def _read_contract(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        contract = json.loads(file.read_text())
        TaskSpec.from_dict(contract["task"])
        return {"features": dict(contract["features"]), "task": contract["task"], "meta": dict(contract["meta"])}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{file} is not as Deft wrote it ({e!r}); without it, the folder is LeRobot's alone.") from e


def _contracted(plain: TaskSpec, contract: Mapping[str, Any], file: Path) -> TaskSpec:
    task = TaskSpec.from_dict(contract["task"])
    if {k: f.shape for k, f in task.obs.items()} != {k: f.shape for k, f in plain.obs.items()} or (
        task.action.shape != plain.action.shape
    ):
        raise DataError(f"{file}: its task does not have the shapes that config.json beside it has.")
    return task


def _network(
    source: Tensors, config: LeRobotConfig, sections: Mapping[str, Any], observed: list[Feature], keys: list[str]
) -> dict[str, Tensor]:
    width = sum(feature.width for feature in observed)
    options = {k: v for k, v in sections["network"].items() if k != "name"}
    with torch.device("meta"):
        network = UNet1d(config.action_dim, config.horizon, (config.n_obs_steps, width), **options)
    weights = read_unet(source, network, LEROBOT, columns(observed, keys, config.n_obs_steps))
    return {f"head.network.{name}": x for name, x in weights.items()}


def _encoders(
    source: Tensors, config: LeRobotConfig, sections: Mapping[str, Any], observed: list[Feature]
) -> dict[str, Tensor]:
    options = {k: v for k, v in sections["encoder"]["rgb"].items() if k != "shared"}
    with torch.device("meta"):
        state = ImageEncoder(3, **options).state_dict()
    cameras = [next(iter(feature.keys)) for feature in observed if len(feature.shape) > 1]
    out: dict[str, Tensor] = {}
    source.drop(lambda name: name.startswith(ENCODER) and name.endswith(("pos_grid", "num_batches_tracked")))
    for i in range(len(cameras) if config.separate else 1):
        prefix = f"{ENCODER}{i}." if config.separate else ENCODER
        encoder = {}
        for name, x in state.items():
            module, rest = name.split(".", 1)
            theirs = {"pool": f"pool.nets.{rest.split('.')[-1]}", "projection": f"out.{rest}"}.get(module)
            value = source.take(prefix + (theirs or f"backbone.{numbered_name(rest)}"), x.shape)
            encoder[name] = side_by_side(value) if name == "projection.weight" else value
        for camera in [cameras[i]] if config.separate else cameras:
            out |= {f"encoder.encoders.{camera}.{name}": x for name, x in encoder.items()}
    return out
