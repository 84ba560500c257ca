"""The environment, or the robot, of a policy that came without one: other projects' checkpoints tell shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.loader import groups
from data.errors import ConfigError, ContractError
from data.opening import open_episodes
from data.spec import TaskSpec
from envs.make import make_env
from policies.checkpoint import check_contract
from policies.chunk_policy import ChunkPolicy
from policies.policy import Policy


@dataclass(frozen=True)
class Recorded:
    """What a robot shows and takes, where a data set does not say so itself.

    Attributes:
        task: in our units.
        units: {key: (scale, offset)}, (D,) each: ours = scale * the data set's + offset.
    """

    task: TaskSpec
    units: Mapping[str, tuple[np.ndarray, np.ndarray]]


NAMES = "What it observes is given other names by features={FEATURE: KEY, ...} (docs/checkpoints.md)."


def no_environment(spec: TaskSpec) -> ConfigError:
    """For a policy that does not say which environment it is for, where none was chosen either."""
    shapes = ", ".join(f"{key} {field.shape}" for key, field in spec.obs.items())
    return ConfigError(
        f"{spec.name} does not say which environment it is for. Choose one: task={'|'.join(groups()['task'])} (and its "
        f"options). It has to show {shapes} and take actions {spec.action.shape}. {NAMES}"
    )


def take_environment(policy: Policy, options: Mapping[str, Any]) -> None:
    """Where ``policy`` knows no environment: that of ``options`` becomes its own, with its action range and rate.

    Args:
        policy: changed in place; actions are clipped to the environment's range from now on.
        options: of ``configs/task``.

    Raises:
        ConfigError: none was chosen, or it does not show what the policy observes.
        ContractError: the shapes differ.
    """
    if "suite" in policy.spec.env_args:
        return
    if options.get("suite") is None:
        raise no_environment(policy.spec)
    env_args = {**options, "obs": list(policy.spec.obs)}
    try:
        with closing(make_env(env_args)) as env:
            task = env.spec
    except ConfigError as e:
        raise ConfigError(f"{e} {NAMES}") from e
    _take(policy, task, f"Task {task.name}")


def take_recorded(policy: Policy, path: str | Path, told: Recorded | None = None) -> None:
    """Where ``policy`` knows no robot: the one that episodes were recorded on becomes its own, and how it is led.

    Args:
        policy: changed in place, see ``take_environment``.
        path: data set that ``python -m real_robot.episodes export`` wrote, in any format it has been converted to.
        told: of a data set that does not say it.

    Raises:
        ConfigError: the policy knows one, or the data set says nothing of a robot.
        ContractError: the data set does not hold what the policy observes; its shapes or actions differ.
        DataError: see ``open_episodes``.
    """
    if policy.spec.env_args:
        raise ConfigError(f"The checkpoint, of {policy.spec.name}, says itself what it is for: leave out data=.")
    task = told.task if told is not None else open_episodes(path).task
    if task is None or "rule" not in task.env_args:
        raise ConfigError(
            f"{path} does not say how its episodes were recorded: data= is a data set that "
            "`python -m real_robot.episodes export` wrote, or LeRobot's own with lerobot.units=."
        )
    try:
        _take(policy, task, str(path))
    except ContractError as e:
        raise ContractError(f"{e} {NAMES}") from e
    for key, (scale, offset) in (told.units if told is not None else {}).items():
        if not isinstance(policy, ChunkPolicy):
            raise ConfigError(f"{type(policy).__name__} keeps its units to itself: they cannot be changed.")
        if key in policy.spec.obs or key == "action":
            policy.normaliser.change_units(key, scale, offset)


def _take(policy: Policy, task: TaskSpec, where: str) -> None:
    bounds = {"action_low": task.action_low, "action_high": task.action_high}
    told, policy.spec = policy.spec, dataclasses.replace(policy.spec, **bounds)
    check_contract(policy, task, where)
    policy.spec = dataclasses.replace(task, obs=told.obs, action=told.action)
