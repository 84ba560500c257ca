"""From options to a driver; the one place that knows robots by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from data.construct import construct, load_named, option_names
from real_robot.core.streams import Session
from real_robot.core.types import Clock, Robot

ROBOTS = {
    "mujoco": "real_robot.robots.mujoco_arm:MujocoArm",
    "so101": "real_robot.robots.so101:SO101",
    "dynamixel": "real_robot.robots.dynamixel:Dynamixel",
    "ur": "real_robot.robots.ur:UR",
}
LEADERS = {"so101": "real_robot.robots.so101:LeaderArm", "dynamixel": "real_robot.robots.dynamixel:LeaderArm"}


def build_robot(options: Mapping[str, Any], session: Session | None = None, clock: Clock | None = None) -> Robot:
    """A driver, not connected.

    Args:
        options: ``type``, a key of ROBOTS or "package.module:Class" for a driver of your own, and its arguments.
        session: for a robot that is simulated in place, which publishes its world there.
        clock: that it goes by, if not the machine's.

    Raises:
        ConfigError: an unknown type or option, or a missing one.
    """
    rest = {k: v for k, v in options.items() if v is not None}
    make = load_named(ROBOTS, str(rest.pop("type", None)), "robot.type")
    given = {k: v for k, v in (("session", session), ("clock", clock)) if v is not None and k in option_names(make)}
    return construct(make, rest, "robot", **given)


def leader_class(kind: str) -> Callable[..., Any]:
    """Of a leader arm: a key of LEADERS, or "package.module:Class" with ``read_joints``. Raises ConfigError."""
    return load_named(LEADERS, kind, "teleop.arm")
