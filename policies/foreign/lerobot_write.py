"""Our diffusion policies as LeRobot's folders: what LeRobot 0.4.4 loads with ``from_pretrained`` and its processors.

Weights go over as they are, the observations' entries in LeRobot's order. The normaliser becomes MIN_MAX of the range
that it maps to [-1, 1]. deft.json keeps what LeRobot has no place for: the environment, and our names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.errors import ConfigError
from policies.chunk_policy import ChunkPolicy
from policies.encoders.fusion import Concat
from policies.encoders.image import ImageEncoder, SpatialSoftmax
from policies.encoders.resnet import ResNet, numbered_name
from policies.encoders.vector import StateEncoder
from policies.foreign.layout import PLAIN, Feature, columns
from policies.foreign.lerobot import CONTRACT, ENCODER
from policies.foreign.lerobot_config import ACTION, BACKBONES, DEFAULTS, ENV_STATE, N_GROUPS_OUT, STATE
from policies.foreign.lerobot_stats import EPS, EXACT, IN, OUT
from policies.foreign.tensors import interleaved
from policies.foreign.unet import LEROBOT, write_unet
from policies.heads.diffusion import DiffusionHead
from policies.networks.unet1d import UNet1d
from policies.policy import Policy

KINDS = {STATE: "STATE", ENV_STATE: "ENV", ACTION: "ACTION"}
MODES = {"VISUAL": "MIN_MAX", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"}


def write_lerobot(policy: Policy, document: Mapping[str, Any], folder: Path) -> Path:
    """The folder; an older one's files are replaced.

    Args:
        policy: a ChunkPolicy.
        document: its checkpoint's config.json: "config" and "meta".
        folder: to write.

    Raises:
        ConfigError: naming everything that LeRobot has no counterpart for.
    """
    fits = _misfits(policy, document)
    if fits:
        raise ConfigError(f"export=lerobot: LeRobot's diffusion policy has no counterpart for {'; '.join(fits)}.")
    assert isinstance(policy, ChunkPolicy)
    observed = _features(policy)
    weights = {
        **write_unet(_network(policy), LEROBOT, columns(observed, list(policy.spec.obs), policy.n_obs_steps)),
        **_encoders(policy, observed),
    }
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {f.name: _shown(f.name, f.shape) for f in observed}
    outputs = {ACTION: _shown(ACTION, policy.spec.action.shape)}
    _write_json(folder / "config.json", _config(policy, document["config"], inputs, outputs))
    save_file({k: v.cpu().clone().contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    _write_processors(folder, _statistics(policy, observed), inputs, outputs)
    names = {f.name: next(iter(f.keys)) if len(f.keys) == 1 else dict(f.keys) for f in observed}
    names |= {f.name: dict(f.keys) for f in observed if len(f.shape) == 1}
    _write_json(folder / CONTRACT, {"features": names, "task": policy.spec.to_dict(), "meta": document["meta"]})
    return folder


def _misfits(policy: Policy, document: Mapping[str, Any]) -> list[str]:
    """What does not fit, one phrase each."""
    if not isinstance(policy, ChunkPolicy):
        return [f"a {type(policy).__name__} (only imitation policies)"]
    out, head, network = [], policy.head, policy.head.network
    if type(head) is not DiffusionHead:
        return [f"the head {type(head).__name__} (policy=diffusion)"]
    if not isinstance(network, UNet1d):
        return [f"the network {type(network).__name__} (network=unet1d without cfg_dropout)"]
    levels = 2 ** len(network.down)
    checks = {
        f"policy.sampler={head.sampler} (ddim or ddpm)": head.sampler in ("ddim", "ddpm"),
        f"policy.spacing={head.spacing} (leading)": head.spacing == "leading",
        f"policy.prediction={head.prediction} (epsilon or sample)": head.prediction in ("epsilon", "sample"),
        f"network.n_blocks={len(network.mid)} (2)": len(network.mid) == 2,
        "the last group norm (network.n_groups_out=8)": network.final[0].norm.n_groups == N_GROUPS_OUT,  # type: ignore[union-attr]
        f"horizon={policy.horizon} (a multiple of {levels})": not policy.horizon % levels,
        "encoder.fusion (concat)": type(policy.encoder.fusion) is Concat,
        "encoder.language.path": not policy.encoder.unobserved,
        "policy.prefix": policy.prefix is None,
    }
    out += [name for name, fine in checks.items() if not fine]
    rgb, states = [], []
    for key, field in policy.spec.obs.items():
        encoder = dict(policy.encoder.encoders.items()).get(key)
        if field.kind == "rgb" and isinstance(encoder, ImageEncoder):
            rgb.append(key)
            out += [f"encoder.rgb ('{key}'): {m}" for m in _image_misfits(encoder)]
        elif field.kind == "state" and isinstance(encoder, StateEncoder) and len(field.shape) == 1:
            states.append(key)
            if len(encoder.mlp):
                out.append(f"an MLP on '{key}' (encoder.state.hidden=[])")
        else:
            out.append(f"the observation '{key}' of kind {field.kind} (state or rgb)")
    if not states:
        out.append(f"observations without a state ({STATE} must be there)")
    elif not rgb and len(states) == 1 and policy.spec.obs[states[0]].shape[0] < 2:
        out.append(f"one number as the only observation ({STATE} and {ENV_STATE} must be there, or an image)")
    shapes = {policy.spec.obs[key].shape for key in rgb}
    if len(shapes) > 1:
        out.append(f"images of several sizes {sorted(shapes)}")
    return out


def _image_misfits(encoder: ImageEncoder) -> list[str]:
    checks = {
        f"backbone (one of {', '.join(BACKBONES)} of width 64)": isinstance(encoder.backbone, ResNet)
        and encoder.backbone.out_channels == 512,
        "pool (keypoints)": isinstance(encoder.pool, SpatialSoftmax),
        "out_dim (a number)": isinstance(encoder.projection, torch.nn.Linear),
        "antialias (true)": encoder.antialias or encoder.resize is None,
        "relu (true)": encoder.relu,
        "with_depth": encoder.in_channels == 3,
    }
    out = [name for name, fine in checks.items() if not fine]
    if not out and encoder.out_dim != 2 * _n_keypoints(encoder):
        out.append(f"out_dim={encoder.out_dim} (2 n_keypoints = {2 * _n_keypoints(encoder)})")
    return out


def _n_keypoints(encoder: ImageEncoder) -> int:
    assert isinstance(encoder.projection, torch.nn.Linear)
    return encoder.projection.in_features // 2


def _network(policy: ChunkPolicy) -> UNet1d:
    network = policy.head.network
    assert isinstance(network, UNet1d)
    return network


def _features(policy: ChunkPolicy) -> list[Feature]:
    """In LeRobot's order: the first state, the images, all other states. A single state alone is cut in two halves."""
    sizes = {key: field.shape[0] for key, field in policy.spec.obs.items() if field.kind == "state"}
    cameras = [key for key, field in policy.spec.obs.items() if field.kind == "rgb"]
    first = next(iter(sizes))
    own, others = {first: sizes[first]}, {key: n for key, n in sizes.items() if key != first}
    if not cameras and not others:
        own = {first: (sizes[first] + 1) // 2}
        others = {first: sizes[first] // 2}
    features = [Feature(STATE, (sum(own.values()),), sum(own.values()), own)]
    for key in cameras:
        encoder = policy.encoder.encoders[key]
        assert isinstance(encoder, ImageEncoder)
        name = f"observation.images.{key.removeprefix('rgb_')}"
        features.append(Feature(name, policy.spec.obs[key].shape, encoder.out_dim, {key: encoder.out_dim}))
    if others:
        features.append(Feature(ENV_STATE, (sum(others.values()),), sum(others.values()), others))
    return features


def _shown(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """A feature as LeRobot declares it."""
    channels_first = [shape[2], *shape[:2]] if len(shape) == 3 else list(shape)
    return {"type": KINDS.get(name, "VISUAL"), "shape": channels_first}


def _config(
    policy: ChunkPolicy, config: Mapping[str, Any], inputs: dict[str, Any], outputs: dict[str, Any]
) -> dict[str, Any]:
    head, network = policy.head, _network(policy)
    assert isinstance(head, DiffusionHead)
    options = {
        "type": "diffusion",
        "input_features": inputs,
        "output_features": outputs,
        "n_obs_steps": policy.n_obs_steps,
        "horizon": policy.horizon,
        "n_action_steps": policy.n_action_steps,
        "drop_n_last_frames": policy.horizon - policy.n_action_steps - policy.n_obs_steps + 1,
        "normalization_mapping": MODES,
        "device": "cpu",
        "push_to_hub": False,
        "down_dims": [level[0].c_out for level in network.down],  # type: ignore[index]
        "kernel_size": len(network.final[0].conv.weight),  # type: ignore[union-attr,arg-type]
        "n_groups": network.mid[0].block1.norm.n_groups,  # type: ignore[union-attr]
        "diffusion_step_embed_dim": network.film_time.in_features,
        "use_film_scale_modulation": network.film_scale,
        "noise_scheduler_type": head.sampler.upper(),
        "num_train_timesteps": head.n_train_steps,
        "beta_schedule": config["policy"].get("beta_schedule", "squaredcos_cap_v2"),
        "prediction_type": head.prediction,
        "clip_sample": head.clip_sample,
        "num_inference_steps": head.n_inference_steps,
        "do_mask_loss_for_padding": head.mask_padding,
    }
    cameras = [key for key, field in policy.spec.obs.items() if field.kind == "rgb"]
    if cameras:
        encoders = [policy.encoder.encoders[key] for key in cameras]
        assert isinstance(encoders[0], ImageEncoder)
        options |= _image_options(encoders[0], policy.spec.obs[cameras[0]].shape)
        options["use_separate_rgb_encoder_per_camera"] = len(encoders) > 1 and encoders[0] is not encoders[1]
    return {**DEFAULTS, **options}


def _image_options(encoder: ImageEncoder, shape: tuple[int, ...]) -> dict[str, Any]:
    assert isinstance(encoder.backbone, ResNet)
    size, whole = encoder.window(*shape[:2]), encoder.resize or shape[:2]
    options = {
        "vision_backbone": "resnet34" if len(encoder.backbone.stages[2]) > 2 else "resnet18",  # type: ignore[arg-type]
        "use_group_norm": isinstance(encoder.backbone.stem[1], torch.nn.GroupNorm),
        "spatial_softmax_num_keypoints": _n_keypoints(encoder),
        "resize_shape": None if encoder.resize is None else list(encoder.resize),
        "crop_shape": None if size == tuple(whole) else list(size),
    }
    if encoder.resize is not None and size != tuple(whole):  # LeRobot then crops by a ratio, rounded down
        ratio = _ratio(whole, size)
        if ratio is None:
            raise ConfigError(f"export=lerobot: no crop_ratio of LeRobot's cuts {list(size)} out of {list(whole)}.")
        options["crop_ratio"] = ratio
    return options


def _ratio(whole: tuple[int, ...], size: tuple[int, int]) -> float | None:
    """The one by which int(side * ratio) are the sides of the crop."""
    low = max(s / w for s, w in zip(size, whole, strict=True))
    high = min((s + 1) / w for s, w in zip(size, whole, strict=True))
    found = (low + high) / 2
    return found if low <= found < high and found < 1 else None


def _encoders(policy: ChunkPolicy, observed: list[Feature]) -> dict[str, Tensor]:
    cameras = [next(iter(f.keys)) for f in observed if len(f.shape) > 1]
    encoders = [policy.encoder.encoders[key] for key in cameras]
    separate = len(encoders) > 1 and encoders[0] is not encoders[1]
    out: dict[str, Tensor] = {}
    for i, encoder in enumerate(encoders if separate else encoders[:1]):
        assert isinstance(encoder, ImageEncoder)
        prefix = f"{ENCODER}{i}." if separate else ENCODER
        for name, x in encoder.state_dict().items():
            module, rest = name.split(".", 1)
            theirs = {"pool": f"pool.nets.{rest.split('.')[-1]}", "projection": f"out.{rest}"}.get(module)
            theirs = theirs or f"backbone.{numbered_name(rest)}"
            out[prefix + theirs] = interleaved(x) if name == "projection.weight" else x
            if rest.endswith("running_var"):
                out[prefix + theirs.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
        side = [_cells(n) for n in encoder.window(*policy.spec.obs[cameras[i]].shape[:2])]
        y, x = (torch.linspace(-1, 1, n, dtype=torch.float64).float() for n in side)
        grid = torch.stack([x.expand(side[0], -1).flatten(), y[:, None].expand(-1, side[1]).flatten()], 1)
        out[f"{prefix}pool.pos_grid"] = grid
    return out


def _cells(n: int) -> int:
    """Cells of a ResNet's feature map along a side of n pixels."""
    return -(-n // 32)


def _statistics(policy: ChunkPolicy, observed: list[Feature]) -> dict[str, dict[str, Tensor]]:
    """LeRobot's statistics by feature, and our own maps beside them."""
    used: dict[str, int] = {}
    out: dict[str, dict[str, Tensor]] = {}
    for feature in observed:
        if len(feature.shape) > 1:
            key = next(iter(feature.keys))
            map_ = PLAIN if policy.normaliser.modes[key] == "identity" else _map(policy, key)
            parts = [_colours(_range(policy, key, *map_))]
        else:
            parts = []
            for key, width in feature.keys.items():
                at = used.get(key, 0)
                used[key] = at + width
                values = _range(policy, key, *_map(policy, key))
                parts.append({name: x[at : at + width] for name, x in values.items()})
        out[feature.name] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    out[ACTION] = _range(policy, ACTION, *_map(policy, ACTION))
    return out


def _colours(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Statistics of 0..255 as LeRobot has them, (3, 1, 1) of 0..1; our own so that they come back to the bit."""
    unit = {name: (x.double() / 255).view(-1, 1, 1) for name, x in values.items()}
    return {name: x if name in EXACT else x.float() for name, x in unit.items()}


def _map(policy: ChunkPolicy, key: str) -> tuple[Tensor, Tensor]:
    return policy.normaliser.statistic(key, "centre"), policy.normaliser.statistic(key, "scale")


def _range(policy: ChunkPolicy, key: str, centre: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """min and max (what is mapped to -1 and 1, from the data where that is the same), mean, std; centre and scale."""
    low, high = centre - scale, centre + scale
    if policy.normaliser.modes[key] == "minmax":
        seen = {name: policy.normaliser.statistic(key, name) for name in ("min", "max")}
        same = ((seen["max"] + seen["min"]) / 2 == centre) & ((seen["max"] - seen["min"]) / 2 == scale)
        low, high = torch.where(same, seen["min"], low), torch.where(same, seen["max"], high)
    return {"min": low, "max": high, "mean": centre, "std": scale, **dict(zip(EXACT, (centre, scale), strict=True))}


def _write_processors(
    folder: Path, stats: Mapping[str, Mapping[str, Tensor]], inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    """Both pipelines, as LeRobot's ``save_pretrained`` writes them."""
    flat = {f"{key}.{name}": x.cpu().clone().contiguous() for key, each in stats.items() for name, x in each.items()}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}

    def step(name: str, features: dict[str, Any], file: str) -> dict[str, Any]:
        save_file(flat, folder / file)
        config = {"eps": EPS, "features": features, "norm_map": MODES}
        return {"registry_name": name, "config": config, "state_file": file}

    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
        step("normalizer_processor", {**inputs, **outputs}, f"{Path(IN).stem}_step_3_normalizer_processor.safetensors"),
    ]
    file = f"{Path(OUT).stem}_step_0_unnormalizer_processor.safetensors"
    after = [step("unnormalizer_processor", outputs, file), device]
    for file, steps in ((IN, before), (OUT, after)):
        _write_json(folder / file, {"name": Path(file).stem, "steps": steps})


def _write_json(file: Path, document: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2))
