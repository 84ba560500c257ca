"""A browser as the hand: whatever page, phone or headset speaks to the page's server."""

from __future__ import annotations

import math
import secrets
from typing import Literal

from data.errors import ConfigError
from real_robot.core.types import Joints, RobotSpec, State, TeleopSample
from real_robot.teleop.browser import certificate as _certificate
from real_robot.teleop.browser.server import PageHand, PageServer
from real_robot.teleop.browser.view import View
from real_robot.teleop.cartesian import Cartesian
from real_robot.teleop.clutch import Clutch
from real_robot.teleop.device import Device, Hand


class Browser(Device):
    """The page as a device.

    Args:
        spec: of the robot.
        cartesian: of the same.
        view: what the page shows.
        host: "0.0.0.0" lets other machines in, phones for example; give it together with ``https``.
        port: 0 takes a free one.
        token: part of the address; a new one each time by default.
        https: with a certificate of its own, or that in ``certificate`` and ``key`` (PEM files).
        enable: "hold": the robot may move while ENABLE is held; "latch": until it is pressed again.
        lost_after: s of silence after which the page counts as lost.
    """

    def __init__(
        self,
        spec: RobotSpec,
        cartesian: Cartesian,
        view: View,
        *,
        host: str = "127.0.0.1",
        port: int = 8766,
        token: str | None = None,
        https: bool = False,
        certificate: str | None = None,
        key: str | None = None,
        enable: Literal["hold", "latch"] = "hold",
        lost_after: float = 0.5,
    ):
        super().__init__(spec, Clutch(engage=0.7, release=0.3, engage_after=0.0))
        if enable not in ("hold", "latch"):
            raise ConfigError(f"teleop.enable must be 'hold' or 'latch', is {enable!r}.")
        if certificate is not None and not https:
            raise ConfigError("teleop.certificate is of no use without teleop.https=true.")
        self.cartesian = cartesian
        self._arms: tuple[Joints, Joints] | None = None
        self.server = PageServer(
            view,
            lambda: self._arms,
            {"joints": list(spec.joints), "gripper": spec.gripper, "enable": enable, "name": spec.name},
            host=host,
            port=port,
            token=token or secrets.token_urlsafe(12),
            tls=_certificate.context(certificate, key, host) if https else None,
            lost_after=lost_after,
        )

    @property
    def help(self) -> str:
        """One line for the person at the terminal."""
        return f"teleoperation page: {self.server.url}"

    def start(self) -> None:
        """Listens."""
        self.server.start()

    def close(self) -> None:
        """No longer."""
        self.server.close()

    def poll(self, now: int) -> Hand:
        """What the leading page says."""
        buttons, hand = self.server.take_buttons(), self.server.hand
        if hand is None or self.server.lost(now):
            return Hand(math.nan, None, buttons)
        moving = self.clutch.engaged and hand.gripper is not None and self.cartesian.travelling(self._last)
        return Hand(1.0 if moving else hand.grip, hand, buttons)

    def begin(self, target: Joints, motion: PageHand) -> None:
        """From here."""
        self.cartesian.begin(target, motion.pose)

    def follow(self, motion: PageHand, last: Joints, dt: float) -> Joints:
        """As far from there as the hand is."""
        if motion.gripper is not None:
            self.cartesian.gripper = motion.gripper
        return self.cartesian.by_hand(motion.pose, last, dt)

    def read(self, state: State, target: Joints, now: int | None = None) -> TeleopSample:
        """The hand's wish; what it is goes to the page too."""
        sample = super().read(state, target, now)
        self._arms = (state.q, sample.target)
        return sample
