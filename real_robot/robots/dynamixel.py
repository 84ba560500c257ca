"""Arms of Dynamixel servos (X series, protocol 2.0): ViperX, WidowX, Koch, OpenManipulator, your own.

    python -m real_robot.robots.dynamixel ids port=... joints=a,b,c ids=1,2,3            give new servos their ids
    python -m real_robot.robots.dynamixel calibrate port=... out=arm.json joints=waist,shoulder,elbow,gripper
                                                    ids=1,2,3,4 [model=arm.xml] [gripper=true]
    python -m real_robot.robots.dynamixel show port=... calibration=arm.json
    python -m real_robot.robots.dynamixel hold|release port=... ids=1,2,3,4

With ``model`` zeros are put where the measured ends fit the model's best, else where the joints are at the first Enter.
Two servos that move one joint are set up as shadow and master (Robotis' "secondary id"), and named once here.
The servos' own watchdog stops them when their host dies. Tested with the maker's SDK against a simulator.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import ConfigError
from real_robot.core.types import SECOND, Joints, RobotMode, RobotSpec, State
from real_robot.robots.dynamixel_bus import (
    PROFILE_ACCELERATION,
    PROFILE_VELOCITY,
    DynamixelServos,
)
from real_robot.robots.servo_calibration import Calibration
from real_robot.robots.servo_commands import Kind, main
from real_robot.robots.servo_robot import ServoLeader, ServoRobot, hold_all


class Dynamixel(ServoRobot[DynamixelServos]):
    """An arm.

    Args:
        port: serial port of the adapter.
        calibration: file that ``calibrate`` wrote for this arm; it names the joints.
        name: of the robot.
        model: MJCF file with these joints, for forward kinematics.
        tcp: site of ``model`` that is the tool's centre.
        home: (n,) rad and opening; the middle of all ranges by default.
        velocity, acceleration, jerk: largest, rad/s, /s^2, /s^3; of a gripper, openings per s, s^2, s^3.
        control_hz: rate of reading and writing.
        watchdog: s of silence after which servos stop by themselves, in steps of 0.02; 0: they never do.
        read_timeout: s for all answers to one reading, less than a period.
        max_misses: readings in a row that may fail.
        latency: s between a joint's motion and the receipt of its position.
        baudrate: of the bus; servos are shipped with 57600.
    """

    def __init__(
        self,
        port: str,
        calibration: str | Path,
        *,
        name: str = "dynamixel",
        model: str | Path | None = None,
        tcp: str | None = None,
        home: Sequence[float] | None = None,
        velocity: float = 2.0,
        acceleration: float = 15.0,
        jerk: float = 300.0,
        control_hz: float = 100.0,
        watchdog: float = 0.2,
        read_timeout: float = 0.006,
        max_misses: int = 10,
        latency: float = 0.0,
        baudrate: int = 1_000_000,
    ):
        if not 0 < read_timeout < 1 / control_hz:
            raise ConfigError(f"read_timeout={read_timeout} s does not fit a period of {1 / control_hz:.4f} s.")
        if not (watchdog == 0 or 2 / control_hz < watchdog <= 2.5):
            raise ConfigError(f"watchdog={watchdog} s: more than two periods, and at most 2.5 s, or 0 for none.")
        calibrated = Calibration.load(calibration)
        lower, upper = calibrated.limits
        self.watchdog = watchdog
        self._watched = self._stopped = False
        n = len(calibrated.joints)
        spec = RobotSpec(
            name=name,
            joints=tuple(calibrated.joints),
            lower=lower,
            upper=upper,
            velocity=np.full(n, velocity),
            acceleration=np.full(n, acceleration),
            jerk=np.full(n, jerk),
            control_hz=control_hz,
            gripper=calibrated.gripper,
            model=None if model is None else Path(model),
            tcp=tcp,
            home=np.clip((lower + upper) / 2 if home is None else np.asarray(home, float), lower, upper),
            on_host_death="stops" if watchdog else "continues_to_goal",
        )
        super().__init__(spec, DynamixelServos(port, baudrate, read_timeout), calibrated, max_misses, latency)

    def set_up(self) -> None:
        """Modes; no ramps of the servos' own."""
        self.bus.watch(self.ids, 0)
        self.bus.set_up(self.ids)
        for id in self.ids:
            self.bus.write_surely(id, PROFILE_ACCELERATION, 0, 4)
            self.bus.write_surely(id, PROFILE_VELOCITY, 0, 4)

    def arm(self) -> None:
        """Takes goals again, if the watchdog had stopped it."""
        super().arm()
        self._watched = self._stopped = False

    def write(self, q: Joints) -> None:
        """Watched over from the first one on: until then, and after a stop, nothing moves that would have to stop."""
        super().write(q)
        if self.watchdog and not self._watched:
            self.bus.watch(self.ids, self.watchdog)
            self._watched = True

    def stop(self) -> None:
        """Servos that the watchdog has stopped stand still already, but take no goal."""
        self.bus.watch(self.ids, 0)
        self._watched = False
        super().stop()

    def read(self) -> State:
        """STOPPED once the watchdog has stopped servos: they take no goals until ``recover``."""
        before = self._state
        state = super().read()
        if self._watched and before is not None and state.t - before.t > self.watchdog * SECOND:
            self._stopped = self._stopped or any(self.bus.watchdogs(self.ids).values())
        if self.alarms:
            ids = dict(zip(self.spec.joints, self.ids, strict=True))
            self.alarms = {joint: self.bus.alarm(ids[joint]) for joint in self.alarms}
        if self._stopped and state.mode == RobotMode.READY:
            return State(state.t, state.t_robot, state.q, state.dq, state.effort, RobotMode.STOPPED)
        return state


class LeaderArm(ServoLeader[DynamixelServos]):
    """A leader arm, see ``ServoLeader``."""

    servos = DynamixelServos

    def set_up(self) -> None:
        """No torque."""
        self.bus.set_torque(self.ids, False)
        self.bus.set_up(self.ids)


def last_gasp(port: str, ids: Sequence[int], baudrate: int = 1_000_000, patience: float = 0.5) -> None:
    """Stops an arm whose control process is dead: see ``servo_robot.hold_all``."""
    hold_all(DynamixelServos(port, baudrate), ids, patience)


if __name__ == "__main__":
    main(Kind("dynamixel", DynamixelServos, (), (), None), sys.argv[1:], __doc__ or "")
