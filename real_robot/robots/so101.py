"""The SO-101 (and SO-100): six Feetech STS3215 servos on one bus, ids 1 to 6 from the base on.

    python -m real_robot.robots.so101 ids port=/dev/ttyACM0                    give new servos their ids, one by one
    python -m real_robot.robots.so101 calibrate port=... out=so101.json       find every joint's range, by hand
    python -m real_robot.robots.so101 import file=LEROBOT.json out=so101.json take over LeRobot's calibration
    python -m real_robot.robots.so101 show port=... calibration=so101.json    positions while you move the limp arm
    python -m real_robot.robots.so101 hold port=...                           stop where it is, stiff
    python -m real_robot.robots.so101 release port=...                        take the torque away: the arm falls

A servo goes on to its goal when its host dies: see ``last_gasp``. Tested with the maker's SDK against a simulator.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import ConfigError, DeftError
from real_robot.core.options import options
from real_robot.core.types import DeviceError, RobotSpec
from real_robot.robots.feetech import (
    ACCELERATION,
    MODE,
    P_GAIN,
    RETURN_DELAY,
    TORQUE_LIMIT,
    FeetechServos,
)
from real_robot.robots.lerobot_arm import import_calibration
from real_robot.robots.servo_calibration import Calibration
from real_robot.robots.servo_commands import Kind, main, model_ranges
from real_robot.robots.servo_robot import ServoLeader, ServoRobot, hold_all
from real_robot.robots.spec import spec_from_model

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
IDS = (1, 2, 3, 4, 5, 6)
MODEL = Path(__file__).parents[1] / "models" / "so101.xml"
VELOCITY, ACCELERATION_LIMIT, JERK = 3.0, 20.0, 400.0  # rad/s, /s^2, /s^3: a servo turns at 4.7 rad/s without load
GRIPPER = (3.0, 30.0, 600.0)  # openings per s, s^2, s^3


class SO101(ServoRobot[FeetechServos]):
    """A follower arm.

    Args:
        port: serial port of the adapter.
        calibration: file that ``calibrate`` wrote for this arm.
        control_hz: rate of reading and writing.
        home: (6,) rad and opening; the model's by default: above the table, pointing down.
        stiffness: of the servos' position loop (their P coefficient); 32 as shipped, which shakes.
        gripper_torque: share of the gripper's largest torque; all of it burns servos out.
        read_timeout: s for all answers to one reading, less than a period; at 1 Mbaud they take about 2 ms.
        max_misses: readings in a row that may fail.
        latency: s between a joint's motion and the receipt of its position.
        baudrate: of the bus.
    """

    def __init__(
        self,
        port: str,
        calibration: str | Path,
        *,
        control_hz: float = 100.0,
        home: Sequence[float] | None = None,
        stiffness: int = 16,
        gripper_torque: float = 0.5,
        read_timeout: float = 0.006,
        max_misses: int = 10,
        latency: float = 0.0,
        baudrate: int = 1_000_000,
    ):
        if not 0 < read_timeout < 1 / control_hz:
            raise ConfigError(f"read_timeout={read_timeout} s does not fit a period of {1 / control_hz:.4f} s.")
        if not (0 < gripper_torque <= 1 and 0 < stiffness < 255):
            raise ConfigError(f"gripper_torque={gripper_torque} must be in (0, 1], stiffness={stiffness} in 1..254.")
        calibrated = load(calibration)
        self.stiffness, self.gripper_torque = stiffness, gripper_torque
        spec = spec_of(calibrated, control_hz, home)
        super().__init__(spec, FeetechServos(port, baudrate, read_timeout), calibrated, max_misses, latency)

    def set_up(self) -> None:
        """Position mode, prompt answers, no ramps of the servo's own; the servos' memory must fit the calibration."""
        _check_memory(self.bus, self.calibration)
        for id in self.ids:
            self.bus.write_surely(id, RETURN_DELAY, 0, 1)
            self.bus.write_surely(id, MODE, 0, 1)
            self.bus.write_surely(id, P_GAIN, self.stiffness, 1)
            self.bus.write_surely(id, ACCELERATION, 254, 1)
        self.bus.write_surely(self.ids[-1], TORQUE_LIMIT, round(1000 * self.gripper_torque), 2)


class LeaderArm(ServoLeader[FeetechServos]):
    """A leader arm, see ``ServoLeader``."""

    servos = FeetechServos

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """A calibration of these joints."""
        return load(path)

    def set_up(self) -> None:
        """No torque."""
        _check_memory(self.bus, self.calibration)
        self.bus.set_torque(self.ids, False)
        for id in self.ids:
            self.bus.write_surely(id, RETURN_DELAY, 0, 1)


def load(path: str | Path) -> Calibration:
    """A calibration, of these joints."""
    calibration = Calibration.load(path)
    if tuple(calibration.joints) != JOINTS or not calibration.gripper:
        raise ConfigError(f"{path} calibrates {list(calibration.joints)}; an SO-101 has {list(JOINTS)}.")
    return calibration


def spec_of(calibration: Calibration, control_hz: float, home: Sequence[float] | None) -> RobotSpec:
    """Of an arm that goes as far as it was calibrated."""
    lower, upper = calibration.limits
    arm = len(JOINTS) - 1
    start = spec_from_model("so101", MODEL).home if home is None else np.asarray(home, float)
    assert start is not None
    return RobotSpec(
        name="so101",
        joints=JOINTS,
        lower=lower,
        upper=upper,
        velocity=np.array([VELOCITY] * arm + [GRIPPER[0]]),
        acceleration=np.array([ACCELERATION_LIMIT] * arm + [GRIPPER[1]]),
        jerk=np.array([JERK] * arm + [GRIPPER[2]]),
        control_hz=control_hz,
        gripper=True,
        model=MODEL,
        tcp="tcp",
        home=np.clip(start, lower, upper),
        on_host_death="continues_to_goal",
    )


def _check_memory(bus: FeetechServos, calibration: Calibration) -> None:
    for name, joint in calibration.joints.items():
        if (homing := bus.homing(joint.id)) != joint.homing:
            raise DeviceError(
                f"{name} (servo {joint.id}) remembers a homing offset of {homing}, the calibration file says "
                f"{joint.homing}: it is another arm's file, or the servo was changed or calibrated elsewhere. "
                "Calibrate again."
            )


def last_gasp(port: str, ids: Sequence[int] = IDS, baudrate: int = 1_000_000, patience: float = 0.5) -> None:
    """Stops an arm whose control process is dead: see ``servo_robot.hold_all``."""
    hold_all(FeetechServos(port, baudrate), ids, patience)


def take_over(argv: Sequence[str]) -> None:
    """``import file=LEROBOT.json out=so101.json``."""
    given = options(argv, {"file": "", "out": ""})
    if not (given["file"] and given["out"]):
        raise ConfigError("import needs file=..., LeRobot's calibration of this arm, and out=...")
    ends = model_ranges(str(MODEL), JOINTS, gripper=True)
    nominal = {name: (float(a), float(b)) for name, (a, b) in zip(JOINTS[:-1], ends[:-1], strict=True)}
    made = import_calibration(given["file"], "so101", {**nominal, JOINTS[-1]: None})
    made.save(given["out"])
    print(f"Written to {given['out']}. Look at it before anything moves: python -m real_robot.robots.so101 show "
          f"port=... calibration={given['out']}")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["import"]:
        try:
            take_over(sys.argv[2:])
        except DeftError as e:
            raise SystemExit(str(e)) from None
        raise SystemExit(0)
    main(Kind("so101", FeetechServos, JOINTS, IDS, MODEL), sys.argv[1:], __doc__ or "")
