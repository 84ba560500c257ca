"""LeRobot's two generations of normalisers, as maps (x - centre) / scale.

A dimension that never varied in training has no range to divide by: LeRobot divides by 1e-8. Its constant comes out the
same here (-1, or 0 with MEAN_STD), but a later value that is off by a little is off by as little after the map, not by
a hundred million times as much; an action stays within 1e-6 of its constant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import DataError
from policies.foreign.lerobot_config import ACTION, LeRobotConfig
from policies.foreign.tensors import Tensors, read_safetensors

Map = tuple[Tensor, Tensor]  # centre and scale, (D,) float64
BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
MODES = ("MEAN_STD", "IDENTITY", *BOUNDS)
KINDS = {"observation.state": "STATE", "observation.environment_state": "ENV", ACTION: "ACTION"}
EPS = 1e-8
STILL = 1e-6  # what an action that never varied may move by, its own units
EXACT = ("centre", "scale")  # that we write beside the others, so that nothing is rounded on the way back
IN, OUT = "policy_preprocessor.json", "policy_postprocessor.json"
KNOWN_STEPS = {
    IN: ("rename_observations_processor", "to_batch_processor", "device_processor", "normalizer_processor"),
    OUT: ("unnormalizer_processor", "device_processor"),
}


def statistics_of(folder: Path, config: LeRobotConfig, weights: Tensors) -> tuple[dict[str, Map], Map]:
    """The maps of the observations by LeRobot's names (images: (3,), of colours in 0..1), and that of the action.

    Args:
        folder: LeRobot's.
        config: its config.json.
        weights: of model.safetensors; the older generation's statistics are taken out of it.

    Raises:
        DataError: no statistics, or some that are missing, misshapen or of an unknown mode; named.
    """
    sizes = {name: 3 if len(shape) > 1 else next(iter(shape)) for name, shape in config.observations().items()}
    if (folder / IN).exists() or (folder / OUT).exists():
        observed, eps = _processor(folder, IN, "normalizer_processor")
        produced, _ = _processor(folder, OUT, "unnormalizer_processor")
        maps = {name: observed.obs_map(name, size, eps) for name, size in sizes.items()}
        inverse = produced.action_map(config.action_dim)
        observed.tensors.drop(lambda name: True)
        return maps, inverse
    modes = _modes(config.options["normalization_mapping"], config.file)
    if not weights.names("normalize_inputs.") and any(m != "IDENTITY" for m in modes.values()):
        raise DataError(f"{folder} holds no normaliser: neither {IN} nor 'normalize_inputs.*' in {weights.file}.")
    old = Statistics(weights, "{part}.buffer_{key}.{name}", modes, older=True)
    maps = {name: old.obs_map(name, size, EPS) for name, size in sizes.items()}
    inverse = old.action_map(config.action_dim)
    weights.drop(lambda name: name.startswith(("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")))
    return maps, inverse


def _modes(mapping: Any, file: Path) -> dict[str, str]:
    if not isinstance(mapping, Mapping):
        raise DataError(f"{file}: the normalisation must be {{kind of feature: mode}}, not {mapping!r}.")
    for kind, mode in mapping.items():
        if mode not in MODES:
            raise DataError(f"{file}: unknown normalisation {mode!r} of {kind}; known are {', '.join(MODES)}.")
    return dict(mapping)


def _processor(folder: Path, name: str, step_name: str) -> tuple[Statistics, float]:
    """The statistics of one pipeline's (un)normalising step, and its eps."""
    file = folder / name
    try:
        steps = json.loads(file.read_text())["steps"]
        found = [step for step in steps if step["registry_name"] == step_name]
        unknown = [step["registry_name"] for step in steps if step["registry_name"] not in KNOWN_STEPS[name]]
        casts = [step["config"].get("float_dtype") for step in steps if step["registry_name"] == "device_processor"]
    except OSError as e:
        raise DataError(f"{file} is missing; its counterpart is there.") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{file} is not a processor of LeRobot's ({e!r}).") from e
    if unknown or len(found) != 1 or any(dtype not in (None, "float32") for dtype in casts):
        raise DataError(
            f"{file} must have one {step_name} (it has {len(found)}) and no step or cast without a counterpart here: "
            f"unknown are {unknown}, casts {casts}."
        )
    try:
        step = found[0]["config"]
        eps, only = float(step.get("eps", EPS)), step.get("normalize_observation_keys")
        state_file = folder / Path(found[0]["state_file"]).name
        modes = _modes(step["norm_map"], file)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{file}: its {step_name} is not as LeRobot writes it ({e!r}).") from e
    tensors = Tensors(state_file, read_safetensors(state_file))
    return Statistics(tensors, "{feature}.{name}", modes, only=only), eps


class Statistics:
    """Min, max, mean, ... by feature.

    Args:
        tensors: that hold them.
        naming: of the tensors, by {part} of the model, {feature}, {key} (the same with "_" for ".") and {name}.
        modes: by kind of feature.
        older: the generation before 0.4.
        only: the only observations that are normalised; None: all.
    """

    def __init__(
        self, tensors: Tensors, naming: str, modes: Mapping[str, str], older: bool = False, only: Any = None
    ) -> None:
        self.tensors, self._naming, self._modes, self._older, self._only = tensors, naming, modes, older, only

    def obs_map(self, feature: str, size: int, eps: float) -> Map:
        """Of an observation."""
        mode = self._modes.get(KINDS.get(feature, "VISUAL"), "IDENTITY")
        if mode == "IDENTITY" or (self._only is not None and feature not in self._only):
            return torch.zeros(size).double(), torch.ones(size).double()
        exact = self._exact(feature, size)
        if exact is not None:
            return exact
        if mode == "MEAN_STD":
            mean, std = (self._take(feature, name, size, "normalize_inputs") for name in ("mean", "std"))
            return mean, torch.where(std == 0, 1.0, std + eps)
        low, high = (self._take(feature, name, size, "normalize_inputs") for name in BOUNDS[mode])
        half = (high - low + (EPS if self._older else 0)) / 2
        half = torch.where(high == low, low.abs().clamp(min=1.0), half)
        return low + half, half

    def action_map(self, size: int) -> Map:
        """Of the action."""
        mode = self._modes.get("ACTION", "IDENTITY")
        if mode == "IDENTITY":
            return torch.zeros(size).double(), torch.ones(size).double()
        exact = self._exact(ACTION, size)
        if exact is not None:
            return exact
        if mode == "MEAN_STD":
            mean, std = (self._take(ACTION, name, size, "unnormalize_outputs") for name in ("mean", "std"))
            return mean, torch.where(std == 0, STILL, std)
        low, high = (self._take(ACTION, name, size, "unnormalize_outputs") for name in BOUNDS[mode])
        still = high == low
        return torch.where(still, low, (low + high) / 2), torch.where(still, STILL, (high - low) / 2)

    def _exact(self, feature: str, size: int) -> Map | None:
        if self._older or f"{feature}.{EXACT[1]}" not in self.tensors.names():
            return None
        centre, scale = (self._take(feature, name, size, "") for name in EXACT)
        return centre, scale

    def _take(self, feature: str, name: str, size: int, part: str) -> Tensor:
        full = self._naming.format(part=part, feature=feature, key=feature.replace(".", "_"), name=name)
        shape = (size, 1, 1) if feature not in KINDS else (size,)
        x = self.tensors.take(full, shape).double().flatten()
        if name in ("std", "scale") and bool((x < 0).any()):
            raise DataError(f"{self.tensors.file}: '{full}' must not be negative.")
        return x
