"""A robot's description from its MuJoCo model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import mujoco as _mujoco
import numpy as np

from data.errors import ConfigError
from real_robot.core.types import RobotSpec

mujoco: Any = _mujoco  # its compiled members are unknown to type checkers


def spec_from_model(
    name: str,
    model: Path,
    joints: Sequence[str] | None = None,
    *,
    tcp: str = "tcp",
    gripper: str | None = "gripper",
    velocity: float | Sequence[float] = 1.5,
    acceleration: float | Sequence[float] = 10.0,
    jerk: float | Sequence[float] = 500.0,
    control_hz: float = 125.0,
    gripper_speed: float = 3.0,
    on_host_death: Literal["stops", "holds_last", "continues_to_goal"] = "holds_last",
) -> RobotSpec:
    """Names and position limits from the model's actuators, home from its key "home"; a model tells nothing of motion.

    Args:
        name: of the robot.
        model: MJCF file; its position actuators bear their joints' names.
        joints: without the gripper; by default all actuators but the gripper's, in the model's order.
        tcp: site of the tool's centre.
        gripper: actuator of the gripper; None where there is none, or it is not to be used.
        velocity, acceleration, jerk: limits of the joints, rad/s, rad/s^2, rad/s^3 (m for sliding ones).
        control_hz: rate that it is written to at.
        gripper_speed: openings per s; it may reach that within 0.1 s.
        on_host_death: see ``RobotSpec``.

    Raises:
        ConfigError: an actuator that is not there, or a joint without limits.
    """
    m = mujoco.MjModel.from_xml_path(str(model))
    actuators = {m.actuator(i).name: i for i in range(m.nu)}
    arm = tuple(joints) if joints is not None else tuple(a for a in actuators if a != gripper)
    names = (*arm, gripper) if gripper else arm
    if missing := [n for n in names if n not in actuators]:
        raise ConfigError(f"{model} has no actuator named {missing}; it has {list(actuators)}.")
    index = [actuators[n] for n in names]
    low, high = m.actuator_ctrlrange[index].T.copy()
    if unlimited := [n for n, a, b in zip(names, low, high, strict=True) if not a < b]:
        raise ConfigError(f"{model}: actuators {unlimited} have no ctrlrange, which is their joints' limits.")
    home = m.key_ctrl[0][index].copy() if m.nkey else np.zeros(len(names))
    limits = [np.broadcast_to(np.asarray(v, np.float64), (len(arm),)) for v in (velocity, acceleration, jerk)]
    if gripper:
        home[-1] = (home[-1] - low[-1]) / (high[-1] - low[-1])
        low[-1], high[-1] = 0, 1
        limits = [np.append(v, gripper_speed * 10**i) for i, v in enumerate(limits)]
    return RobotSpec(name, names, low, high, *limits, control_hz=control_hz, gripper=gripper is not None, model=model,
                     tcp=tcp, home=home, on_host_death=on_host_death)  # fmt: skip


def servo_gains(spec: RobotSpec) -> tuple[np.ndarray, np.ndarray]:
    """Stiffness, Nm/rad, and damping, Nms/rad, (n,) less the gripper, of the model's position actuators.

    Raises:
        ConfigError: there is no model, or an actuator of it is not a position actuator.
    """
    if spec.model is None:
        raise ConfigError(f"robot {spec.name} has no model to take its servos' gains from.")
    m = mujoco.MjModel.from_xml_path(str(spec.model))
    index = [m.actuator(name).id for name in spec.joints[: spec.n - spec.gripper]]
    stiffness, bias = m.actuator_gainprm[index, 0].copy(), m.actuator_biasprm[index]
    if not ((stiffness > 0) & (bias[:, 1] == -stiffness) & (bias[:, 2] <= 0)).all():
        raise ConfigError(f"{spec.model}: the joints' actuators are not <position>: their stiffness is not known.")
    return stiffness, -bias[:, 2]
