"""Between a servo's ticks and a joint's position: where zero is, which way is positive, how far it may go."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.errors import ConfigError
from real_robot.core.types import Joints

TURN = 4096  # ticks, of Feetech's STS and Dynamixel's X series alike
TICK = 2 * math.pi / TURN  # rad
VERSION = 1
MODELS = Path(__file__).parents[1] / "models"


@dataclass(frozen=True)
class JointCalibration:
    """One servo.

    Attributes:
        id: on the bus.
        sign: +1 where ticks grow with the joint's position, -1 where they fall.
        zero: tick at joint position 0; for a gripper, closed.
        low, high: ticks between which it may move.
        homing: offset in the servo's own memory, which its position has been through already; 0 where it has none.
    """

    id: int
    sign: int
    zero: float
    low: float
    high: float
    homing: int = 0


@dataclass(frozen=True)
class Calibration:
    """An arm's servos.

    Attributes:
        robot: "so101".
        joints: in the robot's order.
        gripper: whether the last is one: its position is its opening, 0 to 1 over its whole range.
        origin: "lerobot" where it was taken over from there.
    """

    robot: str
    joints: dict[str, JointCalibration]
    gripper: bool = True
    origin: str = ""

    def __post_init__(self) -> None:
        for name, j in self.joints.items():
            if not (math.isfinite(j.zero) and 0 < j.high - j.low < TURN and j.sign in (-1, 1)):
                raise ConfigError(f"calibration of {name}: {j} makes no sense: 0 < high - low < {TURN}, sign 1 or -1.")
        if len({j.id for j in self.joints.values()}) < len(self.joints):
            raise ConfigError(f"calibration: two joints have the same id: {self.ids}.")
        values = self.joints.values()
        scale = np.array([j.sign * TICK for j in values])
        if self.gripper:
            last = list(values)[-1]
            scale[-1] = last.sign / (last.high - last.low)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "_zero", np.array([j.zero for j in values]))
        object.__setattr__(self, "_low", np.array([j.low for j in values]))
        object.__setattr__(self, "_high", np.array([j.high for j in values]))

    scale = np.empty(0)  # (n,) joint positions per tick
    _zero = _low = _high = np.empty(0)

    @property
    def ids(self) -> tuple[int, ...]:
        """In the joints' order."""
        return tuple(j.id for j in self.joints.values())

    @property
    def limits(self) -> tuple[Joints, Joints]:
        """(n,) lowest and highest positions."""
        ends = np.stack([self.position(self._low), self.position(self._high)])
        return ends.min(0), ends.max(0)

    def position(self, ticks: np.ndarray) -> Joints:
        """(n,) ticks to rad, or opening."""
        return (ticks - self._zero) * self.scale

    def ticks(self, q: Joints) -> np.ndarray:
        """(n,) whole ticks of positions, brought into the calibrated range: what may be written to the servos.

        Raises ValueError where ``q`` is not finite, or has another length.
        """
        if q.shape != self.scale.shape or not np.isfinite(q).all():
            raise ValueError(f"expected {len(self.scale)} finite positions, got {np.asarray(q).tolist()}")
        return np.rint(np.clip(q / self.scale + self._zero, np.ceil(self._low), np.floor(self._high))).astype(int)

    def beyond(self, ticks: np.ndarray) -> np.ndarray:
        """(n,) ticks by which positions lie outside of the calibrated range."""
        return np.maximum(np.maximum(self._low - ticks, ticks - self._high), 0)

    def nearest_turn(self, ticks: np.ndarray) -> np.ndarray:
        """(n,) whole turns, in ticks, to add to ``ticks`` so that they lie as near as may be to the range's middle."""
        return np.rint(((self._low + self._high) / 2 - ticks) / TURN) * TURN

    def save(self, path: str | Path) -> None:
        """As JSON; an old file of that name is replaced."""
        path = Path(path)
        content = {"version": VERSION, **asdict(self)}
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """From a file, or the one of that name that comes with Deft ("so101_simulated").

        Raises ConfigError saying what is wrong with the file.
        """
        ours = MODELS / f"{path}.json"
        try:
            content = json.loads((ours if ours.is_file() else Path(path)).read_text())
            if content.pop("version") != VERSION:
                raise ConfigError(f"{path} is of another version of Deft: calibrate again.")
            joints = {name: JointCalibration(**j) for name, j in content.pop("joints").items()}
            return cls(joints=joints, **content)
        except FileNotFoundError:
            raise ConfigError(
                f"There is no calibration {path}. Make one: python -m real_robot.robots.so101 calibrate port=... "
                f"out={path} (real_robot.robots.dynamixel for a Dynamixel arm)."
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
            raise ConfigError(f"{path} is not a servo calibration: {e}.") from None


def measured_joint(
    id: int, low: int, high: int, nominal: tuple[float, float] | None, *, sign: int = 1, homing: int = 0
) -> JointCalibration:
    """A joint whose ends were found at ``low`` and ``high`` ticks.

    Args:
        nominal: the model's positions of those ends, rad: zero is put where both ends fit best. None for a gripper,
            which is closed at one end.
    """
    closed = float(low if sign > 0 else high)
    zero = closed if nominal is None else (low + high) / 2 - sign * sum(nominal) / 2 / TICK
    return JointCalibration(id, sign, zero, low, high, homing)


def nominal_calibration(
    robot: str,
    names: Sequence[str],
    ids: Sequence[int],
    ranges: np.ndarray,
    zeros: Sequence[int],
    homing: Sequence[int],
    *,
    gripper: bool,
) -> Calibration:
    """Of joints that go as far as the model's, (n, 2) rad, and whose servos show ``zeros`` at position 0."""
    joints = {}
    for i, name in enumerate(names):
        low, high = (zeros[i] + ranges[i] / TICK).tolist()
        is_gripper = gripper and i == len(names) - 1
        joints[name] = JointCalibration(ids[i], 1, low if is_gripper else zeros[i], low, high, homing[i])
    return Calibration(robot, joints, gripper)
