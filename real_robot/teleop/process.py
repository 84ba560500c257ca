"""The teleop process: one device, read some 80 times a second, into the ring ``teleop``.

Control need not trust it to be alive: a sample that is too old is no hand. Whatever happens here, a hand that is lost
is said to be so at once, by a sample that is not engaged and DISABLE; only buttons get through while the robot is not
heard from. ENABLE is repeated as long as it holds, for a control process that wants to hear it held.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ConfigError, DataError, DeftError
from real_robot.control.machine import Machine
from real_robot.core.clock import MonotonicClock
from real_robot.core.ring import Ring
from real_robot.core.streams import HUMAN, Events, Session, teleop_dtype
from real_robot.core.types import SECOND, Button, Joints, RobotSpec, State, Teleop, TeleopSample
from real_robot.teleop.build import build_teleop
from real_robot.teleop.device import Device
from real_robot.teleop.devices.leader import Arm, Leader

STALE = 0.5  # s: a robot that has been silent for so long is not led
REPEAT = 0.1  # s between repeats of ENABLE
AGAIN = 1.0  # s between tries to open a device


def run(
    folder: str,
    spec: RobotSpec,
    teleop: Mapping[str, Any],
    *,
    rate: float = 80.0,
    arm: Callable[[], Arm] | None = None,
    machine: tuple[str, ...] = (),
    clips: tuple[str, ...] = (),
) -> None:
    """Until the session ends.

    Args:
        folder: of the session.
        spec: of the robot that is led.
        teleop: options of ``build_teleop``.
        rate: readings per second.
        arm: makes the leader, for ``device: leader``.
        machine, clips: names of the control process' states and of the bits of ``clipped``, for the browser page.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # through the finally below
    session = Session(folder)
    events = Events(session, "teleop")
    desk = Desk(session, spec)
    clock = MonotonicClock()
    try:
        device = build_teleop(
            teleop, spec, session=session, arm=arm() if arm else None, machine=machine, clips=clips
        )  # fmt: skip
    except ConfigError as error:
        events.error(str(error))
        raise
    opened, retry, complaint = False, 0, ""
    try:
        while not session.stopping:
            t = clock.now()
            try:
                if not opened and t >= retry:
                    device.start()
                    opened, complaint = True, ""
                    events.info(getattr(device, "help", f"{teleop['device']} is ready"))
                if opened:
                    desk.tick(device, events)
            except Exception as error:
                opened, retry = False, t + round(AGAIN * SECOND)
                desk.let_go()
                text = _describe(error)
                if text != complaint:
                    events.error(f"the robot is released; trying again every {AGAIN:g} s. {text}")
                complaint = text
                _close(device)
            clock.sleep_until(t + round(SECOND / rate))
    finally:
        desk.let_go()
        _close(device)


class Desk:
    """What lies between a device and the rings."""

    def __init__(self, session: Session, spec: RobotSpec):
        self.session, self.spec = session, spec
        restarted = session.has("teleop")
        self.teleop = session.reopen("teleop", teleop_dtype(spec.n), 2048)
        self._rings: dict[str, Ring] = {}
        self._target = (spec.lower + spec.upper) / 2 if spec.home is None else spec.home.copy()
        self._engaged = self._enabled = self._confirmed = False
        self._repeated = 0
        self._misaligned = ""
        self._looked: dict[str, int] = {}
        if restarted:  # whatever was held when this process died is not held any more
            self._enabled = True
            self.let_go()

    def tick(self, device: Teleop, events: Events) -> TeleopSample | None:
        """Reads the device once and says what it says."""
        now = time.monotonic_ns()
        state, target, followed, enabled = self.robot(now)
        self._confirm(enabled)
        if isinstance(device, Device):
            if state is None:
                device.release()
            elif self._engaged and not followed:
                device.anchor()
        seen = state or State(now, 0.0, self._target, np.zeros(self.spec.n))
        sample = device.read(seen, target)
        if sample is None:
            return None
        if isinstance(device, Device) and (state is None or (device.waits and not enabled)):
            device.release()
            sample = TeleopSample(sample.t, False, target, sample.buttons)
        self._say(sample)
        if sample.engaged != self._engaged:
            events.info("a person takes over" if sample.engaged else "the person lets go")
        self._engaged = sample.engaged
        if isinstance(device, Leader) and device.misaligned != self._misaligned:
            self._misaligned = device.misaligned
            if self._misaligned:
                events.warning(f"the leader must stand as the robot does before it leads; off: {self._misaligned}")
        return sample

    def robot(self, now: int) -> tuple[State | None, Joints, bool, bool]:
        """Its state (None where it is silent), what it was last sent, whether that was the person's wish, whether it
        is enabled.
        """
        record, command = self._newest("state", now), self._newest("command", now)
        state = None
        if record is not None:
            d = record.data
            state = State(record.t, float(d["t_robot"]), d["q"].copy(), d["dq"].copy())
            if not np.isfinite(state.q).all():
                state = None
        followed = enabled = True
        if command is not None and np.isfinite(command.data["sent"]).all():
            self._target = command.data["sent"].copy()
            followed = int(command.data["source"]) == HUMAN
            enabled = int(command.data["state"]) in (Machine.RUN, Machine.PAUSE)
        elif state is not None:
            self._target = state.q.copy()
        return state, self._target, followed, enabled

    def _confirm(self, enabled: bool) -> None:
        """ENABLE holds until it is let go of, or was ended elsewhere: then it has to be pressed anew."""
        if self._enabled and self._confirmed and not enabled:
            self._enabled = False
        self._confirmed = self._enabled and (self._confirmed or enabled)

    def let_go(self) -> None:
        """The hand is lost: nothing is led, and nothing enabled."""
        buttons = Button.DISABLE if self._enabled else Button.NONE
        self._say(TeleopSample(time.monotonic_ns(), False, self._target, buttons))
        self._engaged = False

    def _say(self, sample: TeleopSample) -> None:
        buttons = sample.buttons
        if buttons & (Button.DISABLE | Button.ESTOP):
            self._enabled = False
        elif buttons & Button.ENABLE:
            self._enabled, self._repeated = True, sample.t
        elif self._confirmed and self._enabled and sample.t - self._repeated > REPEAT * SECOND:
            buttons, self._repeated = buttons | Button.ENABLE, sample.t
        self.teleop.put(np.array((sample.engaged, sample.target, int(buttons)), self.teleop.dtype), sample.t)

    def _newest(self, name: str, now: int) -> Any:
        """The newest record, None where it is stale; a ring whose writer has died is looked for anew."""
        ring = self._rings.get(name)
        record = ring.latest() if ring is not None else None
        if record is not None and now - record.t < STALE * SECOND:
            return record
        if ring is None or now - self._looked.get(name, 0) > STALE * SECOND:
            self._looked[name] = now
            try:
                self._rings[name] = self.session.attach(name)
            except DataError:
                self._rings.pop(name, None)
        return None


def _describe(error: Exception) -> str:
    if isinstance(error, DeftError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def _close(device: Teleop) -> None:
    try:
        device.close()
    except Exception:  # it is gone already; closing is all that is left to do
        traceback.print_exc()
