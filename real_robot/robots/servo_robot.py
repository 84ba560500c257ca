"""An arm of bus servos as a robot: reading, following, standing still, whatever the servos' make."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from real_robot.core.types import SECOND, DeviceError, Joints, RobotMode, RobotSpec, State
from real_robot.robots.servo_bus import Reading, ServoBus
from real_robot.robots.servo_calibration import TICK, Calibration

PATIENCE = 0.1  # s for answers, where no control loop waits
OUTSIDE = 57  # ticks (5 degrees) that a joint may rest beyond its calibrated range
MILD = {"overload", "too much current"}  # alarms that pass once the load does
BusType = TypeVar("BusType", bound=ServoBus)


class ServoReader(Generic[BusType]):
    """Reads an arm of servos.

    A lost or damaged packet costs one period: ``read`` then returns the last state again, with its old times.

    Args:
        bus: of the servos.
        calibration: of the joints.
        max_misses: reads in a row that may go wrong.
        latency: s between a joint's motion and the receipt of its position.
    """

    def __init__(self, bus: BusType, calibration: Calibration, max_misses: int, latency: float):
        self.bus, self.calibration = bus, calibration
        self.max_misses, self.latency = max_misses, latency
        self.ids = calibration.ids
        self.misses = 0
        self.lost = 0  # reads that went wrong since ``connect``, for whoever looks after cables
        self.alarms: dict[str, str] = {}  # {joint: what its servo complains of}
        self.ticks = self._turns = np.zeros(len(self.ids))
        self._clocks = np.zeros(len(self.ids))  # s, since ``connect``
        self._ticking: list[int | None] = [None for _ in self.ids]
        self._state: State | None = None

    def connect(self) -> None:
        """Ready to be read. Raises DeviceError naming the servos that are silent."""
        self.bus.open(patience=0.2)
        try:
            with self.bus.patiently(PATIENCE):
                self.bus.find(self.ids)
                self.set_up()
                self.locate()
        except BaseException:
            self.bus.close()
            raise

    def set_up(self) -> None:
        """What servos have to be told before they are read; none of it moves them."""

    def locate(self) -> None:
        """The first state; finds out which turn of a servo that counts turns the joint is in."""
        for _ in range(10):
            if len(readings := self.bus.present(self.ids)) == len(self.ids):
                break
        else:
            silent = [id for id in self.ids if id not in readings]
            raise DeviceError(f"{self.bus.port.path}: servos {silent} answer, but do not tell their state.")
        raw = np.array([readings[id].position for id in self.ids], float)
        self._turns = self.calibration.nearest_turn(raw)
        beyond = self.calibration.beyond(raw + self._turns)
        if (beyond > OUTSIDE).any():
            far = [f"{name} by {np.degrees(b * TICK):.0f} degrees"
                   for name, b in zip(self.calibration.joints, beyond, strict=True) if b > OUTSIDE]  # fmt: skip
            raise DeviceError(
                f"Joints stand outside of their calibrated range: {', '.join(far)}. Is the calibration file this "
                "arm's? Else calibrate again."
            )
        self.misses = self.lost = 0
        self._clocks[:] = 0
        self._ticking = [None for _ in self.ids]
        self._state = self._make_state(readings)

    def read(self) -> State:
        """The newest state; after ``max_misses`` in a row a DeviceError that names the silent servos."""
        if self._state is None:
            raise DeviceError(f"{self.bus.port.path}: read before connect.")
        readings = self.bus.present(self.ids)
        if len(readings) == len(self.ids):
            self.misses = 0
            self._state = self._make_state(readings)
            return self._state
        self.misses += 1
        self.lost += 1
        if self.misses > self.max_misses:
            silent = [name for name, id in zip(self.calibration.joints, self.ids, strict=True) if id not in readings]
            raise DeviceError(
                f"{self.bus.port.path}: {self.misses} reads in a row failed; no answer from {', '.join(silent)} "
                f"(of ids {list(self.ids)}). Look at the power supply and the cables."
            )
        return self._state

    def close(self) -> None:
        """Lets go of the port."""
        self.bus.close()

    def _make_state(self, readings: dict[int, Reading]) -> State:
        t = time.monotonic_ns()
        ordered = [readings[id] for id in self.ids]
        self.ticks = np.array([r.position for r in ordered]) + self._turns
        names = self.calibration.joints
        self.alarms = {name: r.alarm for name, r in zip(names, ordered, strict=True) if r.alarm}
        return State(
            t=t - round(self.latency * SECOND),
            t_robot=self._robot_time(ordered, t),
            q=self.calibration.position(self.ticks),
            dq=np.array([r.velocity for r in ordered]) / TICK * self.calibration.scale,
            effort=np.array([r.effort for r in ordered], float),
            mode=self._mode(),
        )

    def _mode(self) -> RobotMode:
        if not self.alarms:
            return RobotMode.READY
        mild = all(set(alarm.split(", ")) <= MILD for alarm in self.alarms.values())
        return RobotMode.STOPPED if mild else RobotMode.FAULT

    def _robot_time(self, readings: Sequence[Reading], t: int) -> float:
        """The slowest servo's clock; of servos without one, the time at which all had answered."""
        for i, r in enumerate(readings):
            if r.clock is None:
                return t / SECOND
            before = self._ticking[i]
            self._clocks[i] += 0 if before is None else (r.clock - before) % 32768 / 1000
            self._ticking[i] = r.clock
        return float(self._clocks.min())


class ServoLeader(ServoReader[BusType]):
    """A leader arm: limp, moved by hand; its trigger is the gripper's opening.

    Args:
        port: serial port of its adapter.
        calibration: file that ``calibrate`` wrote for it; its zeros are the follower's model's, whatever its gears.
        read_timeout: s for all answers to one reading.
        max_misses: readings in a row that may fail.
        latency: s between the hand's motion and the receipt of a position.
        baudrate: of the bus.
    """

    servos: ClassVar[type[ServoBus]]

    def __init__(
        self,
        port: str,
        calibration: str | Path,
        *,
        read_timeout: float = 0.006,
        max_misses: int = 10,
        latency: float = 0.0,
        baudrate: int = 1_000_000,
    ):
        bus: Any = self.servos(port, baudrate, read_timeout)
        super().__init__(bus, self.load(calibration), max_misses, latency)

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Of this make of arms."""
        return Calibration.load(path)

    def read_joints(self) -> Joints:
        """(n,) rad, and opening in 0..1, as of ``read``."""
        q = self.read().q.copy()
        if self.calibration.gripper:
            q[-1] = np.clip(q[-1], 0, 1)
        return q


class ServoRobot(ServoReader[BusType]):
    """The same, moving: a ``Robot`` but for what a make of servos wants to be told (``set_up``).

    Args:
        spec: of the robot.
    """

    def __init__(self, spec: RobotSpec, bus: BusType, calibration: Calibration, max_misses: int, latency: float):
        super().__init__(bus, calibration, max_misses, latency)
        self.spec = spec
        self._held: dict[int, int] | None = None

    def connect(self) -> None:
        """The arm stands stiff where it is."""
        super().connect()
        try:
            self.arm()
        except BaseException:
            self.bus.close()
            raise

    def arm(self) -> None:
        """Torque, with the goal at the present position first: a servo goes to an old goal at once."""
        with self.bus.patiently(PATIENCE):
            self._hold()
            self.bus.set_torque(self.ids, True)
            self._hold()

    def write(self, q: Joints) -> None:
        """Servos go to ``q``, within their calibrated range, and keep going there.

        Raises DeviceError, and writes nothing, where ``q`` is not finite: the SDKs would send what remains of it.
        """
        try:
            ticks = self.calibration.ticks(q)
        except ValueError as e:
            raise DeviceError(f"{self.spec.name} was not moved: {e}.") from None
        self._held = None
        self.bus.set_goals(dict(zip(self.ids, (ticks - self._turns).astype(int).tolist(), strict=True)))

    def stop(self) -> None:
        """Goals where the joints are now; where they were last seen, for servos that do not answer.

        Called again, it asks for the same place, so that an arm does not sink under repeated stops. Raises DeviceError
        where servos have not confirmed.
        """
        if self._held is None:
            last = dict(zip(self.ids, (self.ticks - self._turns).astype(int).tolist(), strict=True))
            self._held = last | {id: r.position for id, r in self.bus.present(self.ids).items()}
        confirmed: dict[int, int] = {}
        for _ in range(3):
            self.bus.set_goals(self._held)
            confirmed |= self.bus.goals(self.ids)
            if confirmed == self._held:
                return
        silent = [id for id, goal in self._held.items() if confirmed.get(id) != goal]
        raise DeviceError(f"{self.bus.port.path}: servos {silent} have not confirmed that they stop.")

    def recover(self) -> None:
        """Holds where it is, from whatever state; opens the port again where it was gone."""
        self._held = None
        if not self.bus.is_open:
            self.bus.open(patience=1.0)
        with self.bus.patiently(PATIENCE):
            self.bus.find(self.ids)
            self.set_up()
            self.locate()
        self.arm()

    def close(self) -> None:
        """Stands still, stiff, and lets go of the port: an arm without torque falls."""
        try:
            if self.bus.is_open and self._state is not None:
                self.stop()
        finally:
            self.bus.close()

    def _hold(self) -> None:
        if silent := self.bus.hold(self.ids):
            raise DeviceError(f"{self.bus.port.path}: servos {silent} have not confirmed their goal.")


def hold_all(bus: ServoBus, ids: Sequence[int], patience: float) -> None:
    """Last gasp: goal := present for every servo that hears it, by a process that has nothing but the port's name.

    The process that had the port must be dead: kill -9 it first, since a frozen one keeps it locked.

    Args:
        bus: not open yet.
        ids: of the servos.
        patience: s to wait for the port.

    Raises:
        DeviceError: naming the servos that have not confirmed; the others stand still.
    """
    bus.open(patience)
    try:
        with bus.patiently(PATIENCE / 2):
            if silent := bus.hold(ids):
                raise DeviceError(
                    f"{bus.port.path}: servos {silent} have not confirmed that they stand still: cut the arm's power!"
                )
    finally:
        bus.close()
