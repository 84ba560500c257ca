"""What an arm's driver asks of a bus of servos, whoever made them."""

from __future__ import annotations

import contextlib
import os
import termios
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from data.errors import ConfigError
from real_robot.core.types import DeviceError
from real_robot.robots.servo_port import ServoPort, import_serial

QUESTIONS = 4  # that can be told apart


class Reading(NamedTuple):
    """A servo's present state: ticks, rad/s in the servo's own direction, and effort in its own unit.

    ``alarm`` is "" or what it complains of; ``clock`` its own time in ms, modulo 32768, or None where it has none.
    """

    position: int
    velocity: float
    effort: float
    alarm: str
    clock: int | None


class Lost(DeviceError):
    """The port is gone: unplugged, or the adapter's driver gave up."""


class ServoBus(ABC):
    """Questions and answers over a port, packed and unpacked by the maker's SDK; not open at first.

    Args:
        path: "/dev/ttyACM0".
        baudrate: bits per second.
        timeout: s that all answers to one question may take together.

    Attributes:
        sdk, protocol: module of the SDK, and what its ``PacketHandler`` is made with.
        missing: what to do where there is no such module.
    """

    sdk: ClassVar[str]
    protocol: ClassVar[float]
    missing: ClassVar[str]

    def __init__(self, path: str, baudrate: int = 1_000_000, timeout: float = 0.006):
        self.port = ServoPort(path, baudrate, timeout)
        self._questions = 0
        try:
            self._sdk: Any = import_module(self.sdk)
        except ImportError:
            raise ConfigError(self.missing) from None
        self._packets: Any = self._sdk.PacketHandler(self.protocol)

    def open(self, patience: float = 0.0) -> None:
        """Takes the port for this process, trying for ``patience`` s while another has it."""
        end = time.monotonic() + patience
        while True:
            try:
                return self.port.open()
            except (OSError, termios.error) as e:
                if time.monotonic() >= end or not os.path.exists(self.port.path):
                    raise DeviceError(_why_not_open(self.port.path, e)) from None
                time.sleep(0.02)

    def close(self) -> None:
        """Gives the port back."""
        with contextlib.suppress(OSError, termios.error):
            self.port.close()

    @property
    def is_open(self) -> bool:
        """Whether the port is ours."""
        return self.port.ser is not None

    def next_size(self, size: int) -> int:
        """``size`` or a little more, another one every time: a late answer to an older question is known by its length.

        Answers bear no number, and an adapter may keep one back for 16 ms.
        """
        self._questions += 1
        return size + self._questions % QUESTIONS

    @contextlib.contextmanager
    def talking(self) -> Iterator[None]:
        """Turns what pyserial raises into silence (nothing was said or heard in time) or ``Lost``."""
        if not self.is_open:
            raise Lost(f"{self.port.path} is not open.")
        try:
            yield
        except (TimeoutError, IndexError, import_serial().SerialTimeoutException):
            pass  # IndexError: the SDKs take a late answer to another question apart
        except (OSError, termios.error) as e:
            self.close()
            raise Lost(f"{self.port.path} is gone ({e}): is the cable in, the adapter powered?") from None
        finally:
            self.port.is_using = False  # left set where the SDK was interrupted; it would answer "busy" for ever

    def patiently(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Answers within may take ``seconds``: where nothing else waits, as at the start."""
        return _timeout(self.port, seconds)

    def ping(self, id: int) -> int | None:
        """Model number of a servo, None where it does not answer."""
        with self.talking():
            model, result, _ = self._packets.ping(self.port, id)
            if result == self._sdk.COMM_SUCCESS:
                return model
        return None

    @abstractmethod
    def read(self, ids: Sequence[int], address: int, size: int) -> dict[int, tuple[int, bytes]]:
        """{id: (error, bytes)} of those that answered, undamaged and in time."""

    @abstractmethod
    def write(self, address: int, data: Mapping[int, bytes]) -> None:
        """To many at once; nobody answers."""

    @abstractmethod
    def write_one(self, id: int, address: int, data: bytes) -> str | None:
        """None where the servo has confirmed it, else why not."""

    @abstractmethod
    def present(self, ids: Sequence[int]) -> dict[int, Reading]:
        """States of those that answered."""

    @abstractmethod
    def set_goals(self, goals: Mapping[int, int]) -> None:
        """Positions to go to, ticks."""

    @abstractmethod
    def goals(self, ids: Sequence[int]) -> dict[int, int]:
        """Where those that answered are going to, ticks."""

    @abstractmethod
    def set_torque(self, ids: Iterable[int], on: bool) -> None:
        """Raises DeviceError where a servo does not confirm."""

    @abstractmethod
    def centre(self, id: int) -> int:
        """Makes this position the middle of a servo's range, where servos remember one; returns the homing offset."""

    @abstractmethod
    def set_limits(self, id: int, low: int, high: int) -> None:
        """Ticks that the servo itself goes no further than, where it has such limits."""

    @abstractmethod
    def set_id(self, old: int, new: int) -> None:
        """For good."""

    def write_surely(self, id: int, address: int, value: int, size: int, tries: int = 4) -> None:
        """Until the servo confirms. Raises DeviceError where it does not."""
        why: str | None = ""
        for _ in range(tries):
            why = self.write_one(id, address, (value % (1 << 8 * size)).to_bytes(size, "little"))
            if why is None:
                return
        raise DeviceError(
            f"{self.port.path}: servo {id} does not take {value} at address {address} ({why}). Is its power on, and "
            "its cable in on both sides?"
        )

    def find(self, ids: Sequence[int], tries: int = 4) -> dict[int, int]:
        """{id: model number} of all ``ids``. Raises DeviceError naming those that are silent."""
        found: dict[int, int] = {}
        for _ in range(tries):
            for id in ids:
                if id not in found and (model := self.ping(id)) is not None:
                    found[id] = model
        if len(found) < len(ids):
            silent = [id for id in ids if id not in found]
            heard = f"Answered: {sorted(found)}." if found else "None answered."
            raise DeviceError(
                f"{self.port.path}: no answer from servos {silent}. {heard} Look at the arm's power supply, at the "
                "cables after the last servo that answered, at the ids, and at the baud rate "
                f"({self.port.baudrate})."
            )
        return found

    def hold(self, ids: Sequence[int], tries: int = 5) -> list[int]:
        """Goal := present, so that servos stand still; returns the ids that have not confirmed it."""
        left = list(ids)
        for _ in range(tries):
            want = {id: reading.position for id, reading in self.present(left).items()}
            if not want:
                continue
            self.set_goals(want)
            confirmed = self.goals(list(want))
            left = [id for id in left if id not in want or confirmed.get(id) != want[id]]
            if not left:
                break
        return left


@contextlib.contextmanager
def _timeout(port: ServoPort, seconds: float) -> Iterator[None]:
    before, port.timeout = port.timeout, seconds
    try:
        yield
    finally:
        port.timeout = before


def _why_not_open(path: str, e: Exception) -> str:
    if not os.path.exists(path):
        near = sorted(str(p) for kind in ("ttyACM*", "ttyUSB*") for p in Path("/dev").glob(kind))
        there = f"There are {', '.join(near)}." if near else "There is no USB serial port at all."
        return f"There is no port {path}: is the adapter plugged in? {there}"
    if isinstance(e, PermissionError) or "ermission denied" in str(e):
        return f"{path} may not be opened by you: sudo usermod -aG dialout $USER, then log in again."
    if "lock" in str(e) or "busy" in str(e):
        return f"{path} is in use by another program: end it (fuser {path} says which)."
    return f"{path} cannot be opened: {e}."
