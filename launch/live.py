"""The robot that a policy's data are of, itself: ``task=live task.server=ws://robot:8200``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data.errors import ConfigError
from data.spec import TaskSpec
from envs.make import is_live


def on_robot(spec: TaskSpec, task: Mapping[str, Any]) -> TaskSpec:
    """``spec`` with the robot of ``task`` as its environment; as it is where ``task`` is none.

    Args:
        spec: of a policy, or of recorded data: its ``env_args`` say what a robot shows, and what an action is.
        task: options of ``configs/task``.

    Raises:
        ConfigError: no address, or data that were not recorded on a robot or on a simulated one (``task=robot``).
    """
    if not is_live(task):
        return spec
    if not task.get("server"):
        raise ConfigError("task=live: give the robot's address, as task.server=ws://robot:8200 (real_robot.live).")
    missing = [key for key in ("rule", "actions") if key not in spec.env_args]
    if missing:
        raise ConfigError(
            f"{spec.name} was not recorded on a robot: nothing says what a robot has to show ({missing})."
        )
    options = {key: value for key, value in task.items() if key != "actor"}  # that is training's
    told = {"obs": list(spec.obs), **{key: spec.env_args[key] for key in ("rule", "actions")}}
    joints = spec.env_args.get("action_names")
    return dataclasses.replace(spec, env_args={**options, **told, **({"joints": list(joints)} if joints else {})})
