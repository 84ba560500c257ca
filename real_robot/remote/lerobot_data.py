"""What LeRobot has recorded on an SO-101, as the contract of a policy that was trained on it, in our units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.errors import ConfigError, ContractError, DataError
from data.formats.lerobot_meta import INFO, read_outline
from data.opening import open_episodes
from data.source import Episodes
from data.spec import FieldSpec, TaskSpec
from launch.contract import Recorded
from real_robot.core.actions import ActionSpace
from real_robot.recorder.sampling import Rule
from real_robot.robots.lerobot_arm import units_of
from real_robot.robots.so101 import load, spec_of

STATE = "state"  # our name for observation.state


def recorded_by_lerobot(path: str | Path, *, calibration: str, units: str) -> Recorded:
    """What a data set of LeRobot's own says of the arm it was recorded on, in our units.

    Args:
        path: of the data set.
        calibration: file of the arm, taken over from LeRobot's.
        units: of the data set, see ``real_robot.robots.lerobot_arm``.

    Raises:
        ConfigError: see ``units_of``.
        ContractError: it was recorded on another robot.
        DataError: see ``open_episodes``; it is not LeRobot's, or its pictures have different sizes.
    """
    calibrated = load(calibration)
    spec, maps = spec_of(calibrated, 100.0, None), units_of(calibrated, units)
    episodes = open_episodes(path)
    task = episodes.task
    if episodes.format != "lerobot" or task is None or STATE not in task.obs:
        raise DataError(f"{path} is no data set that LeRobot has recorded: expected {INFO} with observation.state.")
    if "rule" in task.env_args:
        raise ConfigError(f"{path} was recorded with Deft, and is in its units: leave out lerobot.units.")
    wanted = tuple(calibrated.joints)
    for name in ("action", "observation.state"):
        if (names := joint_names(episodes, name)) != wanted:
            raise ContractError(f"{path}: {name} is of {list(names)}, expected {list(wanted)}.")
    sizes = {(field.shape[0], field.shape[1]) for field in task.obs.values() if field.kind == "rgb"}
    if len(sizes) > 1:
        raise DataError(f"{path}: its cameras have pictures of {sorted(sizes)}; one size is known here.")
    rule = Rule(hz=task.control_hz, space="absolute", size=sizes.pop() if sizes else None, state_key=STATE)
    space = ActionSpace.of(spec, "absolute", task.control_hz)
    obs = {**task.obs, STATE: FieldSpec(task.obs[STATE].shape, "float32", "state")}
    told: dict[str, Any] = {
        "suite": "real",
        "obs": list(obs),
        "rule": rule.to_dict(),
        "actions": space.to_dict(),
        "action_names": list(spec.joints),
        "action_units": list(spec.units),
    }
    ours = TaskSpec(
        name=task.name,
        obs=obs,
        action=FieldSpec(task.action.shape, "float32", "action"),
        action_low=space.low,
        action_high=space.high,
        control_hz=task.control_hz,
        env_args=told,
    )
    return Recorded(ours, {STATE: maps, "action": maps})


def joint_names(episodes: Episodes, feature: str) -> tuple[str, ...]:
    """Of one of LeRobot's features, ("shoulder_pan", ...); () where it does not say."""
    found = read_outline(Path(episodes.path)).features[feature].more.get("names")
    names = next(iter(found.values()), []) if isinstance(found, dict) else found or []
    return tuple(str(name).removesuffix(".pos").removeprefix("main_") for name in names)
