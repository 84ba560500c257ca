"""A half-duplex bus of simulated servos behind a pseudo-terminal, with the faults that such buses have."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import sys
import time
import tty
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import DeftError
from real_robot.core.options import options
from real_robot.core.types import SECOND, DeviceError
from real_robot.simulators.servo_arm import Arm, LoneArm

SO101 = Path(__file__).parents[1] / "models" / "so101.xml"
BROADCAST = 254
SILENCE = 0.3  # s


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        drop: probability that a status packet is lost.
        corrupt: probability that a bit of it is flipped.
        dead: id of a servo that neither hears nor answers.
        latency: s by which answers come late.
        seed: of the dice.
    """

    drop: float = 0.0
    corrupt: float = 0.0
    dead: int = -1
    latency: float = 0.0
    seed: int = 0
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def on(self, packet: bytes) -> bytes:
        """What arrives of a status packet."""
        if self.dice.random() < self.drop:
            return b""
        if self.dice.random() < self.corrupt:
            i, bit = self.dice.randrange(2, len(packet)), self.dice.randrange(8)
            return packet[:i] + bytes([packet[i] ^ 1 << bit]) + packet[i + 1 :]
        return packet


class Servo(ABC):
    """A servo's control table, and the joint that it moves.

    Args:
        id: on the bus.
        arm: with the joint.
        joint: its number.
        mounted: ticks that the encoder shows at joint position 0.
    """

    def __init__(self, id: int, arm: Arm, joint: int, mounted: int):
        self.id, self.arm, self.joint, self.mounted = id, arm, joint, mounted
        self.table = bytearray(256)

    def get(self, address: int, size: int) -> int:
        """Unsigned value."""
        return int.from_bytes(self.table[address : address + size], "little")

    def set(self, address: int, size: int, value: int) -> None:
        """Two's complement where it is negative."""
        self.table[address : address + size] = (value % (1 << 8 * size)).to_bytes(size, "little")

    @abstractmethod
    def refresh(self) -> None:
        """The arm's state into the table."""

    @abstractmethod
    def write(self, address: int, data: bytes) -> int:
        """A write from the bus; returns the error byte."""

    def watch(self) -> None:  # noqa: B027 - most do nothing
        """What it does by itself, heard or not; called a hundred times a second."""


class Bus(ABC):
    """Packets in, answers out.

    Args:
        servos: on the bus.
        faults: of it.
    """

    def __init__(self, servos: Sequence[Servo], faults: Faults):
        self.servos = {s.id: s for s in servos if s.id != faults.dead}
        self.faults = faults
        self.arm = servos[0].arm
        self.buffer = b""

    @abstractmethod
    def packet(self) -> bytes | None:
        """Takes the next whole, undamaged instruction packet off ``buffer``; None where there is none."""

    @abstractmethod
    def answer(self, packet: bytes) -> list[bytes]:
        """Status packets to it."""

    def addressed(self, id: int) -> list[Servo]:
        """The servos that an id means."""
        return [s for i, s in sorted(self.servos.items()) if id in (i, BROADCAST)]

    def hear(self, data: bytes) -> bytes:
        """Bytes from the host; returns those for it."""
        self.buffer += data
        out = b""
        while (packet := self.packet()) is not None:
            self.arm.step()
            for servo in self.servos.values():
                servo.refresh()
            answers = [self.faults.on(p) for p in self.answer(packet)]
            out += b"".join(answers)
        return out


@contextlib.contextmanager
def terminal(link: str) -> Iterator[tuple[int, str]]:
    """A pseudo-terminal: the simulator's end, and the hosts' path, which is ``link`` where one is asked for.

    Raises DeviceError where another simulator has the link.
    """
    master, slave = os.openpty()  # the slave stays open, so that hosts may come and go
    path, lock = os.ttyname(slave), -1
    try:
        tty.setraw(master)
        tty.setraw(slave)
        if link:
            lock = _take(link, path)
        yield master, link or path
    finally:
        if lock >= 0:
            Path(link).unlink(missing_ok=True)
            os.close(lock)
        os.close(master)
        os.close(slave)


def _take(link: str, path: str) -> int:
    """Leads ``link`` to ``path``; returns what holds it, until it is closed or this process dies."""
    lock = -1
    try:
        lock = os.open(f"{link}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(link).unlink(missing_ok=True)
        Path(link).symlink_to(path)
    except OSError as e:
        if lock >= 0:
            os.close(lock)
        raise DeviceError(f"{link} cannot be the port of a simulated arm ({e}): does another one run there? "
                          "Several may, each at a path of its own (robot.port=, or link=).") from None  # fmt: skip
    return lock


def serve(bus: Bus, master: int, ended: Callable[[], bool] = lambda: False) -> None:
    """Answers at a terminal until ``ended``, and until then nobody speaks any more: hosts stop their arm last."""
    late: deque[tuple[float, bytes]] = deque()  # answers, and when they are due
    heard = seconds()
    while seconds() - heard < SILENCE or not ended():
        wait = min(0.01, max(0.0, late[0][0] - seconds())) if late else 0.01
        ready, _, _ = select.select([master], [], [], wait)
        if ready and (out := bus.hear(os.read(master, 4096))):
            late.append((seconds() + bus.faults.latency, out))
        while late and late[0][0] <= seconds():
            os.write(master, late.popleft()[1])
        if ready:
            heard = seconds()
        else:
            bus.arm.step()
            for servo in bus.servos.values():
                servo.watch()


def main(make: Callable[[list[int], Arm, list[int], Faults, str], Bus], argv: Sequence[str], doc: str) -> None:
    """The simulator as a program. ``make(ids, arm, mounted, faults, calibration)`` makes its bus."""
    defaults: dict[str, Any] = {
        "model": str(SO101),
        "joints": ("",),
        "ids": (0,),
        "link": "",
        "calibration": "",
        "world": "",
        "hand": "",
        "assembly": -1,
        **{k: getattr(Faults, k) for k in ("drop", "corrupt", "dead", "latency", "seed")},
    }
    if set(argv) & {"-h", "--help"}:
        print(doc)
        return
    try:
        o = options(argv, defaults)
        arm = LoneArm(o["model"], [j for j in o["joints"] if j], o["world"], o["hand"])
        ids = [i for i in o["ids"] if i] or list(range(1, len(arm.joints) + 1))
        faults = Faults(**{k: o[k] for k in ("drop", "corrupt", "dead", "latency", "seed")})
        screwdriver = random.Random(o["assembly"])
        mounted = [2048 if o["assembly"] < 0 else screwdriver.randrange(4096) for _ in ids]
        bus = make(ids, arm, mounted, faults, o["calibration"])
        with terminal(o["link"]) as (master, path):
            print(f"listening on {path}", flush=True)
            serve(bus, master)
    except DeftError as e:
        raise SystemExit(str(e)) from None
    except KeyboardInterrupt:
        sys.exit(130)


def seconds() -> float:
    """Monotonic, for the servos' own clocks."""
    return time.monotonic_ns() / SECOND
