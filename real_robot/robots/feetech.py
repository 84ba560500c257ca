"""Feetech's STS3215 on a bus, through the maker's ``feetech-servo-sdk`` (``scservo_sdk``).

Addresses: Feetech's memory table of the SMS and STS series. Signed values are a sign bit and a magnitude.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from real_robot.core.types import DeviceError
from real_robot.robots.servo_bus import Reading, ServoBus
from real_robot.robots.servo_calibration import TICK, TURN

MODEL_STS3215 = 777
ID, RETURN_DELAY, LIMITS, P_GAIN, HOMING, MODE = 5, 7, 9, 21, 31, 33
TORQUE, ACCELERATION, GOAL, TORQUE_LIMIT, LOCK = 40, 41, 42, 48, 55
STATE, STATE_SIZE = 56, 15  # position, velocity, load, voltage, temperature, .., status, moving, .., current
COUNT_AMPERE = 0.0065
ALARMS = {1: "voltage", 2: "angle sensor", 4: "too hot", 8: "too much current", 32: "overload"}


def to_sign_magnitude(value: int, bit: int) -> int:
    """With the sign in ``bit``."""
    return -value | 1 << bit if value < 0 else value


def from_sign_magnitude(value: int, bit: int) -> int:
    """Inverse of ``to_sign_magnitude``."""
    return -(value & ~(1 << bit)) if value & 1 << bit else value


class FeetechServos(ServoBus):
    """See ``ServoBus``."""

    sdk, protocol = "scservo_sdk", 0
    missing = "The SO-101's servos need Feetech's SDK: pip install 'deft[so101]'."

    def read(self, ids: Sequence[int], address: int, size: int) -> dict[int, tuple[int, bytes]]:
        """One question, answers in any order until all are there, or time is up.

        The SDK's ``GroupSyncRead`` gives everything up at the first damaged packet and says neither whose it was nor
        what servos complain of.
        """
        found: dict[int, tuple[int, bytes]] = {}
        with self.talking():
            if self._packets.syncReadTx(self.port, address, size, list(ids), len(ids)) != self._sdk.COMM_SUCCESS:
                return found
            while len(found) < len(ids) and not self.port.isPacketTimeout():
                packet, result = self._packets.rxPacket(self.port)
                if result == self._sdk.COMM_SUCCESS and packet[2] in ids and len(packet) == size + 6:
                    found[packet[2]] = packet[4], bytes(packet[5:-1])
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
            return None if not error & 16 else "it knows no such instruction"
        return "nothing was heard in time"

    def present(self, ids: Sequence[int]) -> dict[int, Reading]:
        """States of those that answered."""
        readings = {}
        for id, (error, data) in self.read(ids, STATE, self.next_size(STATE_SIZE)).items():
            # between them: load, voltage, temperature, and what the table keeps to itself
            position, velocity, status, current = struct.unpack_from("<HH5xB3xH", data)
            alarm = ", ".join(text for bit, text in ALARMS.items() if (error | status) & bit)
            readings[id] = Reading(
                from_sign_magnitude(position, 15),
                from_sign_magnitude(velocity, 15) * TICK,
                from_sign_magnitude(current, 15) * COUNT_AMPERE,
                alarm,
                None,
            )
        return readings

    def set_goals(self, goals: Mapping[int, int]) -> None:
        """Ticks."""
        self.write(GOAL, {id: to_sign_magnitude(int(t), 15).to_bytes(2, "little") for id, t in goals.items()})

    def goals(self, ids: Sequence[int]) -> dict[int, int]:
        """Ticks."""
        found = self.read(ids, GOAL, 2)
        return {id: from_sign_magnitude(int.from_bytes(data, "little"), 15) for id, (_, data) in found.items()}

    def set_torque(self, ids: Iterable[int], on: bool) -> None:
        """And lock the servos' memory, or unlock it."""
        for id in ids:
            self.write_surely(id, TORQUE, int(on), 1)
            self.write_surely(id, LOCK, int(on), 1)

    def centre(self, id: int) -> int:
        """The servo shows half a turn here from now on, so that no joint crosses its encoder's end."""
        position = self.get(id, STATE, 2)
        homing = (position + self.homing(id)) % TURN - TURN // 2
        homing = max(-2047, homing)  # what fits into its memory
        self.write_surely(id, HOMING, to_sign_magnitude(homing, 11), 2)
        return homing

    def set_limits(self, id: int, low: int, high: int) -> None:
        """Ticks."""
        self.write_surely(id, LIMITS, low, 2)
        self.write_surely(id, LIMITS + 2, high, 2)

    def set_id(self, old: int, new: int) -> None:
        """For good."""
        self.write_surely(old, LOCK, 0, 1)
        self.write_one(old, ID, bytes([new]))  # whether the old or the new id answers is the firmware's choice
        self.write_surely(new, LOCK, 1, 1)

    def limits(self, id: int) -> tuple[int, int]:
        """Ticks that it goes no further than."""
        return self.get(id, LIMITS, 2), self.get(id, LIMITS + 2, 2)

    def get(self, id: int, address: int, size: int) -> int:
        """A value of one servo. Raises DeviceError where it does not answer."""
        for _ in range(4):
            if found := self.read([id], address, size):
                return int.from_bytes(found[id][1], "little")
        raise DeviceError(f"{self.port.path}: servo {id} does not answer.")

    def homing(self, id: int) -> int:
        """Offset in its memory: it shows its encoder's position minus this, modulo a turn."""
        return from_sign_magnitude(self.get(id, HOMING, 2), 11)
