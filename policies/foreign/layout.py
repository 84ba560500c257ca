"""Where the features of somebody else's policy end up among ours: keys, shapes, normaliser maps, condition entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.errors import ConfigError, nearest
from data.normaliser import Normaliser
from data.spec import FieldSpec, TaskSpec

Map = tuple[Tensor, Tensor]  # (centre, scale), (D,) each
Maps = Mapping[str, Map]  # by feature
ACTION = "action"
PLAIN = (torch.full((3,), 127.5), torch.full((3,), 127.5))  # what our image encoders do with 0..255


@dataclass(frozen=True)
class Feature:
    """One entry of their observation.

    Attributes:
        name: theirs.
        shape: ours: (D,) of a vector, (H, W, 3) of an image.
        width: entries of the condition it becomes, per frame.
        keys: {our key: width}; several are side by side in it, and a key of several features has them side by side.
    """

    name: str
    shape: tuple[int, ...]
    width: int
    keys: Mapping[str, int]


def named(name: str, shape: tuple[int, ...], width: int, target: Any, where: str) -> Feature:
    """A feature under the keys ``target``: one key, or {key: width} of several.

    Raises:
        ConfigError: anything else, or widths that do not add up.
    """
    keys = {target: width} if isinstance(target, str) else target
    fits = isinstance(keys, Mapping) and all(isinstance(n, int) and n > 0 for n in keys.values())
    if not fits or not keys or any(not isinstance(k, str) or "." in k for k in keys):
        raise ConfigError(f"{where}: features.{name}={target!r} must be a key without dots, or {{key: width}}.")
    if (len(shape) > 1 and len(keys) > 1) or sum(keys.values()) != width:
        raise ConfigError(f"{where}: features.{name}={target!r} must add up to its {shape}.")
    return Feature(name, shape, width, dict(keys))


def targets(known: Mapping[str, str], given: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """{feature: key}: those given, or by default those of ``known``.

    Raises:
        ConfigError: a feature that the policy has not.
    """
    for name in given or {}:
        if name not in known:
            raise ConfigError(f"{where} has no feature '{name}'. {nearest(name, list(known))}")
    return {**known, **(given or {})}


def fields(features: Sequence[Feature]) -> dict[str, FieldSpec]:
    """Our observations, in the order of the features.

    Raises:
        ConfigError: an image and something else under one key.
    """
    widths: dict[str, int] = {}
    images = {key: f.shape for f in features if len(f.shape) > 1 for key in f.keys}
    for feature in features:
        for key, width in feature.keys.items():
            if key in images and key in widths:
                raise ConfigError(f"features: '{key}' stands for two, and one is an image ('{feature.name}').")
            widths[key] = widths.get(key, 0) + width
    return {
        key: FieldSpec(images[key], "uint8", "rgb") if key in images else FieldSpec((width,), "float32", "state")
        for key, width in widths.items()
    }


def columns(features: Sequence[Feature], keys: Sequence[str], n_obs_steps: int) -> Tensor:
    """Which entry of their condition each entry of ours is, (To * C,).

    Both are frame by frame; ours has ``keys`` in this order, theirs ``features``.
    """
    at, pieces = 0, {key: [] for key in keys}
    for feature in features:
        for key, width in feature.keys.items():
            pieces[key].append(torch.arange(at, at + width))
            at += width
    frame = torch.cat([piece for key in keys for piece in pieces[key]])
    return (torch.arange(n_obs_steps)[:, None] * at + frame).flatten()


def our_maps(features: Sequence[Feature], maps: Maps) -> dict[str, tuple[Tensor, Tensor]]:
    """(centre, scale) by our keys."""
    centres: dict[str, list[Tensor]] = {}
    scales: dict[str, list[Tensor]] = {}
    for feature in features:
        if feature.name not in maps:
            continue
        sizes = [len(maps[feature.name][0])] if len(feature.shape) > 1 else list(feature.keys.values())
        for collected, values in zip((centres, scales), maps[feature.name], strict=True):
            for key, part in zip(feature.keys, values.split(sizes), strict=True):
                collected.setdefault(key, []).append(part)
    return {key: (torch.cat(centres[key]), torch.cat(scales[key])) for key in centres}


def normaliser(
    task: TaskSpec, observed: Sequence[Feature], maps: Maps, inverse: Map
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Its weights, and the modes of images that are not just brought from 0..255 to [-1, 1].

    Args:
        task: what ``observed`` became.
        observed: the features.
        maps: theirs; of images in [0, 1].
        inverse: the map of actions.
    """
    scaled = {f.name: (255 * maps[f.name][0], 255 * maps[f.name][1]) for f in observed if len(f.shape) > 1}
    plain = all(
        torch.allclose(x.float(), half, rtol=1e-6) for m in scaled.values() for x, half in zip(m, PLAIN, strict=True)
    )
    images = {key: "meanstd" for key, field in task.obs.items() if field.is_image and not plain}
    ours = our_maps(observed, {**maps, **scaled})
    ours = {key: m for key, m in ours.items() if key in images or not task.obs[key].is_image}
    built = Normaliser.from_maps({**ours, ACTION: inverse}, {})
    return {f"normaliser.{name}": x for name, x in built.state_dict().items()}, images


def unknown_task(name: str, obs: Mapping[str, FieldSpec], action_dim: int) -> TaskSpec:
    """The contract of a policy whose checkpoint tells shapes alone: no action is clipped, no environment known."""
    action = FieldSpec((action_dim,), "float32", "action")
    return TaskSpec(name, dict(obs), action, action_low=-torch.inf, action_high=torch.inf)
