"""What a person does with an arm of servos at the terminal: ids, calibration, a look, hold, release."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ConfigError, DeftError
from real_robot.core.options import options
from real_robot.core.types import DeviceError
from real_robot.robots.servo_bus import ServoBus
from real_robot.robots.servo_calibration import TICK, Calibration, JointCalibration, measured_joint
from real_robot.robots.servo_robot import PATIENCE, ServoReader, hold_all

ENOUGH = 0.7  # of a joint's range in the model that a hand must have gone through
LEAST = 0.3  # rad, where the model is not known
COMMANDS = ("ids", "calibrate", "show", "hold", "release")


@dataclass(frozen=True)
class Kind:
    """An arm's name, its bus, and what is known of it beforehand."""

    name: str
    bus: Callable[[str, int, float], ServoBus]
    joints: tuple[str, ...]
    ids: tuple[int, ...]
    model: Path | None


class Lines:
    """Lines that a person types, without waiting for them."""

    def __init__(self) -> None:
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._queue.put(line)
        self._queue.put(None)

    def wait(self, text: str) -> None:
        """Says ``text``, and waits for Enter."""
        print(text, flush=True)
        while not self.entered(0.1):
            pass

    def entered(self, seconds: float) -> bool:
        """Whether Enter is pressed within. Raises ConfigError where nobody can press it any more."""
        try:
            line = self._queue.get(timeout=seconds)
        except queue.Empty:
            return False
        if line is None:
            raise ConfigError("Standard input ended before this was done: run it in a terminal.")
        return True


def main(kind: Kind, argv: Sequence[str], doc: str) -> None:
    """``ids | calibrate | show | hold | release name=value ...``"""
    if not argv or argv[0] not in COMMANDS:
        raise SystemExit(doc.strip())
    try:
        _run(kind, argv[0], argv[1:])
    except DeftError as e:
        raise SystemExit(str(e)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _run(kind: Kind, command: str, argv: Sequence[str]) -> None:
    known: dict[str, Any] = {"port": "", "ids": kind.ids or (0,), "baudrate": 1_000_000}
    if command in ("ids", "calibrate"):
        known["joints"] = kind.joints or ("",)
    if command == "calibrate":
        known |= {"out": "", "invert": ("",), "gripper": True, "model": "" if kind.model is None else str(kind.model)}
    if command == "show":
        known["calibration"] = ""
    o = options(argv, known)
    needed = {"calibrate": ["port", "out"], "show": ["port", "calibration"]}.get(command, ["port"])
    if lacking := [name for name in needed if not o[name]]:
        raise ConfigError(f"{command} needs {', '.join(f'{name}=...' for name in lacking)}.")
    ids = tuple(i for i in o["ids"] if i)
    joints = tuple(j for j in o.get("joints", ()) if j)
    if (command != "show" and not ids) or (command in ("ids", "calibrate") and len(ids) != len(joints)):
        raise ConfigError(f"{command} needs ids=1,2,... and, but for hold and release, as many joints=a,b,...")
    bus = kind.bus(o["port"], o["baudrate"], PATIENCE)
    if command == "hold":
        hold_all(bus, ids, patience=1.0)
        print("The arm holds where it is.")
        return
    if command == "show":
        _show(bus, Calibration.load(o["calibration"]))
        return
    bus.open(patience=1.0)
    try:
        if command == "release":
            bus.find(ids)
            bus.set_torque(ids, False)
            print("The arm is limp.")
        elif command == "ids":
            give_ids(bus, joints, ids, Lines())
        else:
            inverted = [name for name in o["invert"] if name]
            if unknown := [name for name in inverted if name not in joints]:
                raise ConfigError(f"invert names joints that there are not: {unknown}.")
            nominal = model_ranges(o["model"], joints, o["gripper"]) if o["model"] else None
            made = calibrate(bus, kind.name, joints, ids, nominal, o["gripper"], inverted, Lines())
            made.save(o["out"])
            print(f"Written to {o['out']}. Look at it: python -m real_robot.robots.{kind.name} show "
                  f"port={o['port']} calibration={o['out']}")  # fmt: skip
    finally:
        bus.close()


def give_ids(bus: ServoBus, joints: Sequence[str], ids: Sequence[int], lines: Lines) -> None:
    """One servo after the other, from the last joint to the first, as they come out of the box: all are 1."""
    for name, id in reversed(list(zip(joints, ids, strict=True))):
        lines.wait(f"Connect the servo of {name}, and no other, to the adapter. Power on. Then Enter.")
        found: list[int] = []
        for seconds in (0.005, 0.03):  # for each of 252 ids; slow adapters need the second round
            with bus.patiently(seconds):
                found = found or [i for i in range(1, 253) if bus.ping(i) is not None]
        if len(found) != 1:
            what = f"servos {found} answer" if found else "no servo answers"
            raise DeviceError(f"{bus.port.path}: {what}; exactly one must. Begin again with {name}.")
        if found[0] != id:
            bus.set_id(found[0], id)
        print(f"{name} has id {id} (was {found[0]}).")
    print("Now connect them all.")


def calibrate(
    bus: ServoBus,
    robot: str,
    joints: Sequence[str],
    ids: Sequence[int],
    nominal: np.ndarray | None,
    gripper: bool,
    inverted: Sequence[str],
    lines: Lines,
) -> Calibration:
    """A person moves every joint to both of its ends.

    Args:
        nominal: (n, 2) the ends' positions in the model, rad, of all joints but a gripper; None: unknown.
        inverted: joints whose ticks fall where the model's position grows.
    """
    bus.find(ids)
    lines.wait("The arm goes limp now: hold it, then Enter.")
    bus.set_torque(ids, False)
    lines.wait("Bring every joint to about the middle of its range, the gripper half open. Then Enter.")
    homing = [bus.centre(id) for id in ids]
    middle = _positions(bus, ids)
    print("Now move every joint to both of its ends, one after the other, the gripper too. Enter when done.")
    low, high = middle.copy(), middle.copy()
    wanted = np.full(len(ids), LEAST) if nominal is None else ENOUGH * (nominal[:, 1] - nominal[:, 0])
    if gripper:
        wanted[-1] = LEAST
    while True:
        _follow(bus, ids, low, high, lines)
        moved = (high - low) * TICK
        short = [f"{name} {np.degrees(m):.0f} of at least {np.degrees(w):.0f} degrees"
                 for name, m, w in zip(joints, moved, wanted, strict=True) if m < w]  # fmt: skip
        if not short:
            break
        print(f"Too little: {', '.join(short)}. Go on, then Enter.", flush=True)
    made = {}
    for i, name in enumerate(joints):
        sign = -1 if name in inverted else 1
        known = None if nominal is None or (gripper and i == len(joints) - 1) else (nominal[i, 0], nominal[i, 1])
        joint = measured_joint(ids[i], int(low[i]), int(high[i]), known, sign=sign, homing=homing[i])
        if nominal is None and not (gripper and i == len(joints) - 1):
            joint = JointCalibration(ids[i], sign, float(middle[i]), joint.low, joint.high, homing[i])
        bus.set_limits(ids[i], int(low[i]), int(high[i]))
        made[name] = joint
    calibration = Calibration(robot, made, gripper)
    for name, lowest, highest in zip(joints, *calibration.limits, strict=True):
        print(f"  {name:16} {_in_words(lowest, name, joints, gripper)} to {_in_words(highest, name, joints, gripper)}")
    return calibration


def _in_words(q: float, name: str, joints: Sequence[str], gripper: bool) -> str:
    return f"{q:7.2f}    " if gripper and name == joints[-1] else f"{np.degrees(q):7.1f} deg"


def _follow(bus: ServoBus, ids: Sequence[int], low: np.ndarray, high: np.ndarray, lines: Lines) -> None:
    """Widens ``low`` and ``high`` until Enter."""
    while not lines.entered(0.01):
        now = _positions(bus, ids)
        np.minimum(low, now, out=low)
        np.maximum(high, now, out=high)
        if sys.stdout.isatty():
            print("  " + " ".join(f"{np.degrees(d * TICK):4.0f}" for d in high - low),
                  end=" deg\r", flush=True)  # fmt: skip


def _positions(bus: ServoBus, ids: Sequence[int]) -> np.ndarray:
    for _ in range(10):
        if len(found := bus.present(ids)) == len(ids):
            return np.array([found[id].position for id in ids], float)
    raise DeviceError(f"{bus.port.path}: servos {[id for id in ids if id not in found]} do not tell where they are.")


def _show(bus: ServoBus, calibration: Calibration) -> None:
    """Positions, five times a second, until Ctrl-C; torque is left as it is."""
    reader = ServoReader(bus, calibration, max_misses=20, latency=0.0)
    reader.connect()
    try:
        while True:
            q = reader.read().q
            words = [f"{name} {_in_words(x, name, list(calibration.joints), calibration.gripper).strip()}"
                     for name, x in zip(calibration.joints, q, strict=True)]  # fmt: skip
            print("  ".join(words), flush=True)
            time.sleep(0.2)
    finally:
        reader.close()


def model_ranges(path: str, joints: Sequence[str], gripper: bool) -> np.ndarray:
    """(n, 2) rad, of the model's joints of these names; a gripper's need not be there."""
    import mujoco

    model: Any = mujoco.MjModel.from_xml_path(path)  # type: ignore[attr-defined]
    ranges = np.zeros((len(joints), 2))
    for i, name in enumerate(joints[:-1] if gripper else joints):
        joint = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name)  # type: ignore[attr-defined]
        if joint < 0 or not model.jnt_limited[joint]:
            raise ConfigError(f"{path} has no joint {name} with a range.")
        ranges[i] = model.jnt_range[joint]
    return ranges
