"""cfg of Diffusion Policy's checkpoints: what of it has a counterpart here, and what is refused.

The facts are those of real-stanford/diffusion_policy's policies, its MultiImageObsEncoder, and robomimic 0.2's encoder
as its hybrid policies set it up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data.errors import DataError

OBS = "obs"  # the one observation of a low-dimensional policy
LARGEST, DEEPEST = 10_000, 256  # numbers, numbers of layers: a configuration must not say how long reading takes
N_GROUPS_OUT = 8  # of the U-Net's last norm, whatever n_groups says
ROBOMIMIC = {"backbone": "resnet18", "n_keypoints": 32, "out_dim": 64, "relu": True}  # of its "image" defaults
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std

UNET = ("diffusion_step_embed_dim", "down_dims", "kernel_size", "n_groups", "cond_predict_scale")
TRANSFORMER = ("n_layer", "n_head", "n_emb", "n_cond_layers", "p_drop_emb", "p_drop_attn", "causal_attn",
               "time_as_cond")  # fmt: skip
COMMON = ("noise_scheduler", "horizon", "n_action_steps", "n_obs_steps", "num_inference_steps")
VECTOR = ("model", "obs_dim", "action_dim")
CROPPED = ("shape_meta", "crop_shape", "obs_encoder_group_norm", "eval_fixed_crop")

# Of the schedulers' options: what has a counterpart here (None: whatever it is).
SCHEDULER = {
    "_target_": None, "num_train_timesteps": None, "beta_schedule": None, "beta_start": (0.0001,), "beta_end": (0.02,),
    "prediction_type": ("epsilon", "sample"), "clip_sample": (True, False), "variance_type": ("fixed_small",),
    "set_alpha_to_one": (True,), "steps_offset": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One of their policy classes.

    Attributes:
        network: ours.
        encoder: "robomimic", "torchvision" or None for a vector.
        fixed: {option: (value it must have, their default)}.
        options: all others.
    """

    network: str
    encoder: str | None
    fixed: Mapping[str, tuple[bool, bool]]
    options: tuple[str, ...]


WHOLE = {"pred_action_steps_only": (False, False)}
KINDS = {
    "DiffusionUnetLowdimPolicy": Kind("unet1d", None, {
        "obs_as_global_cond": (True, False), "obs_as_local_cond": (False, False), "oa_step_convention": (True, False),
        **WHOLE}, VECTOR),
    "DiffusionUnetHybridImagePolicy": Kind(
        "unet1d", "robomimic", {"obs_as_global_cond": (True, True)}, (*CROPPED, *UNET)),
    "DiffusionUnetImagePolicy": Kind(
        "unet1d", "torchvision", {"obs_as_global_cond": (True, True)}, ("shape_meta", "obs_encoder", *UNET)),
    "DiffusionTransformerLowdimPolicy": Kind("transformer", None, {"obs_as_cond": (True, False), **WHOLE}, VECTOR),
    "DiffusionTransformerHybridImagePolicy": Kind(
        "transformer", "robomimic", {"obs_as_cond": (True, True), **WHOLE}, (*CROPPED, *TRANSFORMER)),
}  # fmt: skip


class Section:
    """A part of the configuration; its complaints name the key."""

    def __init__(self, file: Path, where: str, options: Any):
        if not isinstance(options, dict):
            raise DataError(f"{file}: {where} is missing.")
        self.file, self.where, self.options = file, where, options

    def section(self, name: str) -> Section:
        """A part of it."""
        return Section(self.file, f"{self.where}.{name}", self.options.get(name))

    def get(self, name: str, kind: type, default: Any = None, least: int = 1, most: int = LARGEST) -> Any:
        """A value of this type; whole numbers from ``least`` to ``most``."""
        value = self.options.get(name, default)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not fits or (kind is int and not least <= value <= most):
            self.refuse(name, value, f"of type {kind.__name__}" + (f", {least}..{most}" if kind is int else ""))
        return value

    def size(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """[height, width] in pixels, or None."""
        value = self.options.get(name, default)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
            self.refuse(name, value, "one [height, width] for all images, or null")
        return value

    def target(self, *known: str) -> str:
        """The class or function that is named, without its module."""
        name = str(self.get("_target_", str)).rsplit(".", 1)[-1]
        if name not in known:
            raise DataError(f"{self.file}: {self.where} is a {name}; {' or '.join(known)} can be read.")
        return name

    def only(self, *known: str) -> None:
        """Raises DataError for an option that is not among these."""
        for name, value in self.options.items():
            if name not in known and not name.startswith("_"):
                raise DataError(f"{self.file}: {self.where}.{name}={value!r:.80} has no counterpart here.")

    def refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        """Raises DataError."""
        raise DataError(f"{self.file}: {self.where}.{name}={value!r:.80} must be {expected}.")


class DiffusionPolicyConfig:
    """cfg, found to fit.

    Args:
        file: for messages.
        cfg: plain dicts and lists.

    Attributes:
        kind: of the policy.
        use_ema: whether it was trained with an average of the weights.
        observations: {name: (D,) or (H, W, 3)}, in the order of the network's condition.
        action_dim: Da.
        image_mean, image_std: what images, brought to [0, 1] and through the normaliser, are normalised by.

    Raises:
        DataError: naming what is missing or has no counterpart here.
    """

    def __init__(self, file: Path, cfg: Any):
        whole = Section(file, "cfg", cfg)
        self.file, self.policy = file, whole.section("policy")
        self.kind = KINDS[self.policy.target(*KINDS)]
        for name, (wanted, default) in self.kind.fixed.items():
            if self.policy.get(name, bool, default) != wanted:
                raise DataError(
                    f"{file}: cfg.policy.{name} must be {str(wanted).lower()}: nothing else has a counterpart here."
                )
        self.policy.only(*COMMON, *self.kind.fixed, *self.kind.options)
        self.use_ema = bool(whole.section("training").options.get("use_ema", False))
        self.image_mean, self.image_std = (0.0,) * 3, (1.0,) * 3
        self.steps = {key: self.policy.get(key, int) for key in ("n_obs_steps", "horizon", "n_action_steps")}
        last = self.steps["n_obs_steps"] - 1 + self.steps["n_action_steps"]
        if last > self.steps["horizon"]:
            self.policy.refuse("n_action_steps", self.steps["n_action_steps"], f"{last - self.steps['horizon']} less")
        self._head = self._scheduler()
        self._network = self._unet() if self.kind.network == "unet1d" else self._transformer()
        self._rgb: dict[str, Any] = {}
        if self.kind.encoder is None:
            self.observations: dict[str, tuple[int, ...]] = {OBS: (self.policy.get("obs_dim", int),)}
            self.action_dim: int = self.policy.get("action_dim", int)
            return
        self.observations, self.action_dim = _shapes(self.policy.section("shape_meta"))
        if self.kind.encoder == "robomimic":
            self._rgb = self._robomimic()
        else:
            self._rgb = self._torchvision()
            vectors = [k for k, shape in self.observations.items() if len(shape) == 1]
            self.observations = {k: self.observations[k] for k in [*sorted(self.images), *sorted(vectors)]}

    @property
    def images(self) -> list[str]:
        """Their names."""
        return [name for name, shape in self.observations.items() if len(shape) > 1]

    @property
    def shared(self) -> bool:
        """One encoder for all images."""
        return bool(self._rgb.get("shared", False))

    def sections(self, normalised: bool) -> dict[str, Any]:
        """The configuration that ``build_policy`` takes; ``normalised``: see ImageEncoder."""
        rgb = {"rgb": {**self._rgb, "normalised": normalised}} if self.images else {}
        encoder = {"state": {"hidden": []}, **rgb}
        return {**self.steps, "policy": self._head, "network": self._network, "encoder": encoder}

    def _scheduler(self) -> dict[str, Any]:
        policy, scheduler = self.policy, self.policy.section("noise_scheduler")
        name = scheduler.target("DDPMScheduler", "DDIMScheduler")
        smooth = scheduler.get("beta_schedule", str) == "squaredcos_cap_v2"  # takes no bounds
        scheduler.only(*SCHEDULER)
        for key, value in scheduler.options.items():
            known = SCHEDULER.get(key)
            if known is not None and value not in known and not (smooth and key.startswith("beta_")):
                scheduler.refuse(key, value, f"one of {known}")
        n_train = scheduler.get("num_train_timesteps", int)
        steps = policy.options.get("num_inference_steps")
        n_steps = n_train if steps is None else policy.get("num_inference_steps", int)
        if n_steps > n_train:
            policy.refuse("num_inference_steps", n_steps, f"at most num_train_timesteps={n_train}")
        return {
            "name": "diffusion",
            "n_inference_steps": n_steps,
            "n_train_steps": n_train,
            "beta_schedule": scheduler.get("beta_schedule", str),
            "prediction": scheduler.get("prediction_type", str),
            "sampler": name[:4].lower(),
            "spacing": "leading",
            "clip_sample": scheduler.get("clip_sample", bool),
            "noise_per_obs": 1,
        }

    def _unet(self) -> dict[str, Any]:
        model = self.policy.section("model") if self.kind.encoder is None else self.policy
        if model.get("kernel_size", int) % 2 == 0:
            raise DataError(f"{self.file}: {model.where}.kernel_size must be odd.")
        return {
            "name": "unet1d",
            "down_dims": list(model.get("down_dims", list)),
            "kernel_size": model.get("kernel_size", int),
            "n_groups": model.get("n_groups", int),
            "n_groups_out": N_GROUPS_OUT,
            "time_dim": model.get("diffusion_step_embed_dim", int),
            "film_scale": model.get("cond_predict_scale", bool),
        }

    def _transformer(self) -> dict[str, Any]:
        model = self.policy.section("model") if self.kind.encoder is None else self.policy
        if not model.get("time_as_cond", bool, True):
            model.refuse("time_as_cond", False, "true")
        dropout = model.options.get("p_drop_attn")
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            model.refuse("p_drop_attn", dropout, "in [0, 1)")
        n_cond_layers = model.get("n_cond_layers", int, 0, least=0, most=DEEPEST)
        return {
            "name": "transformer",
            "width": model.get("n_emb", int),
            "n_layers": model.get("n_layer", int, most=DEEPEST),
            "n_heads": model.get("n_head", int),
            "n_cond_layers": n_cond_layers,
            "encode_time": n_cond_layers > 0,
            "causal": model.get("causal_attn", bool),
            "dropout": float(dropout),
        }

    def _robomimic(self) -> dict[str, Any]:
        crop = self.policy.size("crop_shape", [76, 76])
        if crop is not None and not self.policy.get("eval_fixed_crop", bool, False):
            self.policy.refuse("eval_fixed_crop", False, "true: otherwise its actions are of crops at random")
        norm = "group" if self.policy.get("obs_encoder_group_norm", bool, False) else "frozen_batch"
        return {**ROBOMIMIC, "norm": norm, "crop": crop, "crop_ratio": 1.0, "shared": False}

    def _torchvision(self) -> dict[str, Any]:
        section = self.policy.section("obs_encoder")
        section.target("MultiImageObsEncoder")
        section.only("shape_meta", "rgb_model", "resize_shape", "crop_shape", "random_crop", "use_group_norm",
                     "share_rgb_model", "imagenet_norm")  # fmt: skip
        if section.options.get("shape_meta") != self.policy.options["shape_meta"]:
            raise DataError(f"{self.file}: {section.where}.shape_meta and cfg.policy.shape_meta must be the same.")
        model = section.section("rgb_model")
        model.target("get_resnet")
        model.only("name", "weights")
        if model.get("name", str) not in ("resnet18", "resnet34"):
            model.refuse("name", model.options["name"], "resnet18 or resnet34")
        shared = section.get("share_rgb_model", bool, False)
        if shared and len({self.observations[name] for name in self.images}) > 1:
            section.refuse("share_rgb_model", True, "false for images of several sizes")
        if section.get("imagenet_norm", bool, False):
            self.image_mean, self.image_std = IMAGENET
        group = section.get("use_group_norm", bool, False) and not shared  # theirs leaves a shared one as it is
        return {
            "backbone": model.get("name", str),
            "pool": "mean",
            "out_dim": None,
            "norm": "group" if group else "frozen_batch",
            "resize": section.size("resize_shape"),
            "antialias": False,  # as torchvision 0.13, which they pin, resizes tensors
            "crop": section.size("crop_shape"),
            "crop_ratio": 1.0,
            "shared": shared,
        }


def _shapes(meta: Section) -> tuple[dict[str, tuple[int, ...]], int]:
    """{observation: (D,) or (H, W, 3)} as they come, and Da."""
    out: dict[str, tuple[int, ...]] = {}
    for name in meta.section("obs").options:
        field = meta.section("obs").section(name)
        field.only("shape", "type")
        shape, kind = field.get("shape", list), field.get("type", str, "low_dim")
        fits = {"rgb": len(shape) == 3 and shape[0] == 3, "low_dim": len(shape) == 1}.get(kind, False)
        if not fits or not all(type(n) is int and n > 0 for n in shape):
            field.refuse("shape", shape, f"[3, height, width] of type rgb or [D] of low_dim (its type is {kind!r:.20})")
        out[name] = (shape[1], shape[2], 3) if kind == "rgb" else (shape[0],)
    action = meta.section("action").get("shape", list)
    if len(action) != 1 or type(action[0]) is not int or action[0] < 1 or not out:
        meta.section("action").refuse("shape", action, "[Da], and there must be observations")
    return out, action[0]
