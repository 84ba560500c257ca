"""From a configuration to the processes of a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from data.construct import option_names
from data.errors import ConfigError
from real_robot.control.follower import Clip
from real_robot.control.machine import Machine
from real_robot.core.supervisor import Part
from real_robot.core.types import RobotSpec
from real_robot.robots.build import build_robot

SIMULATORS = {"feetech": "real_robot.simulators.feetech", "ur": "real_robot.simulators.ur"}


def spec_of(config: Mapping[str, Any]) -> RobotSpec:
    """Of the configured robot, under its configured limits; does not connect."""
    return build_robot(config["robot"]).spec.with_limits(config["safety"].get("limits") or {})


def plain(spec: RobotSpec) -> dict[str, Any]:
    """JSON-ready, for a recording."""
    values = asdict(spec)
    lists = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return {
        **lists,
        "joints": list(spec.joints),
        "units": list(spec.units),
        "model": None if spec.model is None else str(spec.model),
    }


def parts_of(config: Mapping[str, Any], spec: RobotSpec) -> list[Part]:
    """Simulator, recorder, cameras, sensors, control, teleoperation and policy, as far as they are configured."""
    from real_robot.cameras import process as camera
    from real_robot.control import process as control
    from real_robot.recorder import process as recorder
    from real_robot.sensors import tracker

    parts: list[Part] = []
    if config.get("simulator"):
        parts.append(_simulator(config["simulator"]))
    if config.get("out"):
        info = {
            "robot": plain(spec),
            "task": config.get("task"),
            "cameras": config.get("cameras") or {},
            "safety": config["safety"],
        }
        parts.append(Part("recorder", recorder.run, {"out": config["out"], "info": info, **(config["recorder"] or {})}))
    for name, options in (config.get("cameras") or {}).items():
        parts.append(Part(f"camera {name}", camera.run, {"camera": {"name": name, **options}}))
    for name, options in (config.get("sensors") or {}).items():
        parts.append(Part(f"sensor {name}", tracker.run, {"name": name, **options}))
    mode = config.get("mode") or "replace"
    parts.append(
        Part(
            "control",
            control.run,
            {
                "robot": config["robot"],
                "safety": config["safety"],
                "mode": "ensemble" if mode == "ensemble" else "replace",
                "priority": config["priority"],
                "dry_run": bool(config.get("dry_run")),
            },
            essential=True,
        )
    )
    if config.get("teleop") and config["teleop"].get("device"):
        parts.append(_teleop(config, spec))
    if config.get("checkpoint") or config.get("server"):
        from real_robot.agent import process as agent

        policy = policy_of(config)
        options = {k: config[k] for k in ("mode", "every", "inject")}
        parts.append(Part("policy", agent.run, {"policy": policy, **options}, needs="chunk"))
    return parts


def _teleop(config: Mapping[str, Any], spec: RobotSpec) -> Part:
    from real_robot.teleop import process as teleop
    from real_robot.teleop.build import build_leader, build_teleop, split_leader

    device, arm = dict(config["teleop"]), None
    if device["device"] == "hand":
        device = {**config["hand"], **device}
    if device["device"] == "leader":
        device, leader = split_leader(device)
        port, taken = leader.get("port"), config["robot"].get("port")
        if port and taken and Path(port).resolve() == Path(taken).resolve():
            raise ConfigError(f"teleop.port={port} is the robot's own: the leader has an adapter of its own.")
        build_teleop(device, spec, arm=build_leader(leader))  # says now what does not fit
        arm = partial(build_leader, leader)
    names = {"machine": tuple(m.name for m in Machine), "clips": tuple(c.name or "" for c in Clip if c)}
    return Part("teleop", teleop.run, {"spec": spec, "teleop": device, "arm": arm, **names})


def policy_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``build_client`` of the policy process wants to know."""
    source = {key: config[key] for key in ("checkpoint", "server", "features", "black_box", "data")}
    lerobot = dict(config["lerobot"])
    lerobot["calibration"] = lerobot["calibration"] or config["robot"].get("calibration")
    return {**source, "lerobot": lerobot, **config["policy"]}


def last_gasp_of(robot: Mapping[str, Any]) -> Callable[[], None] | None:
    """What stops a robot whose control process is dead, where it would go on by itself; None where it stops."""
    module = {"so101": "real_robot.robots.so101", "dynamixel": "real_robot.robots.dynamixel"}.get(robot["type"])
    if module is None:
        return None
    from real_robot.robots.servo_calibration import Calibration

    function = import_module(module).last_gasp
    known = {k: robot[k] for k in option_names(function) if robot.get(k) is not None}
    return partial(function, **{**known, "ids": Calibration.load(robot["calibration"]).ids})


def simulate(folder: str, *, type: str, options: Mapping[str, Any]) -> None:
    """A simulated controller as a process of the session."""
    import_module(SIMULATORS[type]).run(session=folder, **options)


def _simulator(options: Mapping[str, Any]) -> Part:
    rest = dict(options)
    kind = rest.pop("type", None)
    if kind not in SIMULATORS:
        raise ConfigError(f"simulator.type={kind} is not known: {', '.join(SIMULATORS)}.")
    return Part("simulator", simulate, {"type": kind, "options": rest}, essential=True, ready="world")
