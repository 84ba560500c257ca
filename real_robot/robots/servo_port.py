"""A serial port for the servo makers' SDKs: ours alone, and with a time by which answers must have come.

Both SDKs take any object like their ``PortHandler``. This is one, with what theirs lacks:

- It is locked against other programs of this machine, until it is closed or its process dies.
- An answer is waited for ``timeout``, not 34 ms, by the monotonic clock (theirs follows changes of the date), asleep.
- Writing does not block for ever where nobody takes the bytes.
- Answers that came too late are thrown away before the next question: Feetech's SDK takes them for its answers.
"""

from __future__ import annotations

import select
import time
from typing import Any

from data.errors import ConfigError


def import_serial() -> Any:
    """pyserial."""
    try:
        import serial
    except ImportError:
        raise ConfigError("Serial ports need pyserial: pip install 'deft[so101]' or 'deft[dynamixel]'.") from None
    return serial


class ServoPort:
    """What ``scservo_sdk`` and ``dynamixel_sdk`` call a port handler; closed at first.

    Args:
        path: "/dev/ttyACM0".
        baudrate: bits per second.
        timeout: s that all answers to one question may take together.
    """

    def __init__(self, path: str, baudrate: int, timeout: float):
        self.path, self.baudrate, self.timeout = path, baudrate, timeout
        self.is_using = False  # the SDKs' mark of a question that is not answered yet
        self.ser: Any = None
        self._deadline = 0.0

    def open(self) -> None:
        """Raises OSError (pyserial's SerialException)."""
        serial = import_serial()
        self.ser = serial.Serial(
            self.path, self.baudrate, timeout=0, write_timeout=max(self.timeout, 0.02), exclusive=True
        )
        self.is_using = False

    def close(self) -> None:
        """Unlocks it."""
        if self.ser is not None:
            self.ser.close()
            self.ser = None

    # From here on the names are the SDKs'.

    def getBaudRate(self) -> int:
        """Bits per second."""
        return self.baudrate

    def clearPort(self) -> None:
        """Throws unread bytes away."""
        self.ser.reset_input_buffer()

    def writePort(self, packet: list[int]) -> int:
        """Returns the number of bytes written."""
        return self.ser.write(bytes(packet))

    def readPort(self, length: int) -> bytes:
        """What has come of ``length`` bytes; waits for the first until the deadline."""
        if length <= 0:
            return b""
        left = self._deadline - time.monotonic()
        if left < -self.timeout:  # the SDKs do not look at the clock while bytes keep coming
            raise TimeoutError("there is no end to what comes from the bus")
        select.select([self.ser.fileno()], [], [], max(left, 0))
        return self.ser.read(length)

    def setPacketTimeout(self, packet_length: int) -> None:
        """Starts the clock; the length plays no part."""
        self._deadline = time.monotonic() + self.timeout

    def setPacketTimeoutMillis(self, msec: float) -> None:
        """Starts the clock with another time, for searches."""
        self._deadline = time.monotonic() + msec / 1000

    def isPacketTimeout(self) -> bool:
        """Whether time is up."""
        return time.monotonic() > self._deadline
