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


def controller_of(config: Any) -> Any:
    """1.5's composite controller of one arm per robot.

    Args:
        config: a 1.2 to 1.4 configuration of an arm, a list of them (one per robot), or a 1.5 one, which is kept.

    Raises:
        ConfigError: naming what 1.5 cannot do: another type, absolute actions, limits, an unknown key.
    """
    if isinstance(config, list):
        return [controller_of(c) for c in config]
    if not isinstance(config, Mapping):
        raise ConfigError(f"controller_configs should be a dictionary and is {config!r}.")
    if "body_parts" in config:
        return _composite(config)
    return {"type": "BASIC", "body_parts": {"right": {**_arm(config), "gripper": {"type": "GRIP"}}}}


def _composite(config: Mapping[str, Any]) -> dict[str, Any]:
    parts = dict(config["body_parts"])
    parts |= parts.pop("arms", {})
    for name, part in parts.items():
        if part.get("input_type", "delta") != "delta":
            raise ConfigError(f"controller_configs.body_parts.{name}.input_type={part['input_type']!r}: only 'delta'.")
    return {**config, "body_parts": parts}


def _arm(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("type")
    if kind not in TYPES:
        raise ConfigError(
            f"controller_configs.type={kind!r} is not translated to robosuite 1.5, only {', '.join(TYPES)}."
        )
    arm: dict[str, Any] = {"input_type": "delta", "input_ref_frame": "world"}
    for key, value in config.items():
        name = RENAMED.get(key, key)
        if name in KEPT:
            arm[name] = value
        elif key == "control_delta":
            if not value:
                raise ConfigError(
                    "controller_configs.control_delta=false: absolute actions are not supported, only delta."
                )
        elif key in UNSET:
            if value is not None:
                raise ConfigError(f"controller_configs.{key}={value!r}: robosuite 1.5 cannot limit them.")
        else:
            raise ConfigError(f"controller_configs.{key} is unknown. {nearest(key, [*KEPT, *RENAMED, *UNSET])}")
    return arm
