"""From options to a device: ``{"device": "keyboard", "linear": 0.1}``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from data.construct import construct, option_names
from data.errors import ConfigError, nearest
from real_robot.core.kinematics import Kinematics
from real_robot.core.streams import Session
from real_robot.core.types import RobotSpec, Teleop
from real_robot.robots.build import leader_class
from real_robot.simulators.hand import Hand, Pick
from real_robot.teleop.browser.device import Browser
from real_robot.teleop.browser.view import View
from real_robot.teleop.cartesian import Cartesian
from real_robot.teleop.devices.gamepad import Gamepad
from real_robot.teleop.devices.keyboard import Keyboard
from real_robot.teleop.devices.keys import Keys
from real_robot.teleop.devices.leader import Arm, Leader
from real_robot.teleop.devices.scripted import Scripted
from real_robot.teleop.devices.spacemouse import SpaceMouse

DEVICES: dict[str, Callable[..., Teleop]] = {
    "browser": Browser,
    "gamepad": Gamepad,
    "hand": Hand,
    "keyboard": Keyboard,
    "leader": Leader,
    "scripted": Scripted.load,
    "spacemouse": SpaceMouse,
}
_MADE_HERE = ("spec", "session", "cartesian", "view", "keys", "arm", "pick")


def build_teleop(
    options: Mapping[str, Any],
    spec: RobotSpec,
    *,
    session: Session | None = None,
    arm: Arm | None = None,
    machine: tuple[str, ...] = (),
    clips: tuple[str, ...] = (),
) -> Teleop:
    """A device, not yet started.

    Args:
        options: ``device`` and its own ones; those of ``Cartesian`` for devices that move the tool; ``tty`` for the
            keyboard and for the leader's keys (``tty: null`` lets a leader do without).
        spec: of the robot that is led.
        session: whose rings the browser page shows.
        arm: the leader.
        machine, clips: names that the page shows, see ``View``.

    Raises:
        ConfigError: an unknown device or option, or a robot that the device cannot lead.
    """
    rest = dict(options)
    name = rest.pop("device", None)
    if name not in DEVICES:
        raise ConfigError(f"Unknown teleop.device {name!r}. {nearest(str(name), list(DEVICES))}")
    make = DEVICES[name]
    takes = inspect.signature(make).parameters
    given: dict[str, Any] = {"spec": spec}
    if "cartesian" in takes and rest.get("mode") != "joints":
        given["cartesian"] = Cartesian(spec, **_pick(rest, _options(Cartesian)))
    if "pick" in takes:
        given["pick"] = Pick(spec, **_pick(rest, _options(Pick)))
    if "session" in takes:
        given["session"] = session
    if "view" in takes:
        given["view"] = View(Kinematics(spec), session, machine=machine, clips=clips)
    if "keys" in takes:
        tty = rest.pop("tty", "/dev/tty")
        if tty is not None or name == "keyboard":
            given["keys"] = Keys(tty or "/dev/tty")
    if "arm" in takes:
        if arm is None:
            raise ConfigError("teleop.device=leader needs an arm: give teleop.arm.")
        given["arm"] = arm
    known = _options(make)
    if unknown := sorted(rest.keys() - set(known)):
        takes_too = [*known, *(_options(Cartesian) if "cartesian" in given else ())]
        raise ConfigError(f"teleop.device={name} has no option {unknown[0]!r}. {nearest(unknown[0], takes_too)}")
    if missing := [k for k in known if takes[k].default is inspect.Parameter.empty and k not in rest]:
        raise ConfigError(f"teleop.device={name} needs teleop.{missing[0]}.")
    return make(**given, **rest)


def split_leader(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of ``device: leader``: those of the device, and those of ``build_leader``: ``arm`` and its own."""
    known = ("arm", *option_names(leader_class(str(options.get("arm")))))
    return {k: v for k, v in options.items() if k not in known}, {k: options[k] for k in known if k in options}


def build_leader(options: Mapping[str, Any]) -> Arm:
    """A leader arm, not connected. Raises ConfigError."""
    rest = {k: v for k, v in options.items() if v is not None}
    return construct(leader_class(str(rest.pop("arm", None))), rest, "teleop")


def _options(make: Callable[..., Any]) -> list[str]:
    return [k for k in inspect.signature(make).parameters if k not in _MADE_HERE]


def _pick(options: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {k: options.pop(k) for k in names if k in options}
