"""The keyboard of a terminal: jogs the tool, or one joint; the robot stands when no key is held."""

from __future__ import annotations

from typing import Literal

import numpy as np

from data.errors import ConfigError
from real_robot.core.types import SECOND, Joints, RobotSpec
from real_robot.teleop.cartesian import Cartesian
from real_robot.teleop.clutch import Clutch
from real_robot.teleop.device import Device, Hand
from real_robot.teleop.devices.keys import HELP, Keys

TOOL = {"w": (0, 1), "s": (0, -1), "a": (1, 1), "d": (1, -1), "r": (2, 1), "f": (2, -1),
        "u": (3, -1), "o": (3, 1), "i": (4, 1), "k": (4, -1), "j": (5, 1), "l": (5, -1)}  # fmt: skip
JOINTS_UP, JOINTS_DOWN = "qwrtyuiop", "asdfghjkl"
TOOL_HELP = "w s a d r f move the tool | i k j l u o turn it | g gripper | [ ] slower, faster"
JOINT_HELP = "q w r t y u ... joints up | a s d f g h ... joints down | [ ] slower, faster"


class Keyboard(Device):
    """Jog by keys.

    Args:
        spec: of the robot.
        mode: "tool": velocity in the tool's frame; "joints": one pair of keys per joint.
        cartesian: needed for "tool".
        keys: the terminal's.
        hold: s without a repeated key after which the robot is released.
        speed: rad/s (m/s, openings/s) of joints in "joints".
    """

    def __init__(
        self,
        spec: RobotSpec,
        keys: Keys,
        *,
        mode: Literal["tool", "joints"] = "tool",
        cartesian: Cartesian | None = None,
        hold: float = 0.3,
        speed: float = 0.5,
    ):
        super().__init__(spec, Clutch(engage=0.5, release=0.4, engage_after=0.0))
        if mode not in ("tool", "joints"):
            raise ConfigError(f"teleop.mode must be 'tool' or 'joints', is {mode!r}.")
        if mode == "tool" and cartesian is None:
            raise ConfigError(f"teleop.mode=tool needs a model of robot {spec.name}: use teleop.mode=joints.")
        if mode == "joints" and spec.n > len(JOINTS_DOWN):
            raise ConfigError(f"teleop.mode=joints has keys for {len(JOINTS_DOWN)} joints, {spec.name} has {spec.n}.")
        self.keys, self.mode, self.cartesian, self.hold, self.speed = keys, mode, cartesian, hold, speed
        self.factor = 1.0
        self._until: dict[str, int] = {}  # ns until which a key counts as held

    @property
    def help(self) -> str:
        """One line for the person at the keyboard."""
        return f"{TOOL_HELP if self.mode == 'tool' else JOINT_HELP} | {HELP}"

    def start(self) -> None:
        """Takes the terminal."""
        self.keys.start()

    def close(self) -> None:
        """Gives it back."""
        self.keys.close()

    def poll(self, now: int) -> Hand:
        """What is typed."""
        typed = self.keys.read()
        buttons = self.keys.buttons(typed)
        for key in typed:
            if key in "[]":
                self.factor = float(np.clip(self.factor * (2 if key == "]" else 0.5), 0.125, 2.0))
            elif key == "g" and self.mode == "tool" and self.cartesian is not None and self.spec.gripper:
                self._toggle(now)
            elif self._known(key):
                self._until[key] = now + round(self.hold * SECOND)
        self._until = {k: t for k, t in self._until.items() if t > now}
        moving = bool(self._until) or (self.mode == "tool" and self._gripper_moves())
        return Hand(float(moving), frozenset(self._until), buttons)

    def begin(self, target: Joints, motion: frozenset[str]) -> None:
        """From here."""
        if self.cartesian is not None:
            self.cartesian.begin(target)
            if "g" in motion:  # what engaged is the gripper
                self.cartesian.gripper = float(target[-1] < 0.5)

    def follow(self, motion: frozenset[str], last: Joints, dt: float) -> Joints:
        """On, as the keys say."""
        if self.mode == "tool" and self.cartesian is not None:
            twist = np.zeros(6)
            for key in motion & TOOL.keys():
                axis, sign = TOOL[key]
                twist[axis] += sign * min(self.factor, 1.0)
            return self.cartesian.by_twist(twist, last, dt)
        q = last.copy()
        for key in motion:
            row, sign = (JOINTS_UP, 1) if key in JOINTS_UP else (JOINTS_DOWN, -1)
            q[row.index(key)] += sign * self.speed * self.factor * dt
        return q

    def _known(self, key: str) -> bool:
        if self.mode == "tool":
            return key in TOOL
        row = JOINTS_UP if key in JOINTS_UP else JOINTS_DOWN
        return key in row and row.index(key) < self.spec.n

    def _toggle(self, now: int) -> None:
        assert self.cartesian is not None
        if "g" in self._until:  # repeated while held
            self._until["g"] = now + round(self.hold * SECOND)
            return
        self._until["g"] = now + round(self.hold * SECOND)
        if self._last is not None:
            self.cartesian.gripper = float(self.cartesian.gripper < 0.5)

    def _gripper_moves(self) -> bool:
        return self.clutch.engaged and self.cartesian is not None and self.cartesian.travelling(self._last)
