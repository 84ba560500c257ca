"""SO-101 arms that LeRobot has calibrated and recorded with: its calibration file as ours, its numbers in our units.

LeRobot (0.2 to 0.4) tells a joint as a share of the range its calibration found, or in degrees from the middle of it:

    normalised    -100 at the lower end to 100 at the upper; the gripper 0 to 100
    degrees       (tick - middle) * 360 / 4095; the gripper as above (use_degrees=True)

so a policy that was trained on such numbers means nothing without that file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from data.errors import ConfigError
from real_robot.robots.servo_calibration import TURN, Calibration, JointCalibration, measured_joint

UNITS = ("normalised", "degrees")
ORIGIN = "lerobot"  # of a calibration that was taken over
KEYS = ("id", "drive_mode", "homing_offset", "range_min", "range_max")


def import_calibration(path: str | Path, robot: str, nominal: dict[str, tuple[float, float] | None]) -> Calibration:
    """LeRobot's calibration file (~/.cache/huggingface/lerobot/calibration/robots/.../NAME.json) as ours.

    The servos keep what LeRobot has written into them. Zeros are put where both ends fit the model's best.

    Args:
        path: of the file.
        robot: "so101".
        nominal: {joint: the model's ends, rad}, in the robot's order; None of a gripper, which comes last.

    Raises:
        ConfigError: it is not such a file, or not this robot's.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text())
        found = {name: {key: int(content[name][key]) for key in KEYS} for name in nominal}
    except FileNotFoundError:
        raise ConfigError(f"There is no {path}.") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as e:
        raise ConfigError(
            f"{path} is not LeRobot's calibration of an {robot} ({e!r}): expected {{joint: {{{', '.join(KEYS)}}}}} of "
            f"{list(nominal)}."
        ) from None
    joints: dict[str, JointCalibration] = {}
    for name, j in found.items():
        if j["drive_mode"]:
            raise ConfigError(f"{path}: {name} has drive_mode {j['drive_mode']}; an {robot} of LeRobot's has 0.")
        if not 0 <= j["range_min"] < j["range_max"] < TURN:
            raise ConfigError(f"{path}: {name} goes from {j['range_min']} to {j['range_max']}, expected 0 to 4095.")
        joints[name] = measured_joint(j["id"], j["range_min"], j["range_max"], nominal[name], homing=j["homing_offset"])
    return Calibration(robot, joints, gripper=True, origin=ORIGIN)


def units_of(calibration: Calibration, units: str) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """(scale, offset), (n,) each: rad and opening = scale * LeRobot's number + offset.

    Raises:
        ConfigError: other units, or a calibration that is not LeRobot's.
    """
    if units not in UNITS:
        raise ConfigError(f"lerobot.units={units} is not known: {' or '.join(UNITS)}.")
    if calibration.origin != ORIGIN:
        raise ConfigError(
            "LeRobot's numbers are shares of the ranges in its own calibration file, and this calibration was not made "
            "of one: python -m real_robot.robots.so101 import file=LEROBOT.json out=so101.json."
        )
    low, high = (np.array([getattr(j, end) for j in calibration.joints.values()]) for end in ("low", "high"))
    # Where LeRobot says 0, and what its 1 is, in ticks
    zero, one = (low + high) / 2, (high - low) / 200
    if units == "degrees":
        one = np.full(len(low), (TURN - 1) / 360)
    zero[-1], one[-1] = low[-1], (high[-1] - low[-1]) / 100
    offset = calibration.position(zero)
    return calibration.position(zero + one) - offset, offset
