"""A robot on another machine as an environment (suite "real"): ``train.py task=live task.server=ws://robot:8200``.

One step is one action, in the units and at the rate of the recorded data, in real time: a whole chunk is sent at once
(``RealTimeEnv``), and between two chunks the robot stands. The other end is ``python -m real_robot.live``.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import ConfigError, ContractError
from data.spec import FieldSpec, TaskSpec
from envs.base import Frame, StepResult, check_action
from launch.terminal import console
from real_robot.core.actions import ActionSpace
from real_robot.core.types import DeviceError
from real_robot.recorder.pictures import fit
from real_robot.remote.client import API_KEY, Remote

LEARNER = "DEFT_LEARNER"  # all processes of a learner share this name; the first one gives it
LONG = 5.0  # s that a robot waits before the learner says so


def learner_name() -> str:
    """By which a robot knows all processes of this learner."""
    return os.environ.setdefault(LEARNER, f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:6]}")


class Waits:
    """Says once, at the learner's terminal, what a robot waits for, if that takes long.

    Args:
        address: of the robot.
    """

    def __init__(self, address: str):
        self._address, self._why, self._since, self._said = address, "", 0.0, False

    def for_(self, why: str) -> None:
        """It still waits for ``why``; "": for nothing."""
        now = time.monotonic()
        if why != self._why:
            self._why, self._since, self._said = why, now, False
        if why and not self._said and now - self._since >= LONG:
            self._said = True
            console.print(f"the robot {self._address} waits: {why}")


class RemoteRobot(Remote):
    """A robot that another process serves."""

    role, command = "robot", "python -m real_robot.live"


class LiveEnv:
    """A robot, one learner's at a time.

    Args:
        server: its address, "ws://robot:8200"; what it wants to know is $DEFT_API_KEY.
        obs: keys, as in the recorded data.
        rule, actions: how those were made (``Rule``, ``ActionSpace``): what is shown, and what an action is.
        joints: names, where the data tell.
        name: of the task.
        episode_length: steps.
        timeout_s: for an answer, besides the time that a chunk takes.
        patience_s: that a robot may be out of reach, or another learner's, when an episode is to begin. People may take
            as long as they like.
        remote: what is asked instead of a server: the robot of this process (real_robot.live.actor).

    Attributes:
        waiting: what the robot waits for before the episode can begin; "" if for nothing.

    Raises:
        ConfigError: no robot there, or not ours.
        ContractError: the data are of another robot.
    """

    def __init__(
        self,
        *,
        server: str,
        obs: Sequence[str],
        rule: Mapping[str, Any],
        actions: Mapping[str, Any],
        joints: Sequence[str] | None = None,
        name: str = "live",
        episode_length: int = 200,
        timeout_s: float = 10.0,
        patience_s: float = 60.0,
        remote: Any = None,
    ):
        self._learner, self.waiting = learner_name(), ""
        self._waits = Waits(server) if remote is None else None  # at the robot its own terminal says so
        self._length, self._patience = episode_length, patience_s
        space = ActionSpace.from_dict(actions)
        self._opening = {"ask": "open", "obs": list(obs), "rule": dict(rule), "actions": dict(actions)}
        self._opening |= {"joints": None if joints is None else list(joints)}
        self._remote = remote or RemoteRobot(server, api_key=os.environ.get(API_KEY), timeout_s=timeout_s + 2.0)
        try:
            if "joints" not in self._remote.metadata:
                raise ConfigError(f"{server} serves no robot; `python -m real_robot.live` does.")
            fields = {key: FieldSpec.from_dict(f) for key, f in self._open()["observation"].items()}
        except BaseException:
            self._remote.close()
            raise
        told = {"joints": None if joints is None else list(joints), "name": name, "episode_length": episode_length}
        self.spec = TaskSpec(
            name=f"live/{self._remote.metadata['robot']}",
            obs=fields,
            action=FieldSpec((len(space.velocity),), "float32", "action"),
            action_low=space.low,
            action_high=space.high,
            control_hz=space.hz,
            env_args={
                "suite": "real", "server": server, "obs": list(obs), "rule": dict(rule), "actions": dict(actions),
                "timeout_s": timeout_s, "patience_s": patience_s, **told,
            },
        )  # fmt: skip
        self._opened = True  # on the present connection
        self._frame: Frame = {}
        self._done: deque[tuple[StepResult, Frame]] = deque()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._remote.ask({**request, "learner": self._learner})

    def _open(self) -> dict[str, Any]:
        end = time.monotonic() + self._patience
        while True:
            answer = self._ask(self._opening)
            if "error" in answer:
                raise ContractError(f"The robot {self._remote.address}: {answer['error']}.")
            if "waiting" not in answer:
                return answer
            if time.monotonic() > end:
                raise ConfigError(f"The robot {self._remote.address} is not to be had: {answer['waiting']}.")
            time.sleep(0.2)

    def reset(self, seed: int) -> Frame:
        """The robot at home, the scene as people have arranged it; a simulated one as the seed has it.

        Raises:
            DeviceError: it was out of reach for longer than ``patience_s``.
        """
        self._done = deque()
        heard = time.monotonic()
        while True:
            try:
                if not self._opened:
                    self._open()
                self._opened = True
                answer = self._ask({"ask": "reset", "seed": seed, "length": self._length})
                heard = time.monotonic()
            except DeviceError:  # the connection is a new one then, and has to be told everything
                if time.monotonic() - heard > self._patience:
                    raise
                self._opened = False
                time.sleep(0.5)
                continue
            self.waiting = str(answer.get("waiting", ""))
            if self._waits is not None:
                self._waits.for_(self.waiting)
            if "frame" in answer:
                self._frame = answer["frame"]
                return self._frame
            time.sleep(0.02)

    def begin_chunk(self, chunk: np.ndarray) -> None:
        """Has the robot do (Ta, Da) actions; ``step`` then tells of one after the other."""
        actions = np.stack([check_action(action, self.spec) for action in chunk])
        try:
            answer = self._ask({"ask": "step", "actions": actions})
        except DeviceError as e:  # what it did meanwhile, if anything, is not known
            answer, self._opened = {"reward": (), "cut": str(e)}, False
        n, cut = len(answer["reward"]), bool(answer["cut"])
        self._done = deque()
        for i in range(n):
            ends = (answer["terminated"], answer["truncated"] and not cut) if i + 1 == n else (False, False)
            frame = {key: x[i] for key, x in answer["frames"].items()}
            self._done.append((StepResult(float(answer["reward"][i]), bool(answer["success"][i]), *ends), frame))
        if cut:
            frame = self._done[-1][1] if n else self._frame
            self._done.append((StepResult(0.0, False, False, True, executed=False), frame))

    def step(self, action: np.ndarray) -> StepResult:
        """What became of the next action of the chunk; of ``action`` alone, where no chunk was begun."""
        if not self._done:
            self.begin_chunk(np.asarray(action)[None])
        result, self._frame = self._done.popleft()
        return result

    def capture(self) -> Frame:
        """The frame after the last step."""
        return self._frame

    def observe(self, moment: Frame | None = None) -> Frame:
        """The frame after the last step, or one that was captured."""
        return self._frame if moment is None else moment

    def render(self, height: int, width: int) -> np.ndarray:
        """What its first camera shows, cut to fit. Raises ConfigError without one."""
        pictures = [x for key, x in self._frame.items() if self.spec.obs[key].kind == "rgb"]
        if not pictures:
            raise ConfigError(f"{self.spec.name} shows no pictures: its observations are {list(self.spec.obs)}.")
        return fit(pictures[0], "square", (height, width))

    def close(self) -> None:
        """Lets go of it."""
        self._remote.close()
