"""The learner's end of an acting half that explores on the robot's machine (``real_robot.live.actor``).

It is handed over once: the checkpoint in parts, then what else it takes. Afterwards one request at a time, beside the
updates, fetches what has been done and brings the weights there, where they have changed: at most every second, and not
for more than a tenth of the time.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos.dsrl import DSRL
from algos.explorer import Decision
from algos.residual import Residual
from data.errors import ConfigError, ContractError, DataError
from envs.base import ChunkStep
from policies.checkpoint import save_policy
from real_robot.core.types import DeviceError
from real_robot.live.acting import FILES, OF_TASK
from real_robot.live.env import RemoteRobot, Waits, learner_name
from real_robot.live.wire import arrays, decision_of, same, size
from real_robot.remote.client import API_KEY

PART = 4 << 20  # bytes of a checkpoint that go at once
EVERY, SHARE = 1.0, 0.1  # s between two sets of weights, at least; of the time that sending them may take
LOADING, ANSWER, CLOSING = 60.0, 10.0, 5.0  # s that an answer may take
SLOW = 1e6  # bytes per second that a network carries at least


def stream(seed: int, number: int) -> int:
    """Seed of the draws of an actor whose first decision follows ``number``: neither the learner's nor another's."""
    return int(np.random.SeedSequence([seed, 0x6163746F72, number]).generate_state(1)[0])


class RemoteActor:
    """Acts for a learner (launch.acting.Acting), elsewhere.

    Args:
        learner: stores what comes; its acting half is the one that is handed over.
        env_args: of the robot, see ``LiveEnv``.
        policy_config: of a checkpoint of the learner's policy.
        gamma: discount per control step.
        seed: of the run.

    Raises:
        ConfigError: no robot there, or a base that is code and cannot be handed over.
        DeviceError: it is out of reach.
    """

    repeats = False

    def __init__(
        self,
        learner: Residual | DSRL,
        env_args: Mapping[str, Any],
        policy_config: Mapping[str, Any],
        *,
        gamma: float,
        seed: int,
    ):
        if "black_box" in (policy_config.get("base") or {}):
            raise ConfigError("task.actor=robot hands a checkpoint over; this base is code. Leave out task.actor.")
        self.learner, self._config, self._gamma, self._seed = learner, policy_config, gamma, seed
        self._task = {key: env_args[key] for key in OF_TASK if key in env_args}
        self._patience = float(env_args.get("patience_s", 60.0))
        self._remote = RemoteRobot(env_args["server"], api_key=os.environ.get(API_KEY), timeout_s=LOADING)
        if "joints" not in self._remote.metadata:
            self._remote.close()
            raise ConfigError(f"{env_args['server']} serves no robot; `python -m real_robot.live` does.")
        self._waits = Waits(self._remote.address)
        self._run = uuid.uuid4().hex
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="robot")
        self._under_way: Future[dict[str, Any] | None] | None = None
        self._arrived: deque[tuple[int, Decision]] = deque()  # with their numbers
        self._received = self._stored = self._saved = self._at_state = 0  # numbers of decisions
        self._episodes = 0  # begun
        self._lost = False  # what led to the next decision is not known
        self._there: dict[str, dict[str, np.ndarray]] | None = None  # weights that it has
        self._next = 0.0  # when it may have others
        self._heard = time.monotonic()

    # ------------------------------------------------------------------ requests

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:
        return self._remote.ask({"ask": what, "learner": learner_name(), "run": self._run, **more})

    def reset(self) -> None:
        """Hands over the acting half, unless it is there already.

        Raises:
            ConfigError: the robot is not to be had, for longer than it is to be waited for.
            ContractError: it cannot act there.
            DeviceError: it is out of reach.
        """
        end, self._remote.timeout_s = time.monotonic() + self._patience, LOADING
        while True:
            answer = self._ask("attach", received=self._received)
            if "known" in answer and not answer["known"]:
                answer = self._hand_over()
            if "error" in answer:
                raise ContractError(f"The robot {self._remote.address}: {answer['error']}")
            if "waiting" not in answer:
                break
            if time.monotonic() > end:
                raise ConfigError(f"The robot {self._remote.address} is not to be had: {answer['waiting']}.")
            time.sleep(0.2)
        self._there, self._next, self._heard = None, 0.0, time.monotonic()

    def _hand_over(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint"
            save_policy(checkpoint, self.learner.policy, self._config)
            for name in FILES:
                with (checkpoint / name).open("rb") as file:
                    for at in range(0, (checkpoint / name).stat().st_size, PART):
                        self._ask("part", file=name, at=at, data=file.read(PART))
        return self._ask(
            "begin", received=self._received, episode=self._episodes, seed=self._seed, gamma=self._gamma,
            stream=stream(self._seed, self._received), task=self._task, explorer=self.learner.acting.options,
        )  # fmt: skip

    def _collect(self, weights: dict[str, dict[str, np.ndarray]] | None, wait: float) -> dict[str, Any] | None:
        """In its thread; None where the robot is out of reach."""
        begun = time.monotonic()
        self._remote.timeout_s = ANSWER + (0 if weights is None else size(weights) / SLOW)
        try:
            answer = self._ask("collect", received=self._received, saved=self._saved, wait=wait, weights=weights)
        except DeviceError:
            return None
        if weights is not None and "first" in answer:
            self._there = weights
            self._next = time.monotonic() + max(EVERY, (time.monotonic() - begun - wait) / SHARE)
        return answer

    # ------------------------------------------------------------------ a decision

    def begin(self) -> None:
        """Asks for what has been done since."""
        self._saved = self._at_state  # the state has been written by now
        weights = None
        if time.monotonic() >= self._next:
            now = {part: arrays(x) for part, x in self.learner.weights().items()}
            weights = None if same(self._there, now) else now
        wait = 0.0 if self._arrived or weights is not None else 1.0
        self._under_way = self._thread.submit(self._collect, weights, wait)

    def finish(self) -> ChunkStep:
        """The next decision, stored; of no environment, where there is none yet.

        Raises:
            DeviceError: the robot is out of reach for longer than ``patience_s``, or its actor has failed.
        """
        assert self._under_way is not None
        answer, self._under_way = self._under_way.result(), None
        if answer is not None and "first" in answer:
            self._heard = time.monotonic()
            self._waits.for_(answer["waiting"])
            self._take(answer)
        elif answer is not None and "unknown" in answer:  # the robot's process is a new one
            self._lost = True
            self.reset()
        elif time.monotonic() - self._heard > self._patience:
            why = "it is out of reach" if answer is None else answer.get("waiting", "it says nothing of use")
            raise DeviceError(f"The robot {self._remote.address} is not to be had: {why}.")
        elif not self._arrived:
            time.sleep(0.2)
        while self._arrived:
            self._stored, decision = self._arrived.popleft()
            self._episodes += int(decision.fresh.sum())
            self._lost &= not bool(decision.fresh.all())
            if not self._lost:
                self.learner.store(decision)
                return _step(decision)
        return _step(None)

    def _take(self, answer: Mapping[str, Any]) -> None:
        """Adds what has come, in order; after a gap nothing counts before an episode begins."""
        if answer["failed"]:
            raise DeviceError(f"The actor of the robot {self._remote.address} has failed: {answer['failed']}")
        new = [decision_of(d) for d in answer["decisions"]]
        if new and answer["first"] <= self._received:
            raise DataError(f"The robot sends decision {answer['first']} again; {self._received} are here.")
        self._lost |= bool(new) and answer["first"] > self._received + 1
        self._arrived.extend(enumerate(new, answer["first"]))
        self._received = answer["first"] - 1 + len(new) if new else self._received

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """How far the learner has come, and in which run."""
        self._at_state = self._stored
        return {"actor": {"run": self._run, "stored": self._stored, "episodes": self._episodes}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the actor of this run, if it is still there: what was not saved comes again."""
        told = state["actor"]
        self._run, self._episodes = told["run"], told["episodes"]
        self._received = self._stored = self._saved = self._at_state = told["stored"]
        self._arrived.clear()
        self.reset()

    def close(self) -> None:
        """The robot finishes its episode and rests."""
        self._thread.shutdown()
        self._remote.timeout_s = CLOSING
        with suppress(DeviceError):  # it will notice the silence
            self._ask("rest")
        self._remote.close()


def _step(decision: Decision | None) -> ChunkStep:
    """What a training loop looks at of it; None is of no environment."""
    if decision is None:
        none, no = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        return ChunkStep({}, {}, none, none, no, no, no, torch.zeros(0, dtype=torch.int64))
    d = decision
    return ChunkStep({}, {}, d.reward, d.discount, d.terminated, d.truncated, d.success, d.n_steps)
