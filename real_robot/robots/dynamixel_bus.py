"""Dynamixel's X series (protocol 2.0) on a bus, through the maker's ``dynamixel-sdk``.

Addresses: Robotis' control tables of XL330, XL430, XC and XM; signed values are in two's complement.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence

from real_robot.core.types import DeviceError
from real_robot.robots.servo_bus import Reading, ServoBus

ID, RETURN_DELAY, MODE, TORQUE, HARDWARE_ERROR, WATCHDOG = 7, 9, 11, 64, 70, 98
PROFILE_ACCELERATION, PROFILE_VELOCITY, GOAL = 108, 112, 116
STATE, STATE_SIZE = 120, 16  # clock, moving, .., PWM, current or load, velocity, position
EXTENDED_POSITION = 4  # over many turns, so that no joint's range crosses the encoder's end
WATCHDOG_UNIT = 0.02  # s
RPM = 0.229 * 2 * math.pi / 60  # rad/s per count
ALERT = 128
ALARMS = {1: "voltage", 4: "too hot", 8: "encoder", 16: "electrical shock", 32: "overload"}


class DynamixelServos(ServoBus):
    """See ``ServoBus``."""

    sdk, protocol = "dynamixel_sdk", 2.0
    missing = "Dynamixel servos need Robotis' SDK: pip install 'deft[dynamixel]'."

    def read(self, ids: Sequence[int], address: int, size: int) -> dict[int, tuple[int, bytes]]:
        """As in ``FeetechServos.read``."""
        found: dict[int, tuple[int, bytes]] = {}
        with self.talking():
            result = self._packets.syncReadTx(self.port, address, size, list(ids), len(ids), False)
            if result != self._sdk.COMM_SUCCESS:
                return found
            while len(found) < len(ids) and not self.port.isPacketTimeout():
                packet, result = self._packets.rxPacket(self.port, False)
                # the SDK takes stuffing out of the packet, but leaves its length
                if result == self._sdk.COMM_SUCCESS and packet[4] in ids and packet[5] + 256 * packet[6] == size + 4:
                    found[packet[4]] = packet[8], bytes(packet[9 : 9 + size])
        return found

    def write(self, address: int, data: Mapping[int, bytes]) -> None:
        """To many at once."""
        size = len(next(iter(data.values())))
        parameters = [byte for id, values in data.items() for byte in (id, *values)]
        with self.talking():
            self._packets.syncWriteTxOnly(self.port, address, size, parameters, len(parameters))

    def write_one(self, id: int, address: int, data: bytes) -> str | None:
        """None where it is confirmed."""
        with self.talking():
            result, error = self._packets.writeTxRx(self.port, id, address, len(data), list(data))
            if result != self._sdk.COMM_SUCCESS:
                return self._packets.getTxRxResult(result)
            return self._packets.getRxPacketError(error) if error & ~ALERT else None
        return "nothing was heard in time"

    def present(self, ids: Sequence[int]) -> dict[int, Reading]:
        """States of those that answered."""
        readings = {}
        for id, (error, data) in self.read(ids, STATE, self.next_size(STATE_SIZE)).items():
            clock, _, _, _, current, velocity, position = struct.unpack_from("<HBBhhii", data)
            readings[id] = Reading(position, velocity * RPM, current, "alert" if error & ALERT else "", clock)
        return readings

    def alarm(self, id: int) -> str:
        """What a servo with an alert complains of."""
        found = self.read([id], HARDWARE_ERROR, 1)
        bits = found[id][1][0] if found else 0
        return ", ".join(text for bit, text in ALARMS.items() if bits & bit) or "alert"

    def set_goals(self, goals: Mapping[int, int]) -> None:
        """Ticks."""
        self.write(GOAL, {id: struct.pack("<i", int(t)) for id, t in goals.items()})

    def goals(self, ids: Sequence[int]) -> dict[int, int]:
        """Ticks."""
        return {id: struct.unpack("<i", data)[0] for id, (_, data) in self.read(ids, GOAL, 4).items()}

    def set_torque(self, ids: Iterable[int], on: bool) -> None:
        """Raises DeviceError where a servo does not confirm."""
        for id in ids:
            self.write_surely(id, TORQUE, int(on), 1)

    def watch(self, ids: Iterable[int], seconds: float) -> None:
        """Servos stop when they have heard nothing for so long; 0 ends that, and lets stopped ones move again."""
        self.write(WATCHDOG, {id: bytes([min(127, math.ceil(seconds / WATCHDOG_UNIT))]) for id in ids})

    def watchdogs(self, ids: Sequence[int]) -> dict[int, bool]:
        """Whether those that answered have been stopped by theirs."""
        return {id: data[0] == 255 for id, (_, data) in self.read(ids, WATCHDOG, 1).items()}

    def centre(self, id: int) -> int:
        """Nothing: positions go on over the encoder's end."""
        return 0

    def set_limits(self, id: int, low: int, high: int) -> None:
        """Nothing: there are none in this mode."""

    def set_id(self, old: int, new: int) -> None:
        """For good; torque goes off."""
        self.write_surely(old, TORQUE, 0, 1)
        self.write_one(old, ID, bytes([new]))
        self.find([new])

    def set_up(self, ids: Iterable[int]) -> None:
        """Position control over many turns, answers without delay; a servo that has to be changed loses torque."""
        for id in ids:
            now = (self.get(id, MODE), self.get(id, RETURN_DELAY))
            if now != (EXTENDED_POSITION, 0):
                self.write_surely(id, TORQUE, 0, 1)
                self.write_surely(id, MODE, EXTENDED_POSITION, 1)
                self.write_surely(id, RETURN_DELAY, 0, 1)

    def get(self, id: int, address: int) -> int:
        """A byte of one servo. Raises DeviceError where it does not answer."""
        for _ in range(4):
            if found := self.read([id], address, 1):
                return found[id][1][0]
        raise DeviceError(f"{self.port.path}: servo {id} does not answer.")

    def hold(self, ids: Sequence[int], tries: int = 5) -> list[int]:
        """Servos that their watchdog has stopped take goals again first."""
        for id, stopped in self.watchdogs(ids).items():
            if stopped:
                self.write_one(id, WATCHDOG, b"\0")
        return super().hold(ids, tries)

    def scan(self) -> dict[int, int]:
        """{id: model number} of all servos that answer a broadcast; takes a second. DeviceError where none does."""
        with self.talking():
            found, _ = self._packets.broadcastPing(self.port)
            if found:
                return {id: model for id, (model, _) in found.items()}
        raise DeviceError(f"{self.port.path}: no servo answers at {self.port.baudrate} baud.")
