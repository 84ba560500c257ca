"""Universal Robots' arms through ``ur-rtde``: servoJ at the control rate, the controller's watchdog always armed.

What the library does not tell, and this driver sees to:

- its getters return the last values for ever once the controller is gone, ``isConnected`` stays true while it is
  frozen: only the controller's own timestamp says that it is heard from
- ``servoJ`` takes NaN; it connects and uploads its script again by itself when the connection was lost, so that a robot
  may go on where a person has not asked for it: nothing is sent to a controller that is not heard from
- all but ``servoJ`` wait for the controller, up to minutes: they run in a thread beside the control loop
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.errors import ConfigError
from real_robot.core.clock import MonotonicClock
from real_robot.core.types import SECOND, Clock, DeviceError, Joints, RobotMode, State
from real_robot.robots.spec import spec_from_model
from real_robot.robots.ur_dashboard import Dashboard
from real_robot.simulators.scene import model_path

JOINTS = ("shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint",
          "wrist_1_joint", "wrist_2_joint", "wrist_3_joint")  # fmt: skip
FIELDS = ["timestamp", "actual_q", "actual_qd", "actual_current", "robot_mode", "robot_status_bits",
          "safety_status_bits", "actual_digital_output_bits"]  # fmt: skip
DRIFT = 200e-6  # of the controller's clock against this machine's, at most
RUNNING = 7  # robot_mode
PROGRAM = 1 << 1  # robot_status_bits
STOPPED_BITS = 1 << 2 | 1 << 4  # safety_status_bits: protective stop, safeguard stop
FAULT_BITS = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9  # emergency stops, violation, fault


class UR:
    """A UR3e, UR5e, UR10e, ... in remote control, and a gripper at a digital output.

    Args:
        host: address of the controller.
        model: MJCF of the arm with joints named as in ROS; "ur5e" comes with Deft, others have to be given.
        tcp: its site that is the tool's centre.
        velocity, acceleration, jerk: limits of the joints, rad/s, rad/s^2, rad/s^3.
        control_hz: of servoJ; at most 500 (125 on a CB3).
        lookahead_s: 0.03-0.2: smooths, and delays by as much.
        gain: 100-2000: stiffness of servoJ.
        stop_deceleration: rad/s^2 of ``stop``.
        watchdog_hz: the controller ends its program when it has had no command for 1 / watchdog_hz s.
        timeout_s: a controller not heard from for so long is an error.
        latency_s: between the arm and the newest state read, as calibrated.
        gripper: "digital" closes at a standard digital output, "none" has none.
        gripper_output: number of the output; 8-9 are the tool's own 0-1.
        gripper_closed_by: state of the output that closes it.
        gripper_time_s: for a full stroke; there being no sensor, the opening is estimated from the output and this.
        gripper_band: the output changes when the asked-for opening passes 0.5 by as much.
        clock: for tests.
    """

    def __init__(
        self,
        host: str,
        *,
        model: str | Path = "ur5e",
        tcp: str = "tcp",
        velocity: float | Sequence[float] = 1.5,
        acceleration: float | Sequence[float] = 10.0,
        jerk: float | Sequence[float] = 500.0,
        control_hz: float = 125.0,
        lookahead_s: float = 0.05,
        gain: float = 500.0,
        stop_deceleration: float = 8.0,
        watchdog_hz: float = 10.0,
        timeout_s: float = 0.3,
        latency_s: float = 0.0,
        gripper: Literal["digital", "none"] = "digital",
        gripper_output: int = 0,
        gripper_closed_by: bool = True,
        gripper_time_s: float = 0.4,
        gripper_band: float = 0.1,
        clock: Clock | None = None,
    ):
        if not 0.03 <= lookahead_s <= 0.2 or not 100 <= gain <= 2000 or not 0 < control_hz <= 500:
            raise ConfigError(
                f"robot ur: lookahead_s={lookahead_s} must lie in [0.03, 0.2], gain={gain} in [100, 2000], "
                f"control_hz={control_hz} in (0, 500]."
            )
        if gripper not in ("digital", "none"):
            raise ConfigError(f"robot ur: gripper={gripper} is not known: 'digital' or 'none'.")
        self.host, self._lookahead, self._gain = host, lookahead_s, gain
        self._dashboard = Dashboard(host)
        self._deceleration, self._watchdog_hz = stop_deceleration, watchdog_hz
        self._timeout, self._latency = round(timeout_s * SECOND), round(latency_s * SECOND)
        self._gripper = gripper == "digital"
        self._output, self._closed_by = gripper_output, gripper_closed_by
        self._stroke, self._band = gripper_time_s, gripper_band
        self._clock = clock if clock is not None else MonotonicClock()
        self.spec = spec_from_model("ur", model_path(model), JOINTS, tcp=tcp,
                                    gripper="gripper" if self._gripper else None, velocity=velocity,
                                    acceleration=acceleration, jerk=jerk, control_hz=control_hz,
                                    on_host_death="stops")  # fmt: skip
        self._control: Any = None
        self._receive: Any = None
        self._io: Any = None
        self._job: threading.Thread | None = None
        self._failure: DeviceError | None = None
        self._mode = RobotMode.FAULT
        self._closed: bool | None = None  # what the gripper was last asked for

    # Connecting: may take seconds

    def connect(self) -> None:
        """Uploads the control script; the watchdog is armed by the first ``write``."""
        self._interfaces()
        self._closed = None
        self._opening = 0.0 if self._is_closed() else 1.0
        self._expect()

    def _expect(self) -> None:
        """Nothing was heard yet: the clocks' offset is learnt anew."""
        now = self._clock.now()
        self._t_robot, self._offset, self._seen, self._heard, self._written = -1.0, None, now, now, now

    def _interfaces(self) -> None:
        """New connections of all kinds. Raises DeviceError saying what is in the way."""
        try:
            from rtde_control import RTDEControlInterface
            from rtde_io import RTDEIOInterface
            from rtde_receive import RTDEReceiveInterface
        except ImportError as e:
            raise ConfigError(f"robot ur needs ur-rtde ({e}): pip install 'deft[ur]'.") from None
        self._dashboard.check()
        try:
            receive = RTDEReceiveInterface(self.host, -1.0, FIELDS)
            control = RTDEControlInterface(self.host)
            io = RTDEIOInterface(self.host)
        except Exception as e:
            raise DeviceError(
                f"robot ur at {self.host} does not take the control script ({e}): is another program running, "
                "is an EtherNet/IP or PROFINET adapter or another client using its registers?"
            ) from None
        for interface in (receive, control, io):
            # Never deleted: their destructors abort the whole process where a connection was lost meanwhile
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(interface))
        self._receive, self._control, self._io = receive, control, io
        self._armed = False

    def _arm(self) -> None:
        """At the first write: whoever connects may take longer to start than the watchdog waits."""
        if not self._control.setWatchdog(self._watchdog_hz):
            raise DeviceError(f"robot ur at {self.host} has not armed its watchdog: is its control script running?")
        self._armed = True

    # The control loop: nothing here waits

    def read(self) -> State:
        """The newest state; ``t_robot`` stands still while the controller is not heard from.

        Raises:
            DeviceError: not heard from for ``timeout_s``, or ``recover`` has failed.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        r = self._receive
        if r is None:
            raise DeviceError(f"robot ur at {self.host} is not connected.")
        now, t_robot = self._clock.now(), r.getTimestamp()
        if t_robot != self._t_robot:
            self._hear(now, t_robot)
        elif now - self._heard > self._timeout and not self._recovering():
            raise DeviceError(
                f"robot ur at {self.host} has not been heard from for {(now - self._heard) / SECOND:.2f} s: look at "
                "the network cable, the controller, and what else loads the network; then recover."
            )
        self._mode = self._read_mode()
        q, dq, effort = r.getActualQ(), r.getActualQd(), r.getActualCurrent()
        if self._gripper:
            before = self._opening
            self._estimate_opening(now)
            q, dq, effort = (
                [*q, self._opening],
                [*dq, (self._opening - before) * self.spec.control_hz],
                [*effort, np.nan],
            )
        self._kick(now)
        return State(self._seen, t_robot, np.array(q), np.array(dq), np.array(effort), self._mode)

    def _hear(self, now: int, t_robot: float) -> None:
        """Maps the controller's time by the smallest delay seen so far."""
        offset = now - round(t_robot * SECOND)
        if self._offset is not None:
            offset = min(offset, self._offset + round(DRIFT * (now - self._heard)))
        self._t_robot, self._offset, self._heard = t_robot, offset, now
        self._seen = min(now, offset + round(t_robot * SECOND)) - self._latency

    def _read_mode(self) -> RobotMode:
        safety = self._receive.getSafetyStatusBits()
        if safety & FAULT_BITS or self._receive.getRobotMode() != RUNNING:
            return RobotMode.FAULT
        if safety & STOPPED_BITS or not self._receive.getRobotStatus() & PROGRAM or self._recovering():
            return RobotMode.STOPPED
        return RobotMode.READY

    def _follows(self) -> bool:
        """Whether it can be talked to without waiting."""
        heard = self._clock.now() - self._heard < self._timeout // 2
        return heard and self._mode == RobotMode.READY and not self._busy()

    def _kick(self, now: int) -> None:
        """The watchdog minds this process, not whether the robot moves."""
        if self._follows() and now - self._written > 0.3 * SECOND / self._watchdog_hz:
            self._send(self._control.kickWatchdog)

    def _send(self, call: Callable[..., bool], *arguments: Any) -> None:
        self._written = self._clock.now()
        try:
            call(*arguments)
        except Exception as e:
            raise DeviceError(f"robot ur at {self.host}: connection lost ({e}).") from None

    def write(self, q: Joints) -> None:
        """servoJ; not sent while the robot stops, is stopped or is not heard from."""
        if not np.isfinite(q).all():
            raise DeviceError(f"robot ur was sent {q}: only finite targets are taken.")
        if not self._follows():
            return
        if not self._armed:
            self._start("arm", self._arm)
            return
        self._send(self._control.servoJ, q[:6].tolist(), 0.0, 0.0, self.spec.dt, self._lookahead, self._gain)
        if self._gripper:
            self._grip(float(q[-1]))

    def _grip(self, opening: float) -> None:
        closed = opening < 0.5 - self._band if not self._closed else opening < 0.5 + self._band
        if closed == self._closed:
            return
        self._closed = closed
        level = closed == self._closed_by
        if self._output < 8:
            self._send(self._io.setStandardDigitalOut, self._output, level)
        else:
            self._send(self._io.setToolDigitalOut, self._output - 8, level)

    def _is_closed(self) -> bool:
        bit = self._output if self._output < 8 else self._output + 8  # tool outputs are bits 16 and 17
        return bool(self._receive.getActualDigitalOutputBits() >> bit & 1) == self._closed_by

    def _estimate_opening(self, now: int) -> None:
        step = 1 / (self.spec.control_hz * self._stroke)
        self._opening += float(np.clip((0.0 if self._is_closed() else 1.0) - self._opening, -step, step))

    # What takes its time, beside the loop

    def _busy(self) -> bool:
        return self._job is not None and self._job.is_alive()

    def _recovering(self) -> bool:
        return self._busy() and self._job is not None and self._job.name == "recover"

    def _start(self, name: str, job: Callable[[], Any]) -> None:
        """``read`` raises what it fails with."""

        def run() -> None:
            try:
                job()
            except (DeviceError, RuntimeError, OSError) as e:
                self._failure = e if isinstance(e, DeviceError) else DeviceError(f"robot ur at {self.host}: {e}")

        self._job = threading.Thread(target=run, name=name, daemon=True)
        self._job.start()

    def stop(self) -> None:
        """servoStop; ``write`` does nothing until the robot stands. Returns at once."""
        if self._control is None or self._busy():
            return

        def job() -> None:
            with contextlib.suppress(Exception):
                self._control.servoStop(self._deceleration)

        self._start("stop", job)

    def recover(self) -> None:
        """Unlocks a protective stop, connects and uploads anew; ``read`` says STOPPED until that is done, or raises.

        Raises:
            DeviceError: an emergency stop, which only a person can end.
        """
        if self._recovering():
            return
        if self._mode == RobotMode.FAULT and self._clock.now() - self._heard < self._timeout:
            raise DeviceError(
                f"robot ur at {self.host} is in an emergency stop, off, or in a fault: see to the cause, release the "
                "button, power on and release the brakes at the pendant, then recover."
            )
        self._start("recover", self._recover)

    def _recover(self) -> None:
        """All anew: the script that ran is gone, and the connections may be; two clients may not use one register."""
        self._dashboard.unlock()
        self._disconnect()
        self._interfaces()
        self._expect()

    def _disconnect(self) -> None:
        for interface in (self._control, self._io, self._receive):
            with contextlib.suppress(Exception):
                interface.disconnect()

    def close(self) -> None:
        """Brakes, ends the program, so that the arm stands on its brakes or holds by itself."""
        if self._control is None:
            return
        self.stop()
        job, control = self._job, self._control
        if job is not None:
            job.join(1.0)
        if job is None or not job.is_alive():

            def end() -> None:
                with contextlib.suppress(Exception):
                    control.stopScript()

            self._start("close", end)
            assert self._job is not None
            self._job.join(1.0)
        self._disconnect()
        self._control = self._receive = self._io = None
