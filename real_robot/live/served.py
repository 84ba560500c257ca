"""What a learner elsewhere may ask of a robot: the answers of ``real_robot.remote.server`` that are not a policy's.

{"ask": "open", "learner", "obs": [key], "rule", "actions", "joints"}   -> {"observation": {key: field}}
{"ask": "reset", "learner", "seed", "length"}                           -> {"frame": {key: (*shape)}}
{"ask": "step", "learner", "actions": (Ta, n)}  -> {"frames": {key: (T, *shape)}, "reward": (T,), "success": (T,),
                                                    "terminated", "truncated", "cut"}, of the T steps that were done
any of them, while something has to be waited for, a second at a time   -> {"waiting": why}; ask again
open, where it cannot be                                                -> {"error": why}

A learner may hand over its acting half instead of asking for every step: real_robot.live.acting has those requests.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data.errors import ConfigError, ContractError, DataError
from data.spec import FieldSpec, TaskSpec
from real_robot.agent.observe import NotReady, Observer
from real_robot.core.actions import ActionSpace
from real_robot.core.types import SECOND
from real_robot.live.acting import ServedActor
from real_robot.live.actor import HELD
from real_robot.live.robot import Episode, LiveRobot
from real_robot.remote.keys import PROTOCOL


@dataclass
class Client:
    """A connection: what it wants to see and say, its episode, and what that waits for."""

    observer: Observer | None = None
    space: ActionSpace | None = None
    episode: Episode | None = None
    beginning: Iterator[str] | None = None


class ServedRobot:
    """Answers one learner at a time; it may have several connections, and the episode is that of the last reset.

    ``options`` are ``ServedActor``'s.
    """

    def __init__(self, robot: LiveRobot, options: Mapping[str, Any] | None = None):
        self.robot = robot
        self.metadata: Mapping[str, Any] = {
            "deft_protocol": PROTOCOL,
            "robot": robot.spec.name,
            "joints": list(robot.spec.joints),
            "simulated": robot.simulated,
        }
        self._learner, self._asked = "", -HELD
        self.acting = ServedActor(partial(self.obey, client=Client()), self.metadata, **(options or {}))

    def episode(self) -> Client:
        """Of a new connection."""
        return Client()

    def infer(self, request: Mapping[str, Any], episode: Client) -> dict[str, Any]:
        """See above. Raises DataError, ContractError: it is no such request."""
        try:
            what, learner = request["ask"], str(request["learner"])
            if learner != self._learner and what != "step":
                if time.monotonic() - self._asked < HELD:
                    return {"waiting": f"another learner ({self._learner}) has the robot"}
                self._learner = learner
            if learner == self._learner:
                self._asked = time.monotonic()
            if what in self.acting.asks:
                return self.acting.answer(request)
            if what == "reset" and not self.acting.free():
                time.sleep(0.1)
                return {"waiting": "the actor finishes its episode"}
            return self.obey(request, episode)
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"A learner's request is malformed ({type(e).__name__}: {e}).") from e
        finally:
            if self._learner == request.get("learner"):
                self._asked = time.monotonic()

    def close(self) -> None:
        """Ends an actor."""
        self.acting.close()

    def obey(self, request: Mapping[str, Any], client: Client) -> dict[str, Any]:
        """Carries out "open", "reset" or "step", whoever asks. Raises KeyError: it is another request."""
        return {"open": self._open, "reset": self._reset, "step": self._step}[request["ask"]](request, client)

    def _open(self, request: Mapping[str, Any], client: Client) -> dict[str, Any]:
        spec, joints = self.robot.spec, request.get("joints")
        if joints is not None and list(joints) != list(spec.joints):
            return {"error": f"the data are of a robot with joints {list(joints)}, {spec.name} has {list(spec.joints)}"}
        rule, now = dict(request["rule"]), self.robot.clock.now()
        try:
            space = ActionSpace.from_dict(request["actions"])
            if space.velocity.shape != (spec.n,):
                return {"error": f"actions are of {len(space.velocity)} joints, {spec.name} has {spec.n}"}
            unknown = {key: FieldSpec((), "float32", "state") for key in request["obs"]}
            action = FieldSpec((spec.n,), "float32", "action")
            task = TaskSpec(spec.name, unknown, action, space.low, space.high, space.hz,
                            {"rule": rule, "actions": request["actions"]})  # fmt: skip
            fields = Observer(self.robot.session, task, 1).fields(now)
        except NotReady as e:
            self._rest()
            return {"waiting": str(e)}
        except (ConfigError, ContractError, KeyError) as e:
            return {"error": f"rule and actions do not fit: {e}"}
        client.observer = Observer(self.robot.session, dataclasses.replace(task, obs=fields), 1)
        client.space, client.episode, client.beginning = space, None, None
        return {"observation": {key: {"shape": list(f.shape), "dtype": f.dtype, "kind": f.kind}
                                for key, f in fields.items()}}  # fmt: skip

    def _rest(self) -> None:
        self.robot.clock.sleep_until(self.robot.clock.now() + SECOND // 10)

    def _reset(self, request: Mapping[str, Any], client: Client) -> dict[str, Any]:
        if client.observer is None or client.space is None:
            raise ContractError("A learner has to open a robot before it resets it.")
        if client.beginning is None or not self.robot.leads(client.episode):
            client.episode = Episode(client.observer, client.space, int(request["seed"]), int(request["length"]))
            client.beginning = self.robot.begin(client.episode)
        end = self.robot.clock.now() + SECOND
        for why in client.beginning:
            if self.robot.clock.now() > end:
                return {"waiting": why}
        try:
            window = client.observer.window(self.robot.clock.now())
        except NotReady as e:
            self._rest()
            return {"waiting": str(e)}
        client.beginning = None
        return {"frame": {key: x[0] for key, x in window.items()}}

    def _step(self, request: Mapping[str, Any], client: Client) -> dict[str, Any]:
        if (
            client.episode is None or client.beginning is not None
        ):  # a new connection of somebody whose old one was lost
            return _answer([], [], [], truncated=True, cut="the connection was lost")
        actions, n = np.asarray(request["actions"], np.float64), self.robot.spec.n
        if actions.ndim != 2 or actions.shape[1] != n or not len(actions) or not np.isfinite(actions).all():
            raise ContractError(f"Actions of shape {actions.shape}; expected (Ta, {n}), all finite.")
        out = self.robot.act(client.episode, actions)
        return _answer(out.frames, out.reward, out.success, out.terminated, out.truncated, out.cut)


def _answer(
    frames: list, reward: list, success: list, terminated: bool = False, truncated: bool = False, cut: str = ""
) -> dict[str, Any]:
    columns = {key: np.concatenate([w[key] for w in frames]) for key in frames[0]} if frames else {}
    return {
        "frames": columns,
        "reward": np.array(reward, np.float64),
        "success": np.array(success, bool),
        "terminated": bool(terminated),
        "truncated": bool(truncated),
        "cut": cut,
    }
