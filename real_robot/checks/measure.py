"""From what was sent and measured during a motion to numbers, and to what is wrong with them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import DataError
from real_robot.calibration.latency import estimate_delay
from real_robot.checks.lead import SETTLE, Trace
from real_robot.core.types import RobotSpec

STILL = 0.004  # rad or m: less is noise, or a servo's tick


@dataclass(frozen=True)
class Expect:
    """See configs/first_run.yaml."""

    rate: float = 0.8
    least: float = 0.5
    most: float = 1.5
    lag: float = 0.4
    stop: float = 1.0
    home: float = 0.05


def followed(trace: Trace, joint: int, by: float, spec: RobotSpec, expect: Expect) -> tuple[dict[str, Any], str]:
    """The numbers of a motion ``by`` and back, and what is wrong with it, if anything."""
    change = trace.at(1) - trace.at(0)
    share = float(change[joint] / by)
    others = np.abs(change).copy()
    others[joint] = 0.0
    most = int(others.argmax())
    lag = None
    with suppress(DataError):  # where it does not follow, the share says so
        lag = estimate_delay(trace.t_sent, trace.sent[:, joint], trace.t, trace.q[:, joint], high=SETTLE).seconds
    values = {
        "asked": by,
        "moved": round(float(change[joint]), 5),
        "share": round(share, 3),
        "lag_s": None if lag is None else round(lag, 4),
        "back": round(float((trace.at(2) - trace.at(0))[joint]), 5),
        "clipped": trace.clipped.name if trace.clipped else "",
    }
    if trace.clipped:
        return values, f"kept from it by {trace.clipped.name}: look at safety.workspace and safety.limits"
    if others[most] > max(0.5 * abs(by), 2 * STILL):
        return values, f"{spec.joints[most]} moved by {change[most]:+.3f} as well: are their ids exchanged?"
    if abs(share) < 0.15 and spec.units[joint] == "open":
        return values, "it does not move: power, something in its way? One that only opens and closes wants opening=1"
    if abs(share) < 0.15:
        return values, "it does not move: torque, power, something in its way, the right id?"
    if share < 0:
        return values, "it moves the wrong way: the driver writes with another sign than it reads"
    if not expect.least <= share <= expect.most:
        return values, "too little or too much: friction, load, stiffness, or its range in the calibration"
    if lag is not None and lag > expect.lag and spec.units[joint] != "open":  # grippers may take their time
        return values, f"too late ({expect.lag} s are expected at most): what smooths or delays the robot's motion?"
    return values, ""


def stopped(
    trace: Trace, heard: float | None, joint: int, pressed: float, expect: Expect
) -> tuple[dict[str, Any], str]:
    """From the key to standstill, by what was measured, and what is wrong with it, if anything.

    Args:
        heard: s, control's first tick that stopped. pressed: s, the key.
    """
    off = np.abs(trace.q - trace.q[-1]).max(1) > STILL
    still = float(trace.t[off].max()) if off.any() else pressed
    q_pressed = float(np.interp(pressed, trace.t, trace.q[:, joint]))
    values = {
        "heard_s": None if heard is None else round(heard - pressed, 4),
        "still_s": round(max(0.0, still - pressed), 4),
        "way": round(abs(float(trace.q[-1, joint]) - q_pressed), 5),
    }
    if still - pressed > expect.stop:
        return values, f"too late ({expect.stop} s are expected at most): look at its lag, and do not trust this stop"
    return values, ""
