"""A SpaceMouse through pyspacemouse: six axes at once. Left button: gripper; right button: ENABLE and DISABLE in turns.

The clutch is the cap itself, with hysteresis: a push engages, letting go releases.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.errors import ConfigError
from real_robot.core.types import Button, DeviceError, Joints, RobotSpec
from real_robot.teleop.cartesian import Cartesian
from real_robot.teleop.clutch import Clutch
from real_robot.teleop.device import Device, Hand

_REPORTS = 64  # per reading at most: it sends some 250 a second


class SpaceMouse(Device):
    """Twists from the cap.

    Args:
        spec: of the robot.
        cartesian: of the same.
        engage: deflection, as a fraction, that closes the clutch.
        release: deflection that opens it.
        name: as pyspacemouse knows it, "SpaceNavigator"; by default the first that is found.
    """

    def __init__(
        self,
        spec: RobotSpec,
        cartesian: Cartesian,
        *,
        engage: float = 0.15,
        release: float = 0.05,
        name: str | None = None,
    ):
        super().__init__(spec, Clutch(engage, release, engage_after=0.02, release_after=0.1))
        self.cartesian, self.name = cartesian, name
        self.mouse: Any = None
        self._down = [0, 0]
        self._enabled = False

    def start(self) -> None:
        """Opens the device."""
        try:
            import pyspacemouse  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError("teleop.device=spacemouse needs pyspacemouse: pip install 'deft[spacemouse]'.") from None
        try:
            self.mouse = pyspacemouse.open(device=self.name) if self.name else pyspacemouse.open()
        except Exception as error:  # of several kinds: no libhidapi, no such device, no permission
            raise DeviceError(
                f"spacemouse: cannot be opened ({error}): is it plugged in, libhidapi-hidraw0 installed, and may this"
                " user read /dev/hidraw*?"
            ) from None

    def close(self) -> None:
        """Lets go of it."""
        if self.mouse is not None:
            self.mouse.close()
            self.mouse, self._enabled = None, False

    def poll(self, now: int) -> Hand:
        """Where the cap is after all reports that have come."""
        buttons = Button.NONE
        try:
            state, t = self.mouse.read(), None
            for _ in range(_REPORTS):
                buttons |= self._buttons(state.buttons)
                if state.t == t:
                    break
                t = state.t
                state = self.mouse.read()
        except Exception as error:  # easyhid's, or OSError
            raise DeviceError(f"spacemouse: unplugged ({error}).") from None
        # its x points right and its y away from the person; the tool's x forward and y left
        twist = np.array([state.y, -state.x, state.z, state.roll, state.pitch, -state.yaw], np.float64)
        deflection = float(np.abs(twist).max())
        if self.clutch.engaged and self.cartesian.travelling(self._last):
            deflection = 1.0
        return Hand(deflection, twist, buttons)

    def _buttons(self, down: Any) -> Button:
        pressed = [bool(now) and not before for now, before in zip(down, self._down, strict=False)]
        self._down = list(down[:2])
        if pressed and pressed[0]:
            self.cartesian.gripper = float(self.cartesian.gripper < 0.5)
        if len(pressed) > 1 and pressed[1]:
            self._enabled = not self._enabled
            return Button.ENABLE if self._enabled else Button.DISABLE
        return Button.NONE

    def begin(self, target: Joints, motion: Any) -> None:
        """From here."""
        self.cartesian.begin(target)

    def follow(self, motion: Any, last: Joints, dt: float) -> Joints:
        """On, as the cap says."""
        return self.cartesian.by_twist(motion, last, dt)
