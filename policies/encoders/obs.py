"""Encodes all observation keys of a task and fuses their features into tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data.errors import ConfigError, nearest
from data.spec import FieldSpec
from policies.encoders.force import ForceEncoder
from policies.encoders.fusion import Concat, Gated, Tokens
from policies.encoders.image import ImageEncoder
from policies.encoders.make import KINDS, make_encoders, paired_depth
from policies.rng import BatchRng

FUSIONS = ("concat", "tokens", "gated")
CONSTANT = "language"  # the key of an instruction that is given by path and not observed


class ObsEncoder(nn.Module):
    """Normalised observations (B, To, *shape) -> tokens (B, L, C), see ``policies.encoders.fusion``.

    Args:
        fields: the task's observations.
        options: keyword arguments of the encoders by kind, see ``make_encoders``; ``pointcloud.relative_to`` see
            ``relative``, its ``translate`` and ``positions`` see ``translated``; ``fusion``: "concat", "tokens" (of
            width ``token_dim``) or "gated".

    Attributes:
        options: the same, completed by what a checkpoint must hold to do without the files that they name.
        pairs: {colour key: depth key} that one encoder takes together.
    """

    def __init__(self, fields: Mapping[str, FieldSpec], options: Mapping[str, Any] | None = None):
        super().__init__()
        self.options: dict[str, Any] = copy.deepcopy(dict(options or {}))
        for name in self.options:
            if name not in (*KINDS, "fusion", "token_dim"):
                raise ConfigError(f"Unknown option 'encoder.{name}'. {nearest(name, [*KINDS, 'fusion', 'token_dim'])}")
        self.unobserved = self._unobserved(fields)
        fields = {**fields, **self.unobserved}
        sections = {k: v for k, v in self.options.items() if k in KINDS}
        self.pairs = paired_depth(fields, sections)
        self.encoders = nn.ModuleDict(make_encoders(fields, sections, self.pairs))
        self.options.update({k: v for k, v in sections.items() if v})
        self.constant = [k for k, f in fields.items() if f.kind in ("goal", "language")]
        self.fusion = self._make_fusion([k for k, f in fields.items() if f.kind == "force"])
        self.clouds = [k for k, f in fields.items() if f.kind == "pointcloud"]
        self.relative_to: str | None = sections.get("pointcloud", {}).get("relative_to") if self.clouds else None
        if self.relative_to is not None and fields.get(self.relative_to, FieldSpec((0,), "", "state")).shape[0] < 3:
            raise ConfigError(
                f"encoder.pointcloud.relative_to='{self.relative_to}' must be an observation that starts with a "
                f"position (x, y, z); there are {sorted(fields)}. null turns it off."
            )
        self.translate, self.positions = self._make_translation(fields, sections.get("pointcloud", {}))

    def _make_translation(
        self, fields: Mapping[str, FieldSpec], cloud: Mapping[str, Any]
    ) -> tuple[tuple[float, ...], dict[str, list[int]]]:
        asked, positions = cloud.get("translate", 0.0), dict(cloud.get("positions") or {})
        option = "encoder.pointcloud.translate"
        reach = tuple(float(r) for r in asked) if isinstance(asked, Sequence) else (float(asked),) * 3
        if len(reach) != 3 or not all(0 <= r < math.inf for r in reach):
            raise ConfigError(f"{option}={asked} must be metres, at least 0, or [x, y, z] of them.")
        if not self.clouds or not any(reach):
            return (0.0, 0.0, 0.0), {}
        for key, field in fields.items():
            if field.is_image:
                raise ConfigError(f"{option}={asked}: the picture '{key}' cannot be moved along.")
            if field.kind in ("state", "goal") and key not in positions:
                raise ConfigError(
                    f"{option}={asked}: say where positions (x, y, z) start in '{key}' {field.shape}: "
                    f"encoder.pointcloud.positions='{{{key}: [0]}}', or '{{{key}: []}}' where none do."
                )
            if any(not 0 <= start <= field.shape[0] - 3 for start in positions.get(key, [])):
                raise ConfigError(
                    f"encoder.pointcloud.positions: '{key}' {field.shape} has no three numbers at {positions[key]}."
                )
        return reach, {key: list(starts) for key, starts in positions.items() if key in fields}

    def _unobserved(self, fields: Mapping[str, FieldSpec]) -> dict[str, FieldSpec]:
        language = self.options.get("language", {})
        given = language.get("path") is not None or language.get("table") is not None
        if not given or any(f.kind == "language" for f in fields.values()):
            return {}
        if CONSTANT in fields:
            raise ConfigError(f"encoder.language.path: observation '{CONSTANT}' must be of kind language.")
        return {CONSTANT: FieldSpec((1,), "int64", "language")}

    def _make_fusion(self, force: Collection[str]) -> Concat | Tokens:
        name, widths = self.options.get("fusion", "concat"), {k: int(e.out_dim) for k, e in self.encoders.items()}  # type: ignore[arg-type]
        try:
            if name == "concat":
                return Concat(widths, self.constant)
            if name == "tokens":
                return Tokens(widths, self.constant, dim=self.options.get("token_dim", 64))
            if name == "gated":
                return Gated(widths, self.constant, force)
        except ValueError as e:
            raise ConfigError(f"encoder: {e}.") from e
        raise ConfigError(f"Unknown encoder.fusion '{name}'. {nearest(str(name), list(FUSIONS))}")

    def token_shape(self, n_obs_steps: int) -> tuple[int, int]:
        """(L, C) of what ``forward`` returns for windows of so many observations."""
        return self.fusion.token_shape(n_obs_steps)

    def token_mask(self, keys: Collection[str] | None, n_obs_steps: int) -> Bool[Tensor, "l c"]:
        """Which entries of the tokens come from ``keys``; None: all.

        Of a camera whose colour and depth are encoded together, both come from either key; what force gates still
        comes from where it came from. An instruction given by path has the key "language".

        Raises:
            ConfigError: a key that is not observed.
        """
        owner = {**{k: k for k in self.encoders}, **{depth: colour for colour, depth in self.pairs.items()}}
        for key in keys or []:
            if key not in owner:
                raise ConfigError(f"Unknown observation '{key}'. {nearest(key, list(owner))}")
        return self.fusion.token_mask({owner[key] for key in (owner if keys is None else keys)}, n_obs_steps)

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Pre-trained weights that are not to be trained."""
        frozen = [e for e in self.encoders.values() if isinstance(e, ImageEncoder) and e.frozen]
        return [p for encoder in frozen for p in encoder.backbone.parameters()]

    def trainable_copy(self) -> ObsEncoder:
        """A copy to train on; frozen weights are shared with it."""
        kept = {id(p): p for p in self.frozen_parameters()}
        new = copy.deepcopy(self, kept).requires_grad_(True)
        for parameter in new.frozen_parameters():
            parameter.requires_grad_(False)
        return new

    def relative(self, obs: Mapping[str, Tensor], normalise: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Normalised clouds (B, To, P, C) with three more channels: the offset of each point from the gripper.

        Where the hand has to go depends on where things are from the hand; ten demonstrations are too few to learn
        that difference from absolute positions. DP3 leaves it to the network (``relative_to: null``).

        Args:
            obs: environment units; ``obs[relative_to][..., :3]`` is the gripper's position in the clouds' frame.
            normalise: (key, x) -> x in that key's normalised units.
        """
        if self.relative_to is None:
            return {}
        out = {}
        for key in self.clouds:
            points, gripper = normalise(key, obs[key]), obs[self.relative_to][..., None, :3]
            if points.shape[-1] > 3:  # colours have no origin
                gripper = torch.cat([gripper, obs[key][..., :1, 3:]], -1)
            out[key] = torch.cat([points, points[..., :3] - normalise(key, gripper)[..., :3]], -1)
        return out

    def translated(self, obs: Mapping[str, Tensor], rng: BatchRng) -> dict[str, Tensor]:
        """Scenes, in training: clouds and ``positions``, all frames of a sample by the same offset in +-``translate``.

        Where actions are displacements, they do not depend on where a scene is; ten demonstrations do not say so.

        Args:
            obs: environment units, (B, To, *shape) by key.
            rng: drives it; nothing is drawn where ``translate`` is 0.
        """
        moved = dict(obs)
        if not any(self.translate):
            return moved
        some = obs[self.clouds[0]]
        offset = (2 * rng.rand(len(some), 3) - 1).to(some) * some.new_tensor(self.translate)
        for key in self.clouds:
            moved[key] = obs[key].clone()
            moved[key][..., :3] += offset[:, None, None]
        for key, starts in self.positions.items():
            moved[key] = obs[key].clone()
            for start in starts:
                moved[key][..., start : start + 3] += offset[:, None]
        return moved

    def forward(self, obs: Mapping[str, Tensor], rng: BatchRng | None = None) -> Float[Tensor, "b l c"]:
        """``rng`` drives the augmentation of images in training; every key draws its own."""
        b, to = next(iter(obs.values())).shape[:2]
        features = {}
        for key, encoder in self.encoders.items():
            if key in self.unobserved:
                x = torch.zeros(b, 1, 1, dtype=torch.long, device=next(iter(obs.values())).device)
            else:
                x = obs[key][:, -1:] if key in self.constant else obs[key]
            if isinstance(encoder, ImageEncoder):
                features[key] = encoder(x, rng, obs[self.pairs[key]] if key in self.pairs else None)
            elif isinstance(encoder, ForceEncoder):
                features[key] = encoder(x)
            else:
                features[key] = encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.fusion(features, to)
