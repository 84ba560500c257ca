"""What robots, cameras, teleoperation devices and policies tell each other: numpy only, no device, no torch.

Times are nanoseconds of the machine's monotonic clock (``Clock.now``), never the wall clock. Joint vectors have one
entry per joint of the robot's spec, in its order: rad or m; a gripper, where there is one, is the last joint and is
measured by its opening, 0 closed to 1 open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray

from data.errors import ConfigError, DeftError

Joints = Float64[np.ndarray, " n"]
SECOND = 1_000_000_000  # ns


class DeviceError(DeftError):
    """A device does not answer, or not as it should."""


class RobotMode(IntEnum):
    """What the robot's own controller says."""

    READY = 0  # follows what is written
    STOPPED = 1  # protective stop: follows again after ``recover``
    FAULT = 2  # has to be seen to by a person


@dataclass(frozen=True)
class RobotSpec:
    """What a robot is, and what it may do; the safety layer enforces it.

    Attributes:
        name: of the robot, "so101".
        joints: names, gripper last.
        lower, upper: (n,) positions, rad or m; 0 and 1 for a gripper.
        velocity, acceleration, jerk: (n,) largest magnitudes, per s, s^2, s^3.
        control_hz: rate that it is written to at.
        gripper: whether the last joint is one.
        model: MJCF file whose joints bear these names, for forward kinematics.
        tcp: site of ``model`` that is the tool's centre.
        home: (n,) where it starts from.
        units: of each joint's position; "rad", and "open" (0 to 1) for a gripper, by default.
        on_host_death: what it does by itself when nothing is written any more.
    """

    name: str
    joints: tuple[str, ...]
    lower: Joints
    upper: Joints
    velocity: Joints
    acceleration: Joints
    jerk: Joints
    control_hz: float
    gripper: bool = False
    model: Path | None = None
    tcp: str | None = None
    home: Joints | None = None
    on_host_death: Literal["stops", "holds_last", "continues_to_goal"] = "holds_last"
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.joints)
        if not self.units:
            object.__setattr__(self, "units", ("rad",) * (n - self.gripper) + ("open",) * self.gripper)
        if len(self.units) != n:
            raise ConfigError(f"robot {self.name}: units has {len(self.units)} entries, expected {n}, one per joint.")
        for key in ("lower", "upper", "velocity", "acceleration", "jerk", "home"):
            value = getattr(self, key)
            if value is None:
                continue
            value = np.asarray(value, np.float64)
            if value.shape != (n,):
                raise ConfigError(f"robot {self.name}: {key} has shape {value.shape}, expected ({n},), one per joint.")
            if not np.isfinite(value).all():
                raise ConfigError(f"robot {self.name}: {key} must be finite, is {value.tolist()}.")
            object.__setattr__(self, key, value)
        if not (self.lower < self.upper).all():
            raise ConfigError(f"robot {self.name}: every lower limit must lie below its upper one.")
        for key in ("velocity", "acceleration", "jerk"):
            if not (getattr(self, key) > 0).all():
                raise ConfigError(f"robot {self.name}: {key} must be positive, is {getattr(self, key).tolist()}.")

    @property
    def n(self) -> int:
        """Joints, the gripper among them."""
        return len(self.joints)

    @property
    def dt(self) -> float:
        """Control period, s."""
        return 1.0 / self.control_hz

    def with_limits(self, limits: Mapping[str, Any]) -> RobotSpec:
        """The same robot under other limits (``{"velocity": [...]}``), no wider than its own.

        Raises:
            ConfigError: an unknown limit, or one beyond the robot's own.
        """
        values = {f: getattr(self, f) for f in self.__dataclass_fields__}
        for key, limit in limits.items():
            if key not in ("lower", "upper", "velocity", "acceleration", "jerk"):
                raise ConfigError(
                    f"robot {self.name} has no limit '{key}': lower, upper, velocity, acceleration, jerk."
                )
            new = np.broadcast_to(np.asarray(limit, np.float64), (self.n,)).copy()
            wider = new < values[key] if key == "lower" else new > values[key]
            if wider.any():
                raise ConfigError(
                    f"robot {self.name}: {key} {new.tolist()} is beyond its own limits {values[key].tolist()}."
                )
            values[key] = new
        return RobotSpec(**values)


@dataclass(frozen=True)
class State:
    """What a robot says of itself.

    Attributes:
        t: when it was so, on this machine's clock (receipt minus the calibrated latency).
        t_robot: the controller's own time, s: a robot whose clock stands still is not heard from, whatever the
            client library returns.
        q, dq: (n,) positions and velocities.
        effort: (n,) torque, current or load in the robot's own unit; None where it does not tell.
        mode: the controller's.
    """

    t: int
    t_robot: float
    q: Joints
    dq: Joints
    effort: Joints | None = None
    mode: RobotMode = RobotMode.READY


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        t: capture time (receipt minus the calibrated latency).
        seq: the camera's own count; a gap is a lost frame.
        rgb: (H, W, 3).
        depth: (H, W) m, aligned to ``rgb``; 0 where unknown.
    """

    t: int
    seq: int
    rgb: UInt8[np.ndarray, "h w 3"]
    depth: NDArray[np.float32] | None = None


class Button(IntFlag):
    """What a person at the device asks for."""

    NONE = 0
    ENABLE = 1  # the robot may move, while this is held or until DISABLE
    DISABLE = 2
    ESTOP = 4
    RECOVER = 8  # out of FAULT, after the cause was seen to
    START = 16  # of an episode
    STOP = 32
    SUCCESS = 64  # labels of the episode that ends or has ended
    FAILURE = 128
    DISCARD = 256
    QUIT = 512


@dataclass(frozen=True)
class TeleopSample:
    """What a teleoperation device says.

    Attributes:
        t: when it was read.
        engaged: the clutch is closed: the hand leads the robot.
        target: (n,) joints that it asks for; the present target where it is not engaged.
        buttons: pressed since the last sample.
    """

    t: int
    engaged: bool
    target: Joints
    buttons: Button = Button.NONE


@dataclass(frozen=True)
class Chunk:
    """Actions that a policy asks for: action i is due at ``due + i * dt``.

    Attributes:
        id: larger than that of any chunk before.
        t_obs: time of the newest observation that it was computed from; its age counts from there.
        due: time of the first action.
        dt: s between actions.
        actions: (T, n) joint targets.
    """

    id: int
    t_obs: int
    due: int
    dt: float
    actions: Float64[np.ndarray, "t n"]


class Clock(Protocol):
    """The one clock of a session."""

    def now(self) -> int:
        """ns, monotonic."""
        ...

    def sleep_until(self, t: int) -> None:
        """Returns at or soon after ``t``; at once where it is past."""
        ...


class Robot(Protocol):
    """A driver; lives in the control process alone. Nothing here may block for longer than a control period."""

    spec: RobotSpec

    def connect(self) -> None:
        """Ready to be read. Raises DeviceError saying what was tried and what to look at."""
        ...

    def read(self) -> State:
        """The newest state. Raises DeviceError when the robot has not answered for too long to go on."""
        ...

    def write(self, q: Joints) -> None:
        """Follow ``q`` until the next call; it has passed the safety layer."""
        ...

    def stop(self) -> None:
        """Stand still where it is, now; whatever else fails, this must be tried."""
        ...

    def recover(self) -> None:
        """Out of a protective stop, after a person has asked for it."""
        ...

    def close(self) -> None:
        """Stop, and let go of the device."""
        ...


class Camera(Protocol):
    """A driver; lives in a process of its own."""

    name: str
    width: int
    height: int
    fps: float
    has_depth: bool

    def start(self) -> None:
        """Raises DeviceError saying what was tried."""
        ...

    def read(self) -> Frame:
        """Waits for the next picture. Raises DeviceError when none came for too long."""
        ...

    def close(self) -> None:
        """Lets go of the device."""
        ...


class Teleop(Protocol):
    """A device in a person's hand; lives in a process of its own."""

    def start(self) -> None:
        """Raises DeviceError saying what was tried."""
        ...

    def read(self, state: State, target: Joints) -> TeleopSample | None:
        """The newest wish, or None where nothing is to be said; ``target`` is what the robot was last asked for."""
        ...

    def close(self) -> None:
        """Lets go of the device."""
        ...


class PolicyClient(Protocol):
    """A policy, here or on another machine."""

    metadata: Mapping[str, Any]

    def infer(self, obs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """One chunk: {"actions": (Ta, Da), ...}. ``obs`` as the metadata describe it. May take its time."""
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...
