"""The real-time data exchange of a UR controller, from its published guide: which fields there are, and the packets."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from real_robot.simulators.ur_controller import Controller, Safety

# Packets: size (2 bytes, with the header), type, payload
REQUEST_PROTOCOL_VERSION, GET_URCONTROL_VERSION = ord("V"), ord("v")
DATA_PACKAGE, SETUP_OUTPUTS, SETUP_INPUTS = ord("U"), ord("O"), ord("I")
START, PAUSE = ord("S"), ord("P")
HEADER = struct.Struct(">HB")

_FORMATS = {"BOOL": "?", "UINT8": "B", "UINT32": "I", "UINT64": "Q", "INT32": "i", "DOUBLE": "d", "VECTOR3D": "3d",
            "VECTOR6D": "6d", "VECTOR6INT32": "6i"}  # fmt: skip
_SIZES = {"VECTOR3D": 3, "VECTOR6D": 6, "VECTOR6INT32": 6}
_ZERO = np.zeros(6)

Getter = Callable[[Controller], Any]


def _safety_bits(c: Controller) -> int:
    """Bits of safety_status_bits: normal 0, protective 2, robot emergency 6, emergency 7, stopped for safety 10."""
    bits = {Safety.NORMAL: 1, Safety.PROTECTIVE_STOP: 1 << 2 | 1 << 10,
            Safety.ROBOT_EMERGENCY_STOP: 1 << 6 | 1 << 7 | 1 << 10}  # fmt: skip
    return bits[c.safety]


def _powered(c: Controller) -> bool:
    return c.safety != Safety.ROBOT_EMERGENCY_STOP


# Fields that mean something here; the others of the guide are in _STILL
OUTPUTS: dict[str, tuple[str, Getter]] = {
    "timestamp": ("DOUBLE", lambda c: c.time),
    "target_q": ("VECTOR6D", lambda c: c.q),
    "target_qd": ("VECTOR6D", lambda c: c.v),
    "actual_q": ("VECTOR6D", lambda c: c.world.q[:6]),
    "actual_qd": ("VECTOR6D", lambda c: c.world.dq[:6]),
    "actual_current": ("VECTOR6D", lambda c: c.world.effort[:6] / 10),  # A; about 10 Nm per A
    "target_moment": ("VECTOR6D", lambda c: c.world.effort[:6]),
    "actual_TCP_pose": ("VECTOR6D", lambda c: c.tool(c.world.q[:6])),
    "target_TCP_pose": ("VECTOR6D", lambda c: c.tool(c.q)),
    "actual_digital_output_bits": ("UINT64", lambda c: c.outputs),
    "robot_mode": ("INT32", lambda c: 7 if _powered(c) else 3),  # running, power off
    "joint_mode": ("VECTOR6INT32", lambda c: [253] * 6),  # running
    "safety_mode": ("INT32", lambda c: int(c.safety)),
    "safety_status": ("INT32", lambda c: int(c.safety)),
    "speed_scaling": ("DOUBLE", lambda c: c.slider if c.running else 0.0),
    "target_speed_fraction": ("DOUBLE", lambda c: c.slider),
    "runtime_state": ("UINT32", lambda c: 2 if c.running else 1),  # playing, stopped
    "robot_status_bits": ("UINT32", lambda c: int(_powered(c)) | int(c.running) << 1),
    "safety_status_bits": ("UINT32", _safety_bits),
    "actual_main_voltage": ("DOUBLE", lambda c: 48.0),
    "actual_robot_voltage": ("DOUBLE", lambda c: 48.0),
}
# Fields that stand still at zero
_STILL = {
    "DOUBLE": ("actual_execution_time", "actual_momentum", "actual_robot_current", "standard_analog_input0",
               "standard_analog_input1", "standard_analog_output0", "standard_analog_output1", "payload",
               "tool_output_current"),
    "VECTOR6D": ("target_qdd", "target_current", "joint_control_output", "actual_TCP_speed", "actual_TCP_force",
                 "target_TCP_speed", "joint_temperatures", "actual_joint_voltage", "ft_raw_wrench",
                 "payload_inertia"),
    "VECTOR3D": ("actual_tool_accelerometer", "payload_cog"),
    "UINT64": ("actual_digital_input_bits",),
}  # fmt: skip
_STILL_TYPES = {name: kind for kind, names in _STILL.items() for name in names}


def output(name: str) -> tuple[str, Getter] | None:
    """Type and getter of a field; None where there is none of that name."""
    if name in OUTPUTS:
        return OUTPUTS[name]
    if name in _STILL_TYPES:
        kind = _STILL_TYPES[name]
        return kind, (lambda c: 0 if kind in ("DOUBLE", "UINT64") else _ZERO)
    for prefix, kind in (("output_int_register_", "INT32"), ("output_double_register_", "DOUBLE")):
        if name.startswith(prefix) and (i := int(name[len(prefix) :])) < 48:
            return kind, (lambda c: c.int_out[i]) if kind == "INT32" else (lambda c: c.double_out[i])
    return None


_INPUTS = {
    "speed_slider_mask": "UINT32",
    "speed_slider_fraction": "DOUBLE",
    "standard_analog_output_0": "DOUBLE",
    "standard_analog_output_1": "DOUBLE",
    "external_force_torque": "VECTOR6D",
    **dict.fromkeys(
        ("standard_digital_output_mask", "standard_digital_output", "configurable_digital_output_mask",
         "configurable_digital_output", "tool_digital_output_mask", "tool_digital_output",
         "standard_analog_output_mask", "standard_analog_output_type"), "UINT8"),
}  # fmt: skip


def input_type(name: str) -> str | None:
    """Type of a field that may be written; None where there is none of that name."""
    if name.startswith("input_int_register_"):
        return "INT32"
    return "DOUBLE" if name.startswith("input_double_register_") else _INPUTS.get(name)


class Recipe:
    """A list of fields, and the packet that holds their values."""

    def __init__(self, names: Sequence[str], types: Sequence[str]):
        self.names, self.types = tuple(names), tuple(types)
        self._struct = struct.Struct(">" + "".join(_FORMATS[t] for t in types))

    def pack(self, values: Sequence[Any]) -> bytes:
        """Bytes of the values, vectors flattened."""
        flat: list[Any] = []
        for kind, value in zip(self.types, values, strict=True):
            flat.extend(value) if kind in _SIZES else flat.append(value)
        return self._struct.pack(*flat)

    def unpack(self, payload: bytes) -> dict[str, Any]:
        """Inverse of ``pack``. Raises struct.error where the size does not fit."""
        flat, found, i = self._struct.unpack(payload), {}, 0
        for name, kind in zip(self.names, self.types, strict=True):
            n = _SIZES.get(kind, 1)
            found[name] = flat[i] if n == 1 else flat[i : i + n]
            i += n
        return found


def apply(c: Controller, values: dict[str, Any]) -> None:
    """What a client wrote."""
    for name, value in values.items():
        if name.startswith("input_int_register_"):
            c.int_in[int(name[19:])] = value
        elif name.startswith("input_double_register_"):
            c.double_in[int(name[22:])] = value
    if "input_int_register_0" in values:
        c.fed()
    for prefix, first in (("standard_digital", 0), ("configurable_digital", 8), ("tool_digital", 16)):
        if f"{prefix}_output_mask" in values:
            mask, bits = values[f"{prefix}_output_mask"] << first, values[f"{prefix}_output"] << first
            c.outputs = c.outputs & ~mask | bits & mask
    if values.get("speed_slider_mask"):
        c.slider = float(np.clip(np.nan_to_num(values["speed_slider_fraction"]), 0.0, 1.0))


def packet(kind: int, payload: bytes = b"") -> bytes:
    """With its header."""
    return HEADER.pack(HEADER.size + len(payload), kind) + payload
