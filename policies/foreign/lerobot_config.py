"""LeRobot's config.json of a diffusion policy: what of it has a counterpart here, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError, nearest

STATE, ENV_STATE, ACTION = "observation.state", "observation.environment_state", "action"
BACKBONES = ("resnet18", "resnet34")

# Every field of DiffusionConfig (0.4.4) with its default; null is for those without one.
DEFAULTS: dict[str, Any] = {
    "type": None, "input_features": None, "output_features": None, "n_obs_steps": 2, "horizon": 16,
    "n_action_steps": 8, "device": None, "use_amp": False, "use_peft": False, "push_to_hub": True, "repo_id": None,
    "private": None, "tags": None, "license": None, "pretrained_path": None,
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
    "drop_n_last_frames": 7, "vision_backbone": "resnet18", "resize_shape": None, "crop_ratio": 1.0,
    "crop_shape": None, "crop_is_random": True, "pretrained_backbone_weights": None, "use_group_norm": True,
    "spatial_softmax_num_keypoints": 32, "use_separate_rgb_encoder_per_camera": False,
    "down_dims": [512, 1024, 2048], "kernel_size": 5, "n_groups": 8, "diffusion_step_embed_dim": 128,
    "use_film_scale_modulation": True, "noise_scheduler_type": "DDPM", "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "epsilon",
    "clip_sample": True, "clip_sample_range": 1.0, "num_inference_steps": None, "compile_model": False,
    "compile_mode": "reduce-overhead", "do_mask_loss_for_padding": False, "optimizer_lr": 1e-4,
    "optimizer_betas": [0.95, 0.999], "optimizer_eps": 1e-8, "optimizer_weight_decay": 1e-6,
    "scheduler_name": "cosine", "scheduler_warmup_steps": 500,
}  # fmt: skip
N_GROUPS_OUT = 8  # of the U-Net's last norm, whatever n_groups says


@dataclass(frozen=True)
class LeRobotConfig:
    """A config.json that was found to fit.

    Attributes:
        file: for messages.
        options: every field of DEFAULTS.
        state_dim, env_dim: of the two vectors; env_dim 0 where there is none.
        images: {feature: (H, W)}.
        action_dim: Da.
    """

    file: Path
    options: dict[str, Any]
    state_dim: int
    env_dim: int
    images: dict[str, tuple[int, int]]
    action_dim: int

    @classmethod
    def read(cls, file: Path) -> LeRobotConfig:
        """From a file.

        Raises:
            DataError: naming what is missing, misshapen or has no counterpart here.
        """
        try:
            document = json.loads(file.read_text())
        except (OSError, ValueError) as e:
            raise DataError(f"{file} cannot be read ({e}).") from e
        if not isinstance(document, dict) or document.get("type") != "diffusion":
            kind = document.get("type") if isinstance(document, dict) else None
            raise DataError(f"{file} is of a policy of type {kind!r}; of LeRobot's, 'diffusion' can be read.")
        for name in document:
            if name not in DEFAULTS:
                raise DataError(f"{file}: the option '{name}' is not known. {nearest(name, list(DEFAULTS))}")
        options = {**DEFAULTS, **document}
        inputs, outputs = (_features(file, options, name) for name in ("input_features", "output_features"))
        vectors = {STATE: "STATE", ENV_STATE: "ENV"}
        sizes = {name: _vector(file, inputs, name, kind) for name, kind in vectors.items()}
        if not sizes[STATE]:
            raise DataError(f"{file}: input_features has no {STATE}; LeRobot's diffusion policy needs one.")
        images = {name: _image(file, name, shape) for name, (kind, shape) in inputs.items() if kind == "VISUAL"}
        if len(set(images.values())) > 1:
            raise DataError(f"{file}: the images must be of one size, not {images}.")
        config = cls(file, options, sizes[STATE], sizes[ENV_STATE], images, _vector(file, outputs, ACTION, "ACTION"))
        config.check()
        return config

    def check(self) -> None:
        """Raises DataError for what is not of the right type, or has no counterpart here."""
        o = self.options
        whole = ("n_obs_steps", "horizon", "n_action_steps", "kernel_size", "n_groups", "diffusion_step_embed_dim",
                 "num_train_timesteps", "spatial_softmax_num_keypoints")  # fmt: skip
        for name in (*whole, *(["num_inference_steps"] if o["num_inference_steps"] is not None else [])):
            if not _whole(o[name]):
                self._refuse(name, "a whole number, at least 1")
        if not isinstance(o["down_dims"], list) or not o["down_dims"] or not all(_whole(d) for d in o["down_dims"]):
            self._refuse("down_dims", "a list of whole numbers")
        for name in ("resize_shape", "crop_shape"):
            size = o[name]
            if size is not None and not (isinstance(size, list) and len(size) == 2 and all(_whole(d) for d in size)):
                self._refuse(name, "a height and a width")
        for name in ("use_group_norm", "use_separate_rgb_encoder_per_camera", "use_film_scale_modulation",
                     "clip_sample", "do_mask_loss_for_padding"):  # fmt: skip
            if not isinstance(o[name], bool):
                self._refuse(name, "true or false")
        choices = {
            "noise_scheduler_type": ("DDPM", "DDIM"),
            "prediction_type": ("epsilon", "sample"),
            "vision_backbone": BACKBONES if self.images else (o["vision_backbone"],),
            "beta_schedule": ("squaredcos_cap_v2", "linear", "scaled_linear", "sigmoid"),
            "use_peft": (False,),
            "clip_sample_range": (1.0,) if o["clip_sample"] else (o["clip_sample_range"],),
        }
        if o["beta_schedule"] != "squaredcos_cap_v2":  # which takes no bounds
            choices |= {"beta_start": (0.0001,), "beta_end": (0.02,)}
        for name, known in choices.items():
            if o[name] not in known:
                self._refuse(name, f"{' or '.join(map(repr, known))}: nothing else has a counterpart here")
        if o["kernel_size"] % 2 == 0 or o["diffusion_step_embed_dim"] % 2 or o["diffusion_step_embed_dim"] < 4:
            self._refuse("kernel_size" if o["kernel_size"] % 2 == 0 else "diffusion_step_embed_dim", "odd; even, >= 4")
        if o["horizon"] % 2 ** (len(o["down_dims"]) - 1):
            self._refuse("horizon", f"a multiple of {2 ** (len(o['down_dims']) - 1)} for {len(o['down_dims'])} levels")
        if any(d % n for d, n in [*((d, o["n_groups"]) for d in o["down_dims"]), (o["down_dims"][0], N_GROUPS_OUT)]):
            self._refuse("down_dims", f"multiples of n_groups={o['n_groups']}, the first one of {N_GROUPS_OUT} too")
        if o["n_obs_steps"] - 1 + o["n_action_steps"] > o["horizon"]:
            self._refuse("n_action_steps", f"at most horizon - n_obs_steps + 1 = {o['horizon'] - o['n_obs_steps'] + 1}")
        if (o["num_inference_steps"] or 1) > o["num_train_timesteps"]:
            self._refuse("num_inference_steps", f"at most num_train_timesteps={o['num_train_timesteps']}")

    def _refuse(self, name: str, expected: str) -> None:
        raise DataError(f"{self.file}: {name}={self.options[name]!r} must be {expected}.")

    @property
    def n_obs_steps(self) -> int:
        """To."""
        return self.options["n_obs_steps"]

    @property
    def horizon(self) -> int:
        """H."""
        return self.options["horizon"]

    @property
    def n_keypoints(self) -> int:
        """Of the spatial softmax."""
        return self.options["spatial_softmax_num_keypoints"]

    @property
    def separate(self) -> bool:
        """An image encoder for each camera."""
        return self.options["use_separate_rgb_encoder_per_camera"]

    def observations(self) -> dict[str, tuple[int, ...]]:
        """{feature: (D,) or (H, W, 3)}, in the order of the network's condition."""
        env = {ENV_STATE: (self.env_dim,)} if self.env_dim else {}
        return {STATE: (self.state_dim,), **{k: (*size, 3) for k, size in self.images.items()}, **env}

    def crop(self) -> tuple[int, int] | None:
        """As DiffusionConfig works it out of its three options."""
        o = self.options
        if o["resize_shape"] is None:
            return None if o["crop_shape"] is None else tuple(o["crop_shape"])
        height, width = o["resize_shape"]
        return None if o["crop_ratio"] == 1 else (int(height * o["crop_ratio"]), int(width * o["crop_ratio"]))

    def sections(self, normalised: bool) -> dict[str, Any]:
        """The configuration that ``build_policy`` takes; ``normalised``: see ImageEncoder."""
        o = self.options
        policy = {
            "name": "diffusion",
            "n_inference_steps": o["num_inference_steps"] or o["num_train_timesteps"],
            "n_train_steps": o["num_train_timesteps"],
            "beta_schedule": o["beta_schedule"],
            "prediction": o["prediction_type"],
            "sampler": o["noise_scheduler_type"].lower(),
            "spacing": "leading",
            "clip_sample": o["clip_sample"],
            "noise_per_obs": 1,
            "mask_padding": o["do_mask_loss_for_padding"],
        }
        network = {
            "name": "unet1d",
            "down_dims": list(o["down_dims"]),
            "kernel_size": o["kernel_size"],
            "n_groups": o["n_groups"],
            "n_groups_out": N_GROUPS_OUT,
            "time_dim": o["diffusion_step_embed_dim"],
            "film_scale": o["use_film_scale_modulation"],
        }
        crop = self.crop()
        rgb = {
            "backbone": o["vision_backbone"],
            "n_keypoints": self.n_keypoints,
            "out_dim": 2 * self.n_keypoints,
            "relu": True,
            "norm": "group" if o["use_group_norm"] else "frozen_batch",
            "normalised": normalised,
            "resize": o["resize_shape"],
            "crop_ratio": 1.0,
            "crop": None if crop is None else list(crop),
            "shared": not self.separate,
        }
        encoder = {"state": {"hidden": []}, **({"rgb": rgb} if self.images else {})}
        steps = {name: o[name] for name in ("n_obs_steps", "horizon", "n_action_steps")}
        return {**steps, "policy": policy, "network": network, "encoder": encoder}


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 1


def _features(file: Path, options: dict[str, Any], name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{feature: (type, shape)}."""
    try:
        features = {k: (str(v["type"]), tuple(v["shape"])) for k, v in options[name].items()}
    except (KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{file}: {name} must be {{feature: {{type, shape}}}} ({e!r}).") from e
    if not all(_whole(n) for _, shape in features.values() for n in shape):
        raise DataError(f"{file}: {name} has a shape that is not of whole numbers: {features}.")
    return features


def _vector(file: Path, features: dict[str, tuple[str, tuple[int, ...]]], name: str, kind: str) -> int:
    """D; 0 where an observation is not there."""
    if name not in features and name != ACTION:
        return 0
    found, shape = features.get(name, ("nothing", ()))
    if found != kind or len(shape) != 1:
        raise DataError(f"{file}: the feature '{name}' is {found} {shape}, expected {kind} (D,).")
    return shape[0]


def _image(file: Path, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 3 or shape[0] != 3:
        raise DataError(f"{file}: the image '{name}' is {shape}, expected (3, height, width).")
    return shape[1], shape[2]
