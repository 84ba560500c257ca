"""A Universal Robots controller's dashboard server: may a program run, and if not, what a person has to do."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from real_robot.core.types import DeviceError

RTDE_PORT = 30004


class Dashboard:
    """Connects for each question.

    Args:
        host: address of the controller.
    """

    def __init__(self, host: str):
        self.host = host

    def _probe(self) -> None:
        try:
            socket.create_connection((self.host, RTDE_PORT), timeout=2).close()
        except OSError as e:
            raise DeviceError(
                f"robot ur: nothing answers at {self.host}:{RTDE_PORT} ({e}): is the controller switched on and in "
                "this network, is this its address (pendant: Settings, System, Network), is RTDE allowed (Security, "
                "Services)?"
            ) from None

    def check(self) -> None:
        """Raises DeviceError where no program can be started, saying what is in the way."""
        self._probe()
        with self._connected() as dashboard:
            mode, safety = dashboard.robotmode(), dashboard.safetystatus()
            if "NORMAL" not in safety and "REDUCED" not in safety:
                raise DeviceError(f"robot ur at {self.host}: {safety}. {_advice(safety)}")
            if "RUNNING" not in mode:
                raise DeviceError(f"robot ur at {self.host}: {mode}. Power on and release the brakes at the pendant.")
            with contextlib.suppress(RuntimeError):  # before PolyScope 5.6 there is no such thing
                if not dashboard.isInRemoteControl():
                    raise DeviceError(
                        f"robot ur at {self.host} is not in remote control: choose it at the pendant's top right "
                        "(enabled under Settings, System, Remote Control)."
                    )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        from dashboard_client import DashboardClient

        client = DashboardClient(self.host)
        try:
            client.connect(2000)
            yield client
        except RuntimeError as e:
            raise DeviceError(f"robot ur at {self.host}: its dashboard server says: {e}") from None
        finally:
            with contextlib.suppress(RuntimeError):
                client.disconnect()

    def unlock(self) -> None:
        """Ends a protective stop; the controller refuses for the first five seconds after it. Raises DeviceError."""
        self._probe()
        with self._connected() as dashboard:
            if "PROTECTIVE_STOP" not in dashboard.safetystatus():
                return
            dashboard.closeSafetyPopup()
            end = time.monotonic() + 7
            while True:
                try:
                    dashboard.unlockProtectiveStop()
                    break
                except RuntimeError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.1)
            while "PROTECTIVE_STOP" in dashboard.safetystatus() and time.monotonic() < end:
                time.sleep(0.05)


def _advice(safety: str) -> str:
    if "PROTECTIVE" in safety:
        return "See to what it ran into, then unlock it at the pendant, or recover."
    if "SAFEGUARD" in safety:
        return "Close the safeguard, then enable the robot at the pendant."
    return "Release the emergency stop, power on and release the brakes at the pendant."
