"""When a robot may move: five states, and who moves it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from real_robot.core.streams import HOLD, HUMAN, POLICY, STOP
from real_robot.core.types import Button


class Machine(IntEnum):
    """States; the number is what the ``command`` stream records."""

    INIT = 0  # the robot has not been heard of
    READY = 1  # stands; waits to be enabled
    RUN = 2  # a person or the policy leads
    PAUSE = 3  # enabled, but there is nothing fit to follow: stands until there is
    FAULT = 4  # latched: stands until a person has asked to recover


@dataclass(frozen=True)
class Facts:
    """What is so in this tick.

    Attributes:
        heard: the robot has answered, with a clock that moves.
        fault: why it must not move, or None.
        human: a person's hand leads: the clutch is closed and the sample young.
        policy: there is a chunk to follow.
        buttons: pressed since the last tick.
        held: ENABLE is held down, where it has to be; else true.
    """

    heard: bool
    fault: str | None
    human: bool
    policy: bool
    buttons: Button = Button.NONE
    held: bool = True


class StateMachine:
    """INIT -> READY -> RUN <-> PAUSE; anything -> FAULT -> READY only when asked, and only when the cause is gone.

    Attributes:
        state: the present one.
        reason: of the FAULT.
        change: (from, to, reason) of the last tick, None where there was none.
    """

    def __init__(self) -> None:
        self.state, self.reason = Machine.INIT, ""
        self.change: tuple[Machine, Machine, str] | None = None

    def _go(self, state: Machine, reason: str = "") -> None:
        if state != self.state:
            self.change = (self.state, state, reason)
        self.state, self.reason = state, reason

    def update(self, facts: Facts) -> int:
        """One tick; returns who leads: HOLD, POLICY, HUMAN, or STOP (brake as fast as limits allow)."""
        self.change = None
        fault = "emergency stop" if Button.ESTOP in facts.buttons else facts.fault
        if fault is not None and (self.state != Machine.INIT or Button.ESTOP in facts.buttons):
            if self.state != Machine.FAULT:
                self._go(Machine.FAULT, fault)
            return STOP
        if self.state == Machine.FAULT:
            if Button.RECOVER in facts.buttons and facts.heard:
                self._go(Machine.READY, "recovered")
            return STOP
        if self.state == Machine.INIT:
            if facts.heard:
                self._go(Machine.READY)
            return HOLD
        if Button.DISABLE in facts.buttons or not facts.held:
            self._go(Machine.READY, "disabled")
            return HOLD
        if self.state == Machine.READY and Button.ENABLE in facts.buttons:
            self._go(Machine.PAUSE, "enabled")
        if self.state == Machine.READY:
            return HOLD
        if facts.human or facts.policy:
            self._go(Machine.RUN)
            return HUMAN if facts.human else POLICY
        self._go(Machine.PAUSE)
        return HOLD
