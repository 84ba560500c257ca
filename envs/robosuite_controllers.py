"""Controller configurations of robosuite 1.2 to 1.4, as they stand in robomimic's files, for robosuite 1.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.errors import ConfigError, nearest

TYPES = ("OSC_POSE", "OSC_POSITION")
RENAMED = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
KEPT = (
    "type", "input_max", "input_min", "output_max", "output_min", "kp", "damping_ratio", "impedance_mode", "kp_limits",
    "damping_ratio_limits", "uncouple_pos_ori", "interpolation", "ramp_ratio",
)  # fmt: skip
UNSET = ("position_limits", "orientation_limits")  # 1.5 has the names, and raises where they are set
ABSOLUTE = {"input_type": "absolute", "input_ref_frame": "world"}


def controller_of(config: Any, absolute: bool = False) -> Any:
    """1.5's composite controller of one arm per robot.

    Args:
        config: a 1.2 to 1.4 configuration of an arm, a list of them (one per robot), or a 1.5 one, which is kept.
        absolute: its actions are to be poses in the world, whatever ``config`` says.

    Raises:
        ConfigError: naming what 1.5 cannot do: another type, limits, an unknown key; or absolute actions where they
            were not asked for.
    """
    if isinstance(config, list):
        return [controller_of(c, absolute) for c in config]
    if not isinstance(config, Mapping):
        raise ConfigError(f"controller_configs should be a dictionary and is {config!r}.")
    if "body_parts" in config:
        return _composite(config, absolute)
    return {"type": "BASIC", "body_parts": {"right": {**_arm(config, absolute), "gripper": {"type": "GRIP"}}}}


def _composite(config: Mapping[str, Any], absolute: bool) -> dict[str, Any]:
    parts = dict(config["body_parts"])
    parts |= parts.pop("arms", {})
    if absolute:
        for name in parts.keys() & {"right", "left"}:
            _pose_of(parts[name].get("type"))
            parts[name] = {**parts[name], **ABSOLUTE}
        return {**config, "body_parts": parts}
    for name, part in parts.items():
        if part.get("input_type", "delta") != "delta":
            raise ConfigError(f"controller_configs.body_parts.{name}.input_type={part['input_type']!r}: {_ASK}")
    return {**config, "body_parts": parts}


_ASK = "its actions are absolute. Choose task.actions=absolute, or data.actions=absolute for a file."


def _pose_of(kind: Any) -> None:
    if kind != "OSC_POSE":
        raise ConfigError(f"controller_configs.type={kind!r}: absolute actions need OSC_POSE.")


def _arm(config: Mapping[str, Any], absolute: bool) -> dict[str, Any]:
    kind = config.get("type")
    if kind not in TYPES:
        raise ConfigError(
            f"controller_configs.type={kind!r} is not translated to robosuite 1.5, only {', '.join(TYPES)}."
        )
    arm: dict[str, Any] = {"input_type": "delta", "input_ref_frame": "world"}
    if absolute:
        _pose_of(kind)
        arm |= ABSOLUTE
    for key, value in config.items():
        name = RENAMED.get(key, key)
        if name in KEPT:
            arm[name] = value
        elif key == "control_delta":
            if not value and not absolute:
                raise ConfigError(f"controller_configs.control_delta=false: {_ASK}")
        elif key in UNSET:
            if value is not None:
                raise ConfigError(f"controller_configs.{key}={value!r}: robosuite 1.5 cannot limit them.")
        else:
            raise ConfigError(f"controller_configs.{key} is unknown. {nearest(key, [*KEPT, *RENAMED, *UNSET])}")
    return arm
