"""A new robot, step by step: does it answer, in time, move as it should, stop, and go home."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launch.terminal import console
from real_robot.checks.expected import expected
from real_robot.checks.lead import SETTLE, CheckError, Lead
from real_robot.checks.measure import Expect, followed, stopped
from real_robot.checks.person import pause
from real_robot.control.machine import Machine
from real_robot.core.types import SECOND, Button, Joints, RobotMode, RobotSpec

BESIDE = (0.01, 0.03)  # rad, opening: what a joint may measure beyond its limits
WAIT_FOR_ROBOT = 60.0  # s
PRESS_WITHIN = 30.0  # s


@dataclass
class Outcome:
    """Of a step.

    Attributes:
        name: of it.
        passed: None where it was not tried.
        text: what was found; what to look at.
        values: the numbers, JSON-ready.
    """

    name: str
    passed: bool | None
    text: str
    values: dict[str, Any] = field(default_factory=dict)


def connect(lead: Lead, full: RobotSpec) -> Outcome:
    """Control has reached the robot, which stands within its limits and would follow.

    Args:
        full: the robot's spec under its usual limits.
    """
    end = time.monotonic() + WAIT_FOR_ROBOT
    while lead.state == Machine.INIT and (_mode(lead) in (None, RobotMode.READY) or time.monotonic() < end - 50):
        lead.look()
        if time.monotonic() > end:
            raise CheckError(lead.trouble or "the robot has not been heard of: power, cable, address?")
        time.sleep(0.02)
    pause(0.2, lead.look)
    record = lead.newest("state")
    assert record is not None
    q, mode = np.asarray(record.data["q"], np.float64), RobotMode(int(record.data["mode"]))
    console.print(f"{full.name}: {full.n} joints, control at {full.control_hz:g} Hz, mode {mode.name}; "
                  f"when its host dies it {full.on_host_death.replace('_', ' ')}")  # fmt: skip
    width = max(map(len, full.joints))
    for i, name in enumerate(full.joints):
        unit = full.units[i]
        console.print(
            f"  {name:<{width}}  is {q[i]:7.3f}  may be {full.lower[i]:7.3f} to {full.upper[i]:6.3f} {unit}, "
            f"up to {full.velocity[i]:.2f} {unit}/s, {full.acceleration[i]:.1f} {unit}/s^2"
        )
    beside = np.array([BESIDE[unit == "open"] for unit in full.units])
    outside = (q < full.lower - beside) | (q > full.upper + beside)
    values = {"q": q.round(4).tolist(), "mode": mode.name, "control_hz": full.control_hz, "joints": list(full.joints)}
    if outside.any():
        names = ", ".join(f"{full.joints[i]} at {q[i]:.3f}" for i in np.flatnonzero(outside))
        return Outcome("connect", False, f"outside its limits: {names}. Bring it back by hand, or calibrate.", values)
    if mode != RobotMode.READY or lead.state != Machine.READY:
        text = lead.trouble or f"its controller is in {mode.name}: look at its pendant, or what its servos complain of"
        return Outcome("connect", False, text, values)
    return Outcome("connect", True, f"{full.n} joints within their limits, {mode.name}", values)


def _mode(lead: Lead) -> RobotMode | None:
    record = lead.newest("state")
    return None if record is None else RobotMode(int(record.data["mode"]))


def dry(lead: Lead, expect: Expect, *, seconds: float = 2.0) -> Outcome:
    """It stands, not enabled: how often there is a new state, how late ticks begin, how still its clock stands."""
    begin = time.monotonic_ns()
    pause(seconds, lead.look)
    took = (time.monotonic_ns() - begin) / SECOND
    states, ticks = lead.since("state", begin), lead.since("command", begin)
    clock = np.array([float(r.data["t_robot"]) for r in states])
    new = np.array([r.t for r in states])[np.diff(clock, prepend=np.nan) != 0] / SECOND
    if len(new) < 2:
        return Outcome("dry", False, f"the robot's clock stands still: {len(new)} new states in {took:.1f} s")
    rate, gap = len(new) / took, float(np.diff(new).max())
    late = np.percentile([int(r.data["late"]) / 1e6 for r in ticks], [50, 99, 100]).round(3).tolist()
    values = {"rate_hz": round(rate, 2), "longest_gap_s": round(gap, 4)}
    values |= dict(zip(("late_ms_p50", "late_ms_p99", "late_ms_max"), late, strict=True))
    hz = lead.spec.control_hz
    found = f"{rate:.1f} of {hz:g} new states/s, longest gap {gap * 1e3:.0f} ms, late p99 {late[1]:.1f} ms"
    if lead.state != Machine.READY:
        return Outcome("dry", False, lead.trouble or f"control is in {lead.state.name}", values)
    if rate < expect.rate * hz:
        return Outcome("dry", False, f"{found}: lost packets (cables, read_timeout), or another program has the "
                       "processor (priority, other load)? Or lower robot.control_hz.", values)  # fmt: skip
    return Outcome("dry", True, found, values)


def direction(lead: Lead, joint: int, by: float, expect: Expect) -> Outcome:
    """A joint moves ``by`` and back: what was measured, and what the person saw."""
    spec = lead.spec
    name, unit, here = spec.joints[joint], spec.units[joint], np.clip(lead.sent, spec.lower, spec.upper)
    if here[joint] + by > spec.upper[joint]:
        by = -by
    there = here.copy()
    there[joint] = np.clip(here[joint] + by, spec.lower[joint], spec.upper[joint])
    what = expected(spec, here, joint, by)
    question = f"{name} by {by:+.3f} {unit} and back, slowly: {what}. May it? Any key stops it."
    if lead.person.ask(question, lead.look) != "y":
        return Outcome(name, None, "you did not let it move")
    while True:
        trace = lead.go([there, here])
        values, wrong = followed(trace, joint, by, spec, expect)
        found = f"{values['share']:.0%} of {by:+.3f} {unit}"
        if values["lag_s"] is not None:
            late = f"{values['lag_s'] * 1e3:.0f} ms" if values["lag_s"] < SETTLE - 0.01 else "half a second or more"
            found += f", {late} late"
        if wrong:
            return Outcome(name, False, f"{found}: {wrong}", values)
        seen = lead.person.ask(f"Did you see it: {what}? (a: again)", lead.look, "yna")
        if seen == "n":
            text = f"{found}, but not as expected: is its sign in the calibration right, and its id? Calibrate again."
            return Outcome(name, False, text, {**values, "seen": False})
        if seen == "y":
            return Outcome(name, True, found, {**values, "seen": True})


def emergency_stop(lead: Lead, swing: float, expect: Expect) -> Outcome:
    """A key is pressed while the joint with the most room swings: it stands still, and cannot be led until asked to."""
    spec, here = lead.spec, np.clip(lead.sent, lead.spec.lower, lead.spec.upper)
    arm = spec.n - spec.gripper
    room = np.minimum(here - spec.lower, spec.upper - here)[:arm]
    joint = int(room.argmax())
    by, unit = min(swing, 0.5 * float(room[joint])), spec.units[joint]
    question = f"{spec.joints[joint]} swings slowly by {by:.2f} {unit} to both sides. Press any key while it moves: "
    if lead.person.ask(f"{question}it must stop. Ready?", lead.look) != "y":
        return Outcome("emergency stop", None, "you did not let it move")
    begin = time.monotonic_ns()
    with lead.person.at_the_stop():
        try:
            pressed = _swing(lead, joint, here, by)
            lead.until(Machine.FAULT)
            far = here.copy()
            far[joint] += by
            end = time.monotonic() + 2 * expect.stop
            while time.monotonic() < end:  # a hand that goes on leading is not followed
                lead.say(far)
                lead.look()
                time.sleep(0.02)
        finally:
            lead.let_go()
    ticks = lead.since("command", pressed)
    heard = next((r.t / SECOND for r in ticks if int(r.data["state"]) == Machine.FAULT), None)
    values, wrong = stopped(lead.trace(begin, []), heard, joint, pressed / SECOND, expect)
    if lead.state != Machine.FAULT:
        wrong = "the stop did not hold"
    found = f"stood after {values['still_s']:.2f} s and {values['way']:.3f} {unit}"
    if not wrong and lead.person.ask("Did it stop at once, and stand still?", lead.look) != "y":
        wrong = "you say that it did not stop"
    if wrong:
        return Outcome("emergency stop", False, f"{found}: {wrong}", values)
    lead.press(Button.RECOVER)
    lead.until(Machine.READY)
    return Outcome("emergency stop", True, f"{found}, until asked to recover", values)


def _swing(lead: Lead, joint: int, here: Joints, by: float) -> int:
    """Until a key is pressed; returns when, ns."""
    lead.enable()
    side, end = 1, time.monotonic() + PRESS_WITHIN
    place = here.copy()
    while time.monotonic() < end:
        place[joint] = here[joint] + side * by
        lead.say(place)
        lead.look()
        if lead.state == Machine.FAULT:
            raise CheckError(lead.trouble or "control is in FAULT")
        speed = _speed(lead, joint)
        if lead.person.pressed() or (lead.person.yes and speed > 0.5 * lead.spec.velocity[joint]):
            return lead.press(Button.ESTOP)
        if abs(lead.sent[joint] - place[joint]) < 0.1 * by:
            side = -side
        time.sleep(0.02)
    raise CheckError(f"no key was pressed within {PRESS_WITHIN:g} s")


def _speed(lead: Lead, joint: int) -> float:
    """Of what is sent, per s."""
    ring = lead.session.attach("command")
    records, _ = ring.since(max(0, ring.newest - 2))
    if len(records) < 2:
        return 0.0
    dq = records[-1].data["sent"][joint] - records[-2].data["sent"][joint]
    return abs(float(dq)) * SECOND / max(1, records[-1].t - records[-2].t)


def go_home(lead: Lead, expect: Expect) -> Outcome:
    """All joints to the spec's home, slowly."""
    spec = lead.spec
    if spec.home is None:
        return Outcome("home", True, "it has none")
    here = lead.sent
    seconds = float((np.abs(spec.home - here) / spec.velocity).max())
    ways = ", ".join(f"{n} {d:+.2f}" for n, d in zip(spec.joints, spec.home - here, strict=True) if abs(d) > 0.02)
    question = f"Home, in about {seconds:.0f} s: {ways or 'it is there'}. Is the way free? Any key stops it."
    if lead.person.ask(question, lead.look) != "y":
        return Outcome("home", None, "you did not let it move")
    trace = lead.go([spec.home])
    off = np.abs(trace.at(1) - spec.home)
    if spec.gripper:
        off[-1] *= 0.25  # an opening is not rad, and something may be held
    worst = int(off.argmax())
    values = {"off": off.round(4).tolist()}
    if off[worst] <= expect.home:
        return Outcome("home", True, f"within {off[worst]:.3f}", values)
    why = f"kept from it by {trace.clipped.name}" if trace.clipped else "load, friction, or something in its way?"
    return Outcome("home", False, f"{spec.joints[worst]} is {off[worst]:.3f} away from it: {why}", values)


def attempt(name: str, step: Callable[[], Outcome]) -> Outcome:
    """What cannot go on has failed."""
    try:
        return step()
    except CheckError as error:
        return Outcome(name, False, str(error))
