"""From options to encoders: which one an observation gets follows from its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from data.errors import ConfigError, nearest
from data.spec import FieldSpec
from policies.encoders.force import ForceEncoder
from policies.encoders.image import ImageEncoder, SpatialSoftmax
from policies.encoders.pointcloud import PointCloudEncoder
from policies.encoders.vector import LanguageEncoder, StateEncoder

Options = dict[str, dict[str, Any]]
KINDS = ("state", "pointcloud", "rgb", "depth", "force", "goal", "language")
OF_THE_WHOLE = {
    "rgb": ("shared", "with_depth"),
    "depth": ("shared",),
    "goal": ("shared",),
    "pointcloud": ("relative_to", "translate", "positions"),
}


def paired_depth(fields: Mapping[str, FieldSpec], options: Options) -> dict[str, str]:
    """{colour key: depth key of the same camera} where ``rgb.with_depth`` joins them: rgb and depth, rgb_x and depth_x.

    Raises:
        ConfigError: a colour image without such a partner of its size.
    """
    if not options.get("rgb", {}).get("with_depth", False):
        return {}
    pairs = {}
    for key, field in fields.items():
        if field.kind != "rgb":
            continue
        partner = key.replace("rgb", "depth", 1)
        found = fields.get(partner)
        if partner == key or found is None or found.kind != "depth" or found.shape != field.shape[:2]:
            raise ConfigError(
                f"encoder.rgb.with_depth: observation '{key}' {field.shape} needs the depth of the same camera, "
                f"'{partner}' {field.shape[:2]}; there are {sorted(fields)}."
            )
        pairs[key] = partner
    return pairs


def make_encoders(fields: Mapping[str, FieldSpec], options: Options, pairs: Mapping[str, str]) -> dict[str, nn.Module]:
    """An encoder by key; keys may share one. ``options`` are completed by what a checkpoint has to know.

    Args:
        fields: the observations.
        options: keyword arguments per kind, e.g. {"pointcloud": {"out_dim": 64}}.
        pairs: see ``paired_depth``; the depth keys get no encoder.

    Raises:
        ConfigError: an unknown kind or option, or one that does not fit the observation.
    """
    made: dict[str, nn.Module] = {}
    for key in sorted(fields, key=lambda key: fields[key].kind == "goal"):  # goals may share a camera's encoder
        field = fields[key]
        if key in pairs.values():
            continue
        section = "rgb" if field.kind == "goal" and field.is_image else field.kind
        if section not in KINDS:
            raise ConfigError(f"Observation '{key}' is of kind '{section}'. {nearest(section, list(KINDS))}")
        elder = _elder(key, field, fields, options, made)
        if elder is not None:
            made[key] = made[elder]
            continue
        given = options.get(section, {})
        kwargs = {k: v for k, v in given.items() if k not in OF_THE_WHOLE.get(section, ())}
        if section == "rgb":
            frozen = [e for e in made.values() if isinstance(e, ImageEncoder) and e.frozen]
            kwargs["twin"] = frozen[0] if frozen else None
        channels = 4 if key in pairs else 3
        relative = 3 * (options.get("pointcloud", {}).get("relative_to") is not None)
        try:
            made[key] = _FACTORIES[section](field, kwargs, channels, relative)
        except (TypeError, ValueError) as e:
            raise ConfigError(f"encoder.{section} (for observation '{key}'): {e}.") from e
        options.setdefault(section, {}).update(getattr(made[key], "resolved", {}))
    return {key: made[key] for key in fields if key in made}


def _elder(
    key: str, field: FieldSpec, fields: Mapping[str, FieldSpec], options: Options, made: Mapping[str, nn.Module]
) -> str | None:
    """The key whose encoder ``key`` shares; None where it needs one of its own."""
    kind = field.kind
    if not field.is_image or not options.get(kind, {}).get("shared", False):
        return None
    elder = next((k for k in made if fields[k].kind == ("rgb" if kind == "goal" else kind)), None)
    if elder is None:
        if kind == "goal":
            raise ConfigError(f"encoder.goal.shared: there is no rgb observation whose encoder '{key}' could share.")
        return None
    encoder = made[elder]
    with_depth = isinstance(encoder, ImageEncoder) and encoder.in_channels == 4
    if fields[elder].shape != field.shape or (kind == "goal" and with_depth):
        raise ConfigError(
            f"encoder.{kind}.shared: '{key}' {field.shape} and '{elder}' {fields[elder].shape} cannot share one: they "
            "must have the same size and channels."
        )
    return elder


def _image(field: FieldSpec, kwargs: dict[str, Any], channels: int) -> ImageEncoder:
    encoder = ImageEncoder(channels, **kwargs)
    seen = encoder.window(*field.shape[:2])
    if isinstance(encoder.pool, SpatialSoftmax) and min(seen) <= 32:
        # The spatial softmax of one cell is a constant.
        raise ValueError(f"{seen} of {field.shape} is too small for a ResNet: use 48 pixels")
    return encoder


_FACTORIES: dict[str, Callable[[FieldSpec, dict[str, Any], int, int], nn.Module]] = {
    "state": lambda field, kwargs, channels, relative: StateEncoder(field.shape[-1], **kwargs),
    "goal": lambda field, kwargs, channels, relative: StateEncoder(field.shape[-1], **kwargs),
    "pointcloud": lambda field, kwargs, channels, relative: PointCloudEncoder(field.shape[-1] + relative, **kwargs),
    "rgb": lambda field, kwargs, channels, relative: _image(field, kwargs, channels),
    "depth": lambda field, kwargs, channels, relative: _image(field, kwargs, 1),
    "force": lambda field, kwargs, channels, relative: ForceEncoder(field.shape, **kwargs),
    "language": lambda field, kwargs, channels, relative: LanguageEncoder(field.shape[-1], **kwargs),
}
