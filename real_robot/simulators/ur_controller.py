"""A UR controller from the inside: registers, program, motion, safety, as ur-rtde's control script uses them.

The script that ur-rtde uploads is not interpreted: its dispatch (input register 0 is a command, output register 0 says
1 ready, 2 done) is done here. Where Universal Robots documents no behaviour, a comment says what is assumed.
"""

from __future__ import annotations

import sys
from enum import IntEnum

import numpy as np

from real_robot.core.kinematics import Kinematics, Pose
from real_robot.core.types import Joints
from real_robot.simulators.ur_motion import (
    MAX_SPEED,
    Brake,
    Motion,
    MoveJ,
    MoveL,
    ServoJ,
    SpeedJ,
    pose_from_ur,
    pose_to_ur,
)
from real_robot.simulators.world import World

READY, DONE = 1, 2  # output integer register 0
# How many of the double registers a command reads
ARGUMENTS = {1: 8, 2: 8, 3: 8, 4: 8, 9: 8, 11: 11, 15: 1, 16: 1, 24: 11, 29: 6, 30: 12, 33: 1, 34: 1, 35: 1, 37: 6,
             44: 12, 46: 6}  # fmt: skip
REALTIME = (9, 10, 11, 24, 26, 58)  # commands after which the script is ready at once
SAFETY_BRAKE = 20.0  # rad/s^2
MAX_DEVIATION = 0.15  # rad between reference and joint, for longer than DEVIATION_TIME: something is in the way
DEVIATION_TIME = 0.05  # s


class Safety(IntEnum):
    """safety_mode."""

    NORMAL = 1
    PROTECTIVE_STOP = 3
    ROBOT_EMERGENCY_STOP = 7


class Controller:
    """One arm, at home, powered, no program running.

    Args:
        world: its first six joints are the arm's; a seventh is a gripper at digital output ``gripper_output``.
        kinematics: with the flange as tool.
        gripper_output: number of the standard output that closes the gripper.
        gripper_time: s for a full stroke.
        unlock_after: s that a protective stop lasts at least (5 on the real one).
        remote: whether the pendant stands at remote control.
    """

    def __init__(
        self,
        world: World,
        kinematics: Kinematics,
        *,
        gripper_output: int = 0,
        gripper_time: float = 0.4,
        unlock_after: float = 5.0,
        remote: bool = True,
    ):
        self.world, self.kinematics = world, kinematics
        self.gripper_output, self.gripper_time = gripper_output, gripper_time
        self.unlock_after, self.remote = unlock_after, remote
        self.dt = world.dt / 1e9
        self.int_in, self.int_out = [0] * 48, [0] * 48
        self.double_in, self.double_out = [0.0] * 48, [0.0] * 48
        self.outputs = 0  # standard 0-7, configurable 8-15, tool 16-17
        self.slider = 1.0
        self.tcp_offset: Pose = np.eye(4)
        self._start_time = world.t
        self.time = 0.0  # s since the controller was switched on; goes on while its process is frozen
        self.running = False
        self.safety = Safety.NORMAL
        self.reason = ""  # of the latest stop
        self._stopped_at = self._last_input = 0.0
        self._watchdog = np.inf  # s
        self._executing = False
        self._waiting: Motion | None = None  # the motion at whose end the command is done
        self._deviating = 0.0
        self._lead = world.lag[:6]
        self.place()

    def place(self) -> None:
        """The reference is where the robot is, at rest: at the start, and after the world was reset."""
        self.q = self.world.q[:6].copy()
        self.v = np.zeros(6)
        self.motion: Motion | None = None
        self._waiting = None
        self._opening = 1.0

    # What people and clients do

    def start_program(self) -> None:
        """The control script was uploaded."""
        if self.safety == Safety.NORMAL and self.remote:
            self.running = True
            self._executing, self._watchdog, self._waiting = False, np.inf, None
            self._last_input = self.time
            self.int_out[0] = READY

    def stop_program(self, reason: str) -> None:
        """As a program that ends: the robot brakes, the client has to upload anew."""
        self.running = False
        self.reason = reason
        self.int_out[0] = self.int_in[0] = 0
        self._brake()

    def protective_stop(self, reason: str) -> None:
        """Until it is unlocked; the program ends (on the real one it pauses, and ur-rtde uploads it anew)."""
        if self.safety == Safety.NORMAL:
            self.safety = Safety.PROTECTIVE_STOP
            self._stopped_at = self.time
            self.stop_program(f"protective stop: {reason}")
            print(self.reason, file=sys.stderr, flush=True)

    def emergency(self, pressed: bool) -> None:
        """The button on the pendant."""
        if pressed:
            self.safety = Safety.ROBOT_EMERGENCY_STOP
            self.stop_program("emergency stop")
        elif self.safety == Safety.ROBOT_EMERGENCY_STOP:
            self.safety = Safety.NORMAL

    def unlock(self) -> bool:
        """Out of a protective stop; False while it is too early."""
        if self.safety == Safety.PROTECTIVE_STOP:
            if self.time - self._stopped_at < self.unlock_after:
                return False
            self.safety = Safety.NORMAL
            self._deviating = 0.0
            self.q, self.v, self.motion = self.world.q[:6].copy(), np.zeros(6), None
        return True

    def fed(self) -> None:
        """Input register 0 was written: the watchdog is content."""
        self._last_input = self.time

    def excuse(self, seconds: float) -> None:
        """The simulator itself was held up, and has not heard its clients meanwhile: not their fault."""
        self._last_input += seconds

    # Every 2 ms

    def tick(self) -> None:
        """One control period, before the step of physics."""
        self.time = (self.world.t - self._start_time) / 1e9
        if self.running and self.time - self._last_input > self._watchdog:
            self.stop_program("watchdog: no command in time")
            print(self.reason, file=sys.stderr, flush=True)
        if self.running:
            self._program()
        self._move()
        self._watch()
        self._drive()

    def _program(self) -> None:
        """The main loop of ur-rtde's script."""
        command = self.int_in[0]
        if self._waiting is not None:  # in a command that has not returned
            return
        if command in REALTIME:
            self._process(command)
            if self.running:
                self.int_out[0] = READY
        elif command == 0:
            self._executing = False
            self.int_out[0] = READY
        elif not self._executing:
            self._executing = True
            self.int_out[0] = 0
            self._process(command)
            if self.running and self._waiting is None:
                self.int_out[0] = DONE

    def _process(self, command: int) -> None:
        d = np.array(self.double_in[: ARGUMENTS.get(command, 0)])
        if not np.isfinite(d).all():
            # Undocumented for the real one; the worst that a simulator may do is to be forgiving
            self.protective_stop(f"command {command} with a number that is not finite")
            return
        if command in (1, 2):
            end = d[:6] if command == 1 else self.inverse(d[:6])
            self._start(MoveJ(self.q, end, d[6], d[7]), wait=self.int_in[1] == 0)
        elif command in (3, 4):
            end = self._flange(d[:6]) if command == 3 else self.kinematics.forward(d[:6])
            self._start(MoveL(self.kinematics, self.q, end, d[6], d[7]), wait=self.int_in[1] == 0)
        elif command == 9:
            self._start(SpeedJ(d[:6], d[6], d[7]))
        elif command in (11, 24):
            self._start(ServoJ(d[:6] if command == 11 else self.inverse(d[:6]), d[9], d[10]))
        elif command in (15, 16, 33, 34):  # speedStop, servoStop, stopL, stopJ
            self._start(Brake(d[0]), wait=True)
        elif command == 29:
            self.tcp_offset = pose_from_ur(d[:6])
        elif command == 31:
            self.protective_stop("asked for")
        elif command == 35:
            self._watchdog = 1 / d[0] if d[0] > 0 else np.inf
        elif command == 255:
            self.stop_program("stopScript")
        elif not self._answer(command, d) and command not in (17, 65, 99):  # payloads change nothing, 99 is a kick
            self.stop_program(f"command {command} of ur-rtde is not simulated")
            print(self.reason, file=sys.stderr, flush=True)

    def _answer(self, command: int, d: np.ndarray) -> bool:
        """Commands that ask for something; the answer goes into output registers."""
        if command == 26:
            self.double_out[0] = self.dt
        elif command == 58:
            self.double_out[:6] = pose_to_ur(self.kinematics.forward(self.world.q[:6]))
        elif command == 37:
            self.int_out[1] = int((np.abs(d[:6]) <= 2 * np.pi).all())
        elif command == 40:
            self.double_out[:6] = pose_to_ur(self.tcp_offset)
        elif command == 43:
            self.double_out[:6] = self.tool(self.world.q[:6])
        elif command == 44:
            self.double_out[:6] = pose_to_ur(self.kinematics.forward(d[:6]) @ pose_from_ur(d[6:12]))
        elif command in (30, 46):
            self.double_out[:6] = self.inverse(d[:6], d[6:12] if command == 30 else None)
        elif command == 47:
            self.int_out[1] = int(self.motion is None)
        else:
            return False
        return True

    def _start(self, motion: Motion, *, wait: bool = False) -> None:
        self.motion = motion
        self._waiting = motion if wait else None

    def _brake(self) -> None:
        self._waiting = None
        self.motion = Brake(SAFETY_BRAKE) if self.v.any() else None

    def _move(self) -> None:
        if self.motion is None:
            self.v[:] = 0
            return
        scale = self.slider if self.running else 1.0
        if scale == 0:
            return
        self.q, self.v, ended = self.motion.step(self.q, self.v, self.dt * scale)
        if ended:
            if self.motion is self._waiting:
                self._waiting = None
                self.int_out[0] = DONE
            self.motion = None

    def _watch(self) -> None:
        """What makes the real one stop: too fast, beyond its range, or not where it should be."""
        low, high = self.kinematics.spec.lower[:6], self.kinematics.spec.upper[:6]
        if (np.abs(self.v) > MAX_SPEED + 0.05).any():
            self.protective_stop(f"joint speed {np.abs(self.v).max():.1f} rad/s, at most {MAX_SPEED:.2f}")
        elif (self.q < low).any() or (self.q > high).any():
            self.q = np.clip(self.q, low, high)
            self.protective_stop("a joint is at the end of its range")
        off = np.abs(self.q - self.world.q[:6]).max() > MAX_DEVIATION
        self._deviating = self._deviating + self.dt if off else 0.0
        if self._deviating > DEVIATION_TIME:
            self.q, self.v, self.motion = self.world.q[:6].copy(), np.zeros(6), None
            self.protective_stop("position deviates from path: collision?")

    def _drive(self) -> None:
        closed = bool(self.outputs >> self.gripper_output & 1)
        step = self.dt / self.gripper_time
        self._opening += np.clip((0.0 if closed else 1.0) - self._opening, -step, step)
        self.world.set_targets(np.append(self.q + self._lead * self.v, self._opening)[: len(self.world.q)])

    # Kinematics in the base frame, for the tool that setTcp describes

    def tool(self, q: Joints) -> np.ndarray:
        """Pose of the tool, p[...]."""
        return pose_to_ur(self.kinematics.forward(q) @ self.tcp_offset)

    def _flange(self, p: np.ndarray) -> Pose:
        return pose_from_ur(p) @ np.linalg.inv(self.tcp_offset)

    def inverse(self, p: np.ndarray, near: Joints | None = None) -> Joints:
        """Joints near ``near`` (by default where it is) for a pose of the tool."""
        return self.kinematics.inverse(self._flange(p), self.q if near is None else near, steps=50)
