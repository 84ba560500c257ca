"""A simulated bus of Dynamixel servos (X series, protocol 2.0).

    python -m real_robot.simulators.dynamixel [option=value ...]

Options and behaviour are those of real_robot.simulators.feetech. Position control over one turn (mode 3) and over many
(4), the bus watchdog, the servos' clocks and byte stuffing are simulated; profiles, currents and temperatures are not.
"""

from __future__ import annotations

import struct
import sys

from real_robot.robots.dynamixel_bus import EXTENDED_POSITION, GOAL, MODE, RPM, STATE, TORQUE, WATCHDOG, WATCHDOG_UNIT
from real_robot.robots.servo_calibration import TICK, TURN, nominal_calibration
from real_robot.simulators.servo_arm import Arm
from real_robot.simulators.servo_bus import Bus, Faults, Servo, main, seconds

PING, READ, WRITE, SYNC_READ, SYNC_WRITE, STATUS = 1, 2, 3, 0x82, 0x83, 0x55
HEADER = b"\xff\xff\xfd\x00"
OK, RESULT_FAIL, DATA_RANGE, ACCESS = 0, 1, 4, 7
STOPPED = 255  # in WATCHDOG
XL430 = 1060


class X430(Servo):
    """One servo."""

    def __init__(self, id: int, arm: Arm, joint: int, mounted: int):
        super().__init__(id, arm, joint, mounted % TURN)  # it wakes up within its first turn
        self.set(0, 2, XL430)
        self.table[6] = 45  # firmware
        self.table[7] = id
        self.table[9] = 250
        self.table[MODE] = 3
        self.table[68] = 2
        self.set(48, 4, TURN - 1)
        self.table[144:147] = 120, 0, 30  # 0.1 V, degrees Celsius
        self._heard = self._born = seconds()
        arm.set_torque(joint, False)
        self.refresh()
        self.table[GOAL : GOAL + 4] = self.table[132:136]

    def refresh(self) -> None:
        """Clock, load, velocity, position."""
        position = round(self.arm.positions()[self.joint] / TICK) + self.mounted
        load = round(max(-1.0, min(1.0, self.arm.efforts()[self.joint] / 3)) * 1000)
        velocity = round(self.arm.velocities()[self.joint] / RPM)
        clock = round((seconds() - self._born) * 1000) % 32768
        self.table[STATE : STATE + 16] = struct.pack("<HBBhhii", clock, 0, 0, load, load, velocity, position)
        self.watch()

    def watch(self) -> None:
        """Stops where nothing was heard for too long."""
        allowed = self.table[WATCHDOG]
        if 0 < allowed < 128 and seconds() - self._heard > allowed * WATCHDOG_UNIT:
            self.table[WATCHDOG] = STOPPED
            self.arm.set_goal(self.joint, self.arm.positions()[self.joint])

    def heard(self) -> None:
        """An instruction came."""
        self._heard = seconds()

    def write(self, address: int, data: bytes) -> int:
        """Returns the error."""
        if address < TORQUE and self.table[TORQUE]:
            return ACCESS  # EEPROM is locked while there is torque
        if 100 <= address < 120 and self.table[WATCHDOG] == STOPPED:
            return DATA_RANGE
        self.table[address : address + len(data)] = data
        if address == TORQUE:
            self.arm.set_torque(self.joint, bool(self.table[TORQUE]))
            if data[0]:
                self.table[GOAL : GOAL + 4] = self.table[132:136]  # a Dynamixel begins where it is
        if address in (GOAL, TORQUE):
            goal = struct.unpack_from("<i", self.table, GOAL)[0]
            if self.table[MODE] != EXTENDED_POSITION and not 0 <= goal < TURN:
                return DATA_RANGE
            self.arm.set_goal(self.joint, (goal - self.mounted) * TICK)
        return OK


class DynamixelBus(Bus):
    """Protocol 2.0: FF FF FD 00 id length instruction parameters CRC, with FF FF FD stuffed inside."""

    def packet(self) -> bytes | None:
        """A whole, undamaged one, its stuffing taken out."""
        while (start := self.buffer.find(HEADER)) >= 0:
            self.buffer = self.buffer[start:]
            if len(self.buffer) < 7:
                return None
            size = 7 + int.from_bytes(self.buffer[5:7], "little")
            if len(self.buffer) < size:
                return None
            packet, self.buffer = self.buffer[:size], self.buffer[size:]
            if crc(packet[:-2]) == int.from_bytes(packet[-2:], "little"):
                return packet[:7] + packet[7:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
        self.buffer = self.buffer[-3:]
        return None

    def answer(self, packet: bytes) -> list[bytes]:
        """The instructions that a position-controlled arm needs."""
        id, instruction, parameters = packet[4], packet[7], packet[8:]
        for servo in self.servos.values():
            assert isinstance(servo, X430)
            servo.heard()
        if instruction == PING:
            return [status(s.id, OK, bytes([*s.table[0:2], s.table[6]])) for s in self.addressed(id)]
        if len(parameters) < 2:
            return []
        address, rest = int.from_bytes(parameters[:2], "little"), parameters[2:]
        if instruction == READ:
            size = int.from_bytes(rest, "little")
            return [status(s.id, OK, s.table[address : address + size]) for s in self.addressed(id)]
        if instruction == WRITE:
            answers = [status(s.id, s.write(address, rest)) for s in self.addressed(id)]
            return [] if id == 254 else answers
        if instruction in (SYNC_READ, SYNC_WRITE):
            size, rest = int.from_bytes(rest[:2], "little"), rest[2:]
            if instruction == SYNC_READ:
                found = [self.servos[i] for i in rest if i in self.servos]
                return [status(s.id, OK, s.table[address : address + size]) for s in found]
            for i in range(0, len(rest), size + 1):
                if rest[i] in self.servos:
                    self.servos[rest[i]].write(address, rest[i + 1 : i + 1 + size])
            return []
        return [status(s.id, RESULT_FAIL) for s in self.addressed(id)]


def crc(data: bytes) -> int:
    """CRC-16 of polynomial 0x8005, as the protocol has it."""
    c = 0
    for byte in data:
        c = _CRC[(c >> 8) ^ byte] ^ (c << 8 & 0xFFFF)
    return c


def _crc_of(byte: int) -> int:
    c = byte << 8
    for _ in range(8):
        c = (c << 1 ^ 0x8005) & 0xFFFF if c & 0x8000 else c << 1
    return c


_CRC = [_crc_of(byte) for byte in range(256)]


def status(id: int, error: int, data: bytes | bytearray = b"") -> bytes:
    """A status packet."""
    body = (bytes([STATUS, error]) + data).replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    packet = HEADER + bytes([id]) + (len(body) + 2).to_bytes(2, "little") + body
    return packet + crc(packet).to_bytes(2, "little")


def make(ids: list[int], arm: Arm, mounted: list[int], faults: Faults, calibration: str) -> DynamixelBus:
    """The bus; ``calibration`` is written where it is a path."""
    servos = [X430(id, arm, i, m) for i, (id, m) in enumerate(zip(ids, mounted, strict=True))]
    if calibration:
        none, gripper = [0] * len(ids), arm.joints[-1] == "gripper"
        made = nominal_calibration("dynamixel", arm.joints, ids, arm.ranges, mounted, none, gripper=gripper)
        made.save(calibration)
    return DynamixelBus(servos, faults)


if __name__ == "__main__":
    main(make, sys.argv[1:], __doc__ or "")
