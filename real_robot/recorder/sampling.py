"""One episode at a fixed rate, by this rule:

    t_k = t_0 + k / hz       decision times; t_0 is START, or when the last of the streams begins
    pictures                 the newest captured at or before t_k, as a robot that decides at t_k has it
    sensors                  the newest reading at or before t_k
    proprioception           q at t_k, interpolated between the two states around it
    action_k                 what was sent at t_k + 1 / hz, less what was sent at t_k (space: delta), or by itself

An action is taken one period later than its observation because it says where to be when the next decision is due. What
was sent at t_k itself is known when deciding: a policy that learns it learns to stay where it is. Deployed, the first
action after an observation is due one period after it, therefore.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data.errors import ConfigError, DataError, nearest
from data.spec import FieldSpec, Kind, TaskSpec
from real_robot.core.actions import SPACES, ActionSpace
from real_robot.core.streams import SOURCES
from real_robot.core.types import SECOND
from real_robot.recorder.episode import Episode
from real_robot.recorder.pictures import fit
from real_robot.recorder.resample import decision_times, interpolate, newest, too_old

ACTIONS = ("sent", "target", "teleop", "measured")
LED = [SOURCES.index("policy"), SOURCES.index("human")]  # sources of steps in which somebody led


@dataclass(frozen=True)
class Rule:
    """How episodes become data.

    Attributes:
        hz: decisions per second.
        action: sent: after the safety layer; target: asked for, before it; teleop: the hand's wish; measured: where
            the robot was.
        space: delta or absolute, see ``real_robot.core.actions``.
        max_image_age: s; an episode with an older newest picture anywhere is refused.
        max_gap: s, of states, commands and teleoperation.
        cameras, sensors: names without "camera." and "sensor."; None: all.
        depth: depth pictures too, as they are (m).
        crop, size: of pictures, see ``real_robot.recorder.pictures.fit``.
        state_key: name of the proprioception.
        velocity: proprioception is (q, dq), not q alone.
        trim: leave out the steps before anybody leads and after.
    """

    hz: float = 10.0
    action: str = "sent"
    space: str = "delta"
    max_image_age: float = 0.1
    max_gap: float = 0.1
    cameras: tuple[str, ...] | None = None
    sensors: tuple[str, ...] | None = None
    depth: bool = False
    crop: str | tuple[int, int, int, int] = "none"
    size: tuple[int, int] | None = None
    state_key: str = "agent_pos"
    velocity: bool = False
    trim: bool = True

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ConfigError(f"action={self.action} is not known. {nearest(self.action, list(ACTIONS))}")
        if self.space not in SPACES:
            raise ConfigError(f"space={self.space} is not known: {' or '.join(SPACES)}.")
        if self.space == "delta" and self.action in ("target", "teleop"):
            raise ConfigError(f"action={self.action} may jump further than a joint goes in a step: add space=absolute.")
        if isinstance(self.crop, str) and self.crop not in ("none", "square"):
            raise ConfigError(f"crop={self.crop}: none, square, or (top, left, height, width).")
        if self.size is not None and (not isinstance(self.size, tuple) or len(self.size) != 2):
            raise ConfigError(f"size={self.size} is not of the form [height, width], as size=[96, 96].")
        for name in ("hz", "max_image_age", "max_gap"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive.")
            object.__setattr__(self, name, float(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class Moment(NamedTuple):
    """What a hook sees: the pictures as they were captured, before crop and size.

    rgb, depth: by camera (depth for those that have it); q: (n,); info: what the recorder was given, with intrinsics.
    """

    rgb: Mapping[str, NDArray[np.uint8]]
    depth: Mapping[str, NDArray[np.float32]]
    q: NDArray[np.float64]
    info: Mapping[str, Any]


class Hook(Protocol):
    """Makes further observations, such as a point cloud."""

    fields: dict[str, FieldSpec]

    def __call__(self, moment: Moment) -> dict[str, NDArray[Any]]:
        """One array per field."""
        ...


def streams_of(episode: Episode, rule: Rule, kind: str) -> list[str]:
    """Names of the "camera" or "sensor" streams, without that. Raises DataError where one of the rule's is missing."""
    have = [name.removeprefix(f"{kind}.") for name in episode.names if name.startswith(f"{kind}.")]
    wanted = rule.cameras if kind == "camera" else rule.sensors
    for name in wanted or ():
        if name not in have:
            raise DataError(f"{episode.folder} has no {kind} '{name}'. {nearest(name, have)}")
    return have if wanted is None else list(wanted)


def task_of(episode: Episode, rule: Rule, hook: Hook | None = None) -> TaskSpec:
    """The contract of the data that ``sample`` makes of episodes like this one."""
    info = episode.meta["info"]
    robot = info.get("robot")
    if not robot or "lower" not in robot or "upper" not in robot or "name" not in robot:
        raise DataError(
            f"{episode.folder}/meta.json does not describe the robot: the recorder needs "
            'info={"robot": {"name", "joints", "lower", "upper", "control_hz"}}.'
        )
    n = len(robot["lower"])
    obs: dict[str, FieldSpec] = {}
    for camera in streams_of(episode, rule, "camera"):
        kinds: list[tuple[Kind, str]] = [("rgb", "uint8"), ("depth", "float32")]
        for kind, dtype in kinds if _has_depth(episode, camera, rule) else kinds[:1]:
            picture = fit(episode.pictures(f"camera.{camera}", kind)[0], rule.crop, rule.size)
            obs[f"{kind}_{camera}"] = FieldSpec(picture.shape, dtype, kind)
    obs |= hook.fields if hook else {}
    for sensor in streams_of(episode, rule, "sensor"):
        size = episode.table(f"sensor.{sensor}")[1]["value"].shape[1]
        obs[sensor] = FieldSpec((size,), "float32", "state")
    obs[rule.state_key] = FieldSpec((2 * n if rule.velocity else n,), "float32", "state")
    space = action_space(robot, rule)
    return TaskSpec(
        name=str(info.get("task") or f"real/{robot['name']}"),
        obs=obs,
        action=FieldSpec((n,), "float32", "action"),
        action_low=space.low,
        action_high=space.high,
        control_hz=rule.hz,
        env_args={
            "suite": "real",
            "robot": dict(robot),
            "obs": list(obs),
            "rule": rule.to_dict(),
            "actions": space.to_dict(),
            "action_names": list(robot["joints"]),
            "action_units": list(robot.get("units", ())) if rule.space == "absolute" else ["share of a step"] * n,
        },
    )


def action_space(robot: Mapping[str, Any], rule: Rule) -> ActionSpace:
    """Of the robot that a recording describes. Raises DataError where it does not say how fast its joints are."""
    velocity = robot.get("velocity")
    if velocity is None:
        if rule.space == "delta":
            raise DataError(
                "The recording does not say how fast its robot's joints may go: export with space=absolute."
            )
        velocity = [0.0] * len(robot["joints"])
    fastest, lower, upper = (np.asarray(x, np.float64) for x in (velocity, robot["lower"], robot["upper"]))
    return ActionSpace(rule.space, rule.hz, fastest, lower, upper, bool(robot.get("gripper", False)))


def _has_depth(episode: Episode, camera: str, rule: Rule) -> bool:
    return rule.depth and "depth" in _picture_fields(episode, camera)


def _picture_fields(episode: Episode, camera: str) -> list[str]:
    streams = episode.log.streams.values()
    return list(next(s for s in streams if s.name == f"camera.{camera}").layout.pictures)


def sample(episode: Episode, rule: Rule, hook: Hook | None = None) -> dict[str, NDArray[Any]]:
    """(T, *shape) of every observation and "action", and per step: "source" (uint8, index in SOURCES), "proposal" (the
    policy's own wish; the action where it had none), "proposed" (whether it had one), "reward" and "success" (1 at the
    last step of an episode that is labelled a success).

    Raises:
        DataError: a gap in a stream that is longer than the rule allows, saying which and where.
    """
    cameras, sensors = (streams_of(episode, rule, kind) for kind in ("camera", "sensor"))
    tables = {name: episode.table(name) for name in ("state", "command")}
    if rule.action == "teleop":
        tables["teleop"] = episode.table("teleop")
    tables |= {f"sensor.{name}": episode.table(f"sensor.{name}") for name in sensors}
    pictures = {c: episode.pictures(f"camera.{c}") for c in cameras}
    times = {**{k: t for k, (t, _) in tables.items()}, **{f"camera.{c}": p.t for c, p in pictures.items()}}
    at = _times(episode, rule, times)
    due = at + round(SECOND / rule.hz)
    t_command, command = tables["command"]
    led = np.isin(command["source"][newest(t_command, due)], LED)
    if rule.trim:
        first, last = (int(np.argmax(led)), len(led) - int(np.argmax(led[::-1]))) if led.any() else (0, 0)
        at, due = at[first:last], due[first:last]
        if not len(at):
            raise DataError(
                f"{episode.folder}: nobody led, neither a policy nor a person; trim=false takes it as it is."
            )
    _check_gaps(episode, rule, times, at, due)
    rows = command[newest(t_command, due)]
    space = action_space(episode.meta["info"]["robot"], rule)
    before = _actions(rule, tables, command[newest(t_command, at)], at)
    action = space.encode(_actions(rule, tables, rows, due), before)
    proposed = np.asarray(np.isfinite(rows["proposal"]).all(axis=1))
    proposal = np.where(proposed[:, None], space.encode(rows["proposal"], before), action)
    success = np.zeros(len(at), np.bool_)
    success[-1] = episode.meta["label"] == "success"
    t_state, state = tables["state"]
    q = interpolate(t_state, state["q"], at)
    proprioception = np.concatenate([q, interpolate(t_state, state["dq"], at)], 1) if rule.velocity else q
    seen = {name: tables[f"sensor.{name}"] for name in sensors}
    return {
        **{name: rows["value"][newest(t, at)].astype(np.float32) for name, (t, rows) in seen.items()},
        **_look(episode, rule, cameras, at, q, hook),
        rule.state_key: proprioception.astype(np.float32),
        "action": action.astype(np.float32),
        "source": rows["source"].astype(np.uint8),
        "proposal": proposal.astype(np.float32),
        "proposed": proposed,
        "reward": success.astype(np.float32),
        "success": success,
    }


def _times(episode: Episode, rule: Rule, times: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    meta = episode.meta
    start = max(meta["start"], *(int(t[0]) for t in times.values()))
    end = min(meta["end"], *(int(t[-1]) for t in times.values())) if meta["truncated"] else meta["end"]
    at = decision_times(start, end, rule.hz)
    if not len(at):
        raise DataError(f"{episode.folder} is shorter than one step of {1 / rule.hz:g} s.")
    return at


def _check_gaps(
    episode: Episode,
    rule: Rule,
    times: Mapping[str, NDArray[np.int64]],
    at: NDArray[np.int64],
    due: NDArray[np.int64],
) -> None:
    for name, t in times.items():
        allowed = rule.max_image_age if name.startswith("camera.") else rule.max_gap
        asked = due if name in ("command", "teleop") or (name == "state" and rule.action == "measured") else at
        bad = too_old(t, asked, allowed)
        if bad.any():
            since = (int(asked[bad.argmax()]) - episode.meta["start"]) / SECOND
            option = "max_image_age" if name.startswith("camera.") else "max_gap"
            raise DataError(
                f"{episode.folder}: nothing new from '{name}' for more than {allowed:g} s, {since:.2f} s after START "
                f"({int(bad.sum())} of {len(at)} steps); {option}=... allows more."
            )


def _actions(rule: Rule, tables: Mapping[str, Any], rows: NDArray[Any], due: NDArray[np.int64]) -> NDArray[np.float64]:
    if rule.action == "measured":
        t, state = tables["state"]
        return interpolate(t, state["q"], due)
    if rule.action == "teleop":
        t, teleop = tables["teleop"]
        return teleop["target"][newest(t, due)]
    return rows[rule.action]


def _look(
    episode: Episode, rule: Rule, cameras: list[str], at: NDArray[np.int64], q: NDArray[np.float64], hook: Hook | None
) -> dict[str, NDArray[Any]]:
    """Pictures, and what the hook makes of them."""
    streams = {
        (kind, camera): episode.pictures(f"camera.{camera}", kind)
        for camera in cameras
        for kind in _picture_fields(episode, camera)
        if kind == "rgb" or rule.depth or hook is not None
    }
    index = {key: newest(p.t, at) for key, p in streams.items()}
    out: dict[str, list[NDArray[Any]]] = {}
    for k in range(len(at)):
        seen = {key: p[int(index[key][k])] for key, p in streams.items()}
        for (kind, camera), picture in seen.items():
            if kind == "rgb" or rule.depth:
                out.setdefault(f"{kind}_{camera}", []).append(fit(picture, rule.crop, rule.size))
        if hook is not None:
            rgb, depth = ({c: p for (kind, c), p in seen.items() if kind == wanted} for wanted in ("rgb", "depth"))
            for name, value in hook(Moment(rgb, depth, q[k], episode.meta["info"])).items():
                out.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in out.items()}
