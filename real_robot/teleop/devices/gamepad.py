"""A gamepad through evdev: sticks move and turn the tool while the right shoulder button is held.

left stick    forward, sideways        right stick   turn about the tool's y and x
triggers      down, up                 d-pad left, right   turn about the tool's z
right shoulder (hold)  clutch          left shoulder (hold)  ENABLE
south (A)  gripper     east (B)  E-STOP     north  success   west  failure
start  START and STOP in turns     select  DISCARD     mode  RECOVER
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from data.errors import ConfigError
from real_robot.core.types import Button, DeviceError, Joints, RobotSpec
from real_robot.teleop.cartesian import Cartesian
from real_robot.teleop.clutch import Clutch
from real_robot.teleop.device import Device, Hand

# codes of linux/input-event-codes.h
EV_KEY, EV_ABS = 1, 3
ABS = {"x": 0, "y": 1, "z": 2, "rx": 3, "ry": 4, "rz": 5, "hat": 16}
SOUTH, EAST, NORTH, WEST, TL, TR, SELECT, START, MODE = 304, 305, 307, 308, 310, 311, 314, 315, 316
PRESSED = {EAST: Button.ESTOP, NORTH: Button.SUCCESS, WEST: Button.FAILURE, SELECT: Button.DISCARD,
           MODE: Button.RECOVER}  # fmt: skip


class Gamepad(Device):
    """Twists from sticks.

    Args:
        spec: of the robot.
        cartesian: of the same.
        path: "/dev/input/event5"; by default the first that has two sticks and a south button.
        dead: fraction of a stick's way about its middle that counts as nothing.
    """

    def __init__(self, spec: RobotSpec, cartesian: Cartesian, *, path: str | None = None, dead: float = 0.12):
        super().__init__(spec, Clutch(engage=0.5, release=0.4, engage_after=0.0))
        self.cartesian, self.path, self.dead = cartesian, path, dead
        self._pad: Any = None
        self.ranges: Mapping[int, tuple[float, float]] = {}
        self._axis = dict.fromkeys(ABS.values(), 0.0)
        self._clutch = False
        self._recording = False

    def start(self) -> None:
        """Opens the device."""
        try:
            import evdev  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError("teleop.device=gamepad needs evdev: pip install 'deft[gamepad]'.") from None
        paths = [self.path] if self.path else sorted(evdev.list_devices())
        for path in paths:
            try:
                pad = evdev.InputDevice(path)
            except OSError as error:
                if self.path:
                    raise DeviceError(f"gamepad: {path} cannot be opened ({error}): are you in group input?") from None
                continue
            able: Any = pad.capabilities(absinfo=True)
            axes = dict(able.get(EV_ABS, []))
            if SOUTH in able.get(EV_KEY, []) and {ABS["x"], ABS["y"], ABS["rx"], ABS["ry"]} <= axes.keys():
                self._pad = pad
                self.ranges = {code: (info.min, info.max) for code, info in axes.items()}
                return
            pad.close()
        looked = ", ".join(paths) or "no /dev/input/event* that this user may read"
        raise DeviceError(f"gamepad: found none with two sticks (looked at {looked}): plug it in, or join group input.")

    def close(self) -> None:
        """Lets go of it."""
        if self._pad is not None:
            self._pad.close()
            self._pad, self._clutch = None, False

    def poll(self, now: int) -> Hand:
        """All events since the last reading."""
        try:
            events = list(self._pad.read())
        except BlockingIOError:
            events = []
        except OSError as error:
            raise DeviceError(f"gamepad: unplugged ({error}).") from None
        return self.translate(events)

    def translate(self, events: Iterable[Any]) -> Hand:
        """Evdev's ``InputEvent``s to a hand."""
        buttons = Button.NONE
        for event in events:
            if event.type == EV_ABS and event.code in self._axis:
                self._axis[event.code] = self._fraction(event.code, event.value)
            elif event.type == EV_KEY and event.value in (0, 1):
                buttons |= self._key(event.code, event.value == 1)
        a = {name: self._axis[code] for name, code in ABS.items()}
        twist = np.array([-a["y"], -a["x"], (a["rz"] - a["z"]) / 2, a["rx"], -a["ry"], -a["hat"]])
        moving = self._clutch or (self.clutch.engaged and self.cartesian.travelling(self._last))
        return Hand(float(moving), twist if self._clutch else np.zeros(6), buttons)

    def _key(self, code: int, down: bool) -> Button:
        if code == TR:
            self._clutch = down
        elif code == TL:
            return Button.ENABLE if down else Button.DISABLE
        elif code == SOUTH and down:
            self.cartesian.gripper = float(self.cartesian.gripper < 0.5)
        elif code == START and down:
            self._recording = not self._recording
            return Button.START if self._recording else Button.STOP
        elif down:
            return PRESSED.get(code, Button.NONE)
        return Button.NONE

    def _fraction(self, code: int, value: int) -> float:
        """-1..1, nothing in the dead zone and continuous at its edge; triggers rest at their lower end."""
        low, high = self.ranges.get(code, (-1, 1) if code == ABS["hat"] else (-32768, 32767))
        f = 2 * (value - low) / (high - low) - 1
        if code in (ABS["z"], ABS["rz"]):
            f = f + 1  # 0..2, halved where it is used
        return float(np.sign(f) * max(0.0, abs(f) - self.dead) / (1 - self.dead))

    def begin(self, target: Joints, motion: Any) -> None:
        """From here."""
        self.cartesian.begin(target)

    def follow(self, motion: Any, last: Joints, dt: float) -> Joints:
        """On, as the sticks say."""
        return self.cartesian.by_twist(motion, last, dt)
