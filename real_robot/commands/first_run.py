"""A new robot's first motions: ``python -m real_robot.first_run robot=so101 robot.port=... robot.calibration=...``.

Step by step, each after a yes at the keyboard, slowly, through the control process and its safety layer like all that
moves a robot: it answers and stands within its limits; it answers in time; each joint moves a little, the right way;
the emergency stop stops it; it goes home. Exit status 0 only where all of it passed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from configs.loader import help_text, load_config
from data.construct import construct
from data.errors import ConfigError
from launch.terminal import StopSignal, console
from real_robot.checks import steps
from real_robot.checks.lead import Lead
from real_robot.checks.measure import Expect
from real_robot.checks.person import Person
from real_robot.checks.steps import Outcome, attempt
from real_robot.core.supervisor import Supervisor
from real_robot.core.types import RobotSpec
from real_robot.parts import last_gasp_of, parts_of, spec_of

USAGE = """python -m real_robot.first_run robot=so101 robot.port=/dev/ttyACM0 robot.calibration=so101.json [key=value]
       python -m real_robot.first_run robot=mujoco yes=true"""


def slowed(config: Mapping[str, Any], spec: RobotSpec) -> dict[str, Any]:
    """``config`` of a session with control alone, at ``speed`` of the limits of ``spec``."""
    limits = dict(config["safety"].get("limits") or {})
    for key in ("velocity", "acceleration", "jerk"):
        limits[key] = (config["speed"] * getattr(spec, key)).tolist()
    alone = {"out": None, "cameras": {}, "sensors": {}}
    return {**config, **alone, "safety": {**config["safety"], "limits": limits}}


def check(lead: Lead, full: RobotSpec, config: Mapping[str, Any]) -> list[Outcome]:
    """All steps; those that are not safe to try after what was found are not."""
    expect = construct(Expect, config["expect"], "expect")
    done: list[Outcome] = []

    def go_on(outcome: Outcome) -> bool:
        done.append(outcome)
        word = {True: "ok", False: "FAILED", None: "not tried"}[outcome.passed]
        console.print(f"{outcome.name}: {word}. {outcome.text}", style=None if outcome.passed else "red")
        return bool(outcome.passed)

    if not go_on(attempt("connect", lambda: steps.connect(lead, full))):
        return done
    if not go_on(attempt("dry", lambda: steps.dry(lead, expect))):
        return done
    right = True
    for i, name in enumerate(full.joints):
        by = config["opening"] if full.units[i] == "open" else config["angle"]
        outcome = attempt(name, lambda i=i, by=by: steps.direction(lead, i, by, expect))
        right = go_on(outcome) and right
        if not outcome.passed and not outcome.values:  # not measured: it was stopped, or the session has ended
            break
    if not right:
        return done
    if go_on(attempt("emergency stop", lambda: steps.emergency_stop(lead, config["swing"], expect))):
        go_on(attempt("home", lambda: steps.go_home(lead, expect)))
    return done


def report(done: list[Outcome], full: RobotSpec) -> bool:
    """The table; returns whether all passed."""
    names = ["connect", "dry", *full.joints, "emergency stop", "home"]
    table = Table(title=f"first run of {full.name}", title_justify="left")
    for heading in ("step", "", "found"):
        table.add_column(heading)
    found = {o.name: o for o in done}
    for name in names:
        o = found.get(name, Outcome(name, None, "after what went before"))
        table.add_row(name, {True: "ok", False: "FAILED", None: "not tried"}[o.passed], o.text)
    console.print(table)
    return all(name in found and found[name].passed for name in names)


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(help_text("first_run", USAGE))
        return 0
    config = load_config("first_run", argv)
    if not 0 < config["speed"] <= 0.5:
        raise ConfigError(f"speed={config['speed']} must be a share of the robot's limits, in (0, 0.5].")
    for key, most in {"angle": 0.3, "opening": 1.0, "swing": 0.3}.items():
        if not 0 < config[key] <= most:
            raise ConfigError(f"{key}={config[key]}: a first motion is small, in (0, {most}].")
    if config["yes"] and not config.get("simulator") and config["robot"]["type"] != "mujoco":
        raise ConfigError("yes=true is for simulated robots: before a real one somebody has to look and answer.")
    full = spec_of(config)
    slow = slowed(config, full)
    supervisor = Supervisor(parts_of(slow, full), last_gasp=last_gasp_of(config["robot"]))
    with StopSignal(talk=False) as stop:
        lead = Lead(supervisor, spec_of(slow), Person(yes=config["yes"]), stop.check)
        with supervisor:
            done = check(lead, full, config)
    passed = report(done, full)
    summary = {"robot": full.name, "passed": passed, "speed": config["speed"],
               "steps": [{"name": o.name, "passed": o.passed, "found": o.text, **o.values} for o in done]}  # fmt: skip
    if config["out"]:
        path = Path(config["out"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))
    return 0 if passed else 1
