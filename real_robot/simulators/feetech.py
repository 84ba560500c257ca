"""A simulated bus of Feetech STS3215 servos: an SO-101 without the SO-101.

    python -m real_robot.simulators.feetech [option=value ...]

    model=FILE        MJCF with a position actuator per servo (the SO-101's)
    joints=a,b,...    actuators, in the order of the ids (all)
    ids=1,2,...       (1 to n)
    link=PATH         a symbolic link to the terminal, so that its name is known beforehand
    calibration=FILE  write the calibration that fits, and the servos' memory with it
    assembly=SEED     servos are mounted at any angle, as in a new arm; else encoders read 2048 at joint position 0
    world=RING        publish qpos there
    hand=sweep|RING   who moves servos without torque
    drop=P corrupt=P dead=ID latency=S seed=N    faults

``run`` is the same with a task on the arm's table, as a process of a session (robot=so101_sim).

It prints "listening on /dev/pts/N". SIGSTOP freezes it, SIGKILL pulls the plug. Written after the vendor's SDK and
memory map; the firmware's smoothing, its protections and the wire's pace are not simulated.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from data.construct import construct
from data.errors import DeftError
from real_robot.core.streams import Events, Session
from real_robot.robots.feetech import (
    COUNT_AMPERE,
    GOAL,
    HOMING,
    LIMITS,
    LOCK,
    MODEL_STS3215,
    TORQUE,
    from_sign_magnitude,
    to_sign_magnitude,
)
from real_robot.robots.servo_calibration import TICK, TURN, Calibration, nominal_calibration
from real_robot.simulators.scene import Scene
from real_robot.simulators.servo_arm import Arm, WorldArm
from real_robot.simulators.servo_bus import Bus, Faults, Servo, main, serve, terminal
from real_robot.simulators.world import World

PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 1, 2, 3, 0x82, 0x83
EEPROM = 40  # addresses below it
ERROR_INSTRUCTION = 16
AMPERE = 0.5  # per Nm, about


class Sts3215(Servo):
    """Position mode only."""

    def __init__(self, id: int, arm: Arm, joint: int, mounted: int):
        super().__init__(id, arm, joint, mounted)
        self.table[0:2] = 3, 10  # firmware
        self.set(3, 2, MODEL_STS3215)
        self.set(5, 1, id)
        self.set(7, 1, 250)  # return delay
        self.set(LIMITS + 2, 2, TURN - 1)
        self.set(21, 1, 32)  # P
        self.set(48, 2, 1000)  # torque limit
        self.set(LOCK, 1, 1)
        self.table[62:64] = 74, 30  # 0.1 V, degrees Celsius
        arm.set_torque(joint, False)
        self.refresh()
        self.set(GOAL, 2, self.get(56, 2))

    @property
    def homing(self) -> int:
        """Ticks that the servo subtracts from what its encoder shows."""
        return from_sign_magnitude(self.get(HOMING, 2), 11)

    def refresh(self) -> None:
        """Position, velocity, load, current."""
        ticks = round(self.arm.positions()[self.joint] / TICK) + self.mounted
        self.set(56, 2, (ticks - self.homing) % TURN)
        velocity = round(self.arm.velocities()[self.joint] / TICK)
        self.set(58, 2, to_sign_magnitude(max(-32767, min(32767, velocity)), 15))
        torque = self.arm.efforts()[self.joint]
        self.set(60, 2, to_sign_magnitude(round(max(-1.0, min(1.0, torque / 3)) * 1000), 10))
        self.set(69, 2, to_sign_magnitude(round(torque * AMPERE / COUNT_AMPERE), 15))

    def write(self, address: int, data: bytes) -> int:
        """A locked servo forgets its EEPROM's values when it is switched off; that is not simulated."""
        self.table[address : address + len(data)] = data
        if address < EEPROM:
            self.id = self.table[5]
        touched = range(address, address + len(data))
        if TORQUE in touched:
            self.arm.set_torque(self.joint, self.table[TORQUE] == 1)
        if (touched.start <= GOAL + 1 and touched.stop > GOAL) or TORQUE in touched or address in (HOMING, LIMITS):
            goal = from_sign_magnitude(self.get(GOAL, 2), 15)
            low, high = self.get(LIMITS, 2), self.get(LIMITS + 2, 2)
            goal = max(low, min(high, goal))
            # the servo turns through its encoder's range, never over its end
            here = round(self.arm.positions()[self.joint] / TICK) + self.mounted - self.homing
            self.arm.set_goal(self.joint, (goal + here // TURN * TURN + self.homing - self.mounted) * TICK)
        return 0


class FeetechBus(Bus):
    """Protocol 0: FF FF id length instruction parameters checksum."""

    def packet(self) -> bytes | None:
        """A whole, undamaged one."""
        while (start := self.buffer.find(b"\xff\xff")) >= 0:
            self.buffer = self.buffer[start:]
            if len(self.buffer) < 4:
                return None
            if self.buffer[2] == 0xFF:
                self.buffer = self.buffer[1:]
                continue
            size = self.buffer[3] + 4
            if len(self.buffer) < size:
                return None
            packet, self.buffer = self.buffer[:size], self.buffer[size:]
            if checksum(packet[2:-1]) == packet[-1]:
                return packet
        self.buffer = self.buffer[-1:]
        return None

    def answer(self, packet: bytes) -> list[bytes]:
        """The instructions that a position-controlled arm needs."""
        id, instruction, parameters = packet[2], packet[4], packet[5:-1]
        if instruction == PING:
            return [status(s.id, 0) for s in self.addressed(id)]
        if instruction == READ:
            address, size = parameters
            return [status(s.id, 0, s.table[address : address + size]) for s in self.addressed(id)]
        if instruction == WRITE:
            answers = [status(id, s.write(parameters[0], parameters[1:])) for s in self.addressed(id)]
            self.servos = {s.id: s for s in self.servos.values()}  # one may have a new id
            return [] if id == 254 else answers
        if instruction == SYNC_READ:
            address, size, *ids = parameters
            found = [self.servos[i] for i in ids if i in self.servos]
            return [status(s.id, 0, s.table[address : address + size]) for s in found]
        if instruction == SYNC_WRITE:
            address, size = parameters[:2]
            for i in range(2, len(parameters), size + 1):
                if parameters[i] in self.servos:
                    self.servos[parameters[i]].write(address, parameters[i + 1 : i + 1 + size])
            return []
        return [status(s.id, ERROR_INSTRUCTION) for s in self.addressed(id)]


def checksum(body: bytes) -> int:
    """Of all bytes between the header and itself."""
    return ~sum(body) & 0xFF


def status(id: int, error: int, data: bytes | bytearray = b"") -> bytes:
    """A status packet."""
    body = bytes([id, len(data) + 2, error]) + data
    return b"\xff\xff" + body + bytes([checksum(body)])


def make(ids: list[int], arm: Arm, mounted: list[int], faults: Faults, calibration: str) -> FeetechBus:
    """The bus; ``calibration`` is written where it is a path, and the servos set up for it."""
    servos = [Sts3215(id, arm, i, m) for i, (id, m) in enumerate(zip(ids, mounted, strict=True))]
    if calibration:
        homing = [max(-2047, m - 2048) for m in mounted]
        zeros = [m - h for m, h in zip(mounted, homing, strict=True)]
        gripper = arm.joints[-1] == "gripper"
        made = nominal_calibration("so101", arm.joints, ids, arm.ranges, zeros, homing, gripper=gripper)
        made.save(calibration)
        set_up(servos, made)
    return FeetechBus(servos, faults)


def set_up(servos: Sequence[Sts3215], calibration: Calibration) -> None:
    """Their memory as calibrating leaves it."""
    for servo, joint in zip(servos, calibration.joints.values(), strict=True):
        servo.set(HOMING, 2, to_sign_magnitude(joint.homing, 11))
        servo.set(LIMITS, 2, math.ceil(joint.low))
        servo.set(LIMITS + 2, 2, math.floor(joint.high))
        servo.refresh()
        servo.set(GOAL, 2, servo.get(56, 2))


def assemble(arm: Arm, calibration: Calibration, faults: Faults) -> FeetechBus:
    """The bus of an arm that ``calibration`` is of, as ``nominal_calibration`` makes one."""
    servos = []
    for i, joint in enumerate(calibration.joints.values()):
        mounted = round(joint.low - arm.ranges[i, 0] / TICK) + joint.homing
        servos.append(Sts3215(joint.id, arm, i, mounted))
    set_up(servos, calibration)
    return FeetechBus(servos, faults)


def run(
    link: str = "",
    *,
    session: str | None = None,
    calibration: str = "so101_simulated",
    model: str = "so101",
    scene: Mapping[str, Any] | None = None,
    seed: int = 0,
    drop: float = 0.0,
    corrupt: float = 0.0,
    dead: int = -1,
    latency: float = 0.0,
) -> None:
    """An arm, a cube and a disc on its table, as a process of a session; ends with it.

    Args:
        link: path of the arm's serial port.
        session: its folder; None makes one.
        calibration: that the servos are set up for.
        model: of the arm.
        scene: entries of ``Scene`` that differ from its defaults.
        seed: of the first episode, and of the faults' dice.
        drop, corrupt, dead, latency: see ``Faults``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN if session is not None else signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of ``finally``
    place = Session(session)
    try:
        calibrated = Calibration.load(calibration)
        world = World(model, tuple(calibrated.joints), gripper=calibrated.gripper,
                      scene=construct(Scene, dict(scene or {}), "simulator.scene"), seed=seed,
                      start=time.monotonic_ns())  # fmt: skip
        bus = assemble(WorldArm(world), calibrated, Faults(drop, corrupt, dead, latency, seed))
        with terminal(link) as (master, path):
            world.publish(place)  # ready: whoever waits for the world finds the port
            print(f"listening on {path}; session {place.folder}", flush=True)
            serve(bus, master, lambda: place.stopping)
    except DeftError as e:
        Events(place, "simulator").error(str(e))
        raise SystemExit(2) from None
    finally:
        place.close()


if __name__ == "__main__":
    main(make, sys.argv[1:], __doc__ or "")
