"""What a learner asks of the acting half that it has handed over: answers of ``ServedRobot``.

{"ask": "attach", "learner", "run", "received"}     -> {"known": whether this run's actor is here, with what follows}
{"ask": "part", ..., "file", "at", "data"}          -> {"size": bytes of that file of its checkpoint that are here}
{"ask": "begin", ..., "received", "episode", "seed", "stream", "gamma", "task", "explorer"}   -> {}: it is made
{"ask": "collect", ..., "received", "saved", "wait", "weights"}     -> {"first": number, "decisions": [...], "failed",
                                                        "waiting": for what, before an episode can begin}
{"ask": "rest", ...}                                -> {}: it begins no other episode until the next "collect"
collect, where there is no such actor               -> {"unknown": true}: attach, and hand it over again
begin, where it cannot be                           -> {"error": why}

"seed" is the run's, from which the seeds of simulated worlds follow, "stream" that of the actor's draws. Decisions are
numbered since the run began. "received" and "saved" are numbers: up to the one the learner has them, up to the other it
would have them again if it were killed now; what is after "saved" is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from algos.corrected import ResidualPolicy
from algos.explorer import Explorer
from algos.steered import SteeredPolicy
from algos.steerer import Steerer
from data.construct import construct
from data.errors import ConfigError, ContractError, DataError
from policies.checkpoint import check_contract, load_policy
from real_robot.live.actor import Actor, OwnRobot
from real_robot.live.env import LiveEnv
from real_robot.live.wire import tensors

FILES = ("config.json", "model.safetensors")
OF_TASK = ("obs", "rule", "actions", "joints", "name", "episode_length")
MAX_CHECKPOINT = 8 << 30  # bytes
MAX_WAIT = 2.0  # s


class ServedActor:
    """At most one actor, of the run that handed it over last.

    Args:
        obey: carries out requests to the robot, see ``ServedRobot``; metadata: of the robot.
        device, threads: of inference.
        keep: bytes of decisions, see ``Actor``.
    """

    asks = ("attach", "part", "begin", "collect", "rest")

    def __init__(
        self,
        obey: Callable[[Mapping[str, Any]], dict[str, Any]],
        metadata: Mapping[str, Any],
        *,
        device: str = "cpu",
        threads: int = 1,
        keep: int = 512 << 20,
    ):
        self._obey, self._metadata = obey, metadata
        self._device, self._threads, self._keep = device, threads, keep
        self._run, self._files = "", {name: bytearray() for name in FILES}
        self.actor: Actor | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See above."""
        handlers = {
            "attach": self._attach,
            "part": self._part,
            "begin": self._begin,
            "collect": self._collect,
            "rest": self._rest,
        }
        return handlers[request["ask"]](request, str(request["run"]))

    def free(self) -> bool:
        """Has the actor rest; whether the robot can be led by somebody else."""
        return self.actor is None or self.actor.pause()

    def close(self) -> None:
        """Ends the actor."""
        if self.actor is not None:
            self.actor.stop()
            self.actor = None

    def _of(self, run: str) -> Actor | None:
        return self.actor if run == self._run else None

    def _attach(self, request: Mapping[str, Any], run: str) -> dict[str, Any]:
        actor = self._of(run)
        if actor is not None and not actor.failed and int(request["received"]) <= actor.number:
            return {"known": True}
        self._files = {name: bytearray() for name in FILES}
        return {"known": False}

    def _part(self, request: Mapping[str, Any], run: str) -> dict[str, Any]:
        file, at, data = self._files[request["file"]], int(request["at"]), bytes(request["data"])
        if at > len(file) or at + len(data) > MAX_CHECKPOINT:
            raise DataError(f"Part of {request['file']} at byte {at}, of which {len(file)} are here.")
        file[at:] = data  # one that is sent again replaces what came of it
        return {"size": len(file)}

    def _begin(self, request: Mapping[str, Any], run: str) -> dict[str, Any]:
        if not self.free():
            return {"waiting": "the actor finishes its episode"}
        before = self._of(run)
        self.close()
        try:
            self.actor, self._run = self._make(request, before), run
        except (ConfigError, ContractError, DataError, RuntimeError) as e:
            return {"error": str(e)}
        finally:
            self._files = {name: bytearray() for name in FILES}
        return {}

    def _make(self, request: Mapping[str, Any], before: Actor | None) -> Actor:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in self._files.items():
                (Path(folder) / name).write_bytes(data)
            policy = load_policy(folder, device=self._device)
        stream, options = int(request["stream"]), request["explorer"]
        if isinstance(policy, ResidualPolicy):
            explorer = construct(Explorer.elsewhere, options, "explorer", policy=policy, seed=stream)
        elif isinstance(policy, SteeredPolicy):
            explorer = construct(Steerer.elsewhere, options, "explorer", policy=policy, seed=stream)
        else:
            raise ContractError(f"A {type(policy).__name__} cannot explore here: algo=residual and dsrl can.")
        actor = Actor(
            explorer,
            gamma=float(request["gamma"]),
            seed=int(request["seed"]),
            number=int(request["received"]),
            episode=int(request["episode"]),
            keep=self._keep,
            threads=self._threads,
        )
        if before is not None and before.number >= actor.number:
            actor.inherit(before)
        robot = OwnRobot(self._obey, self._metadata, actor.may_begin)
        task = {key: request["task"][key] for key in OF_TASK if key in request["task"]}
        env = LiveEnv(**task, server=robot.address, patience_s=2.0, remote=robot)
        check_contract(policy, env.spec, "The robot")
        actor.start(env)
        return actor

    def _collect(self, request: Mapping[str, Any], run: str) -> dict[str, Any]:
        actor = self._of(run)
        received, saved = int(request["received"]), int(request["saved"])
        if actor is None or received > actor.number:
            return {"unknown": True}
        given = request.get("weights")
        actor.wanted(None if given is None else {part: tensors(x) for part, x in given.items()})
        first, decisions = actor.fetch(received, saved, min(float(request["wait"]), MAX_WAIT))
        failed = "" if decisions else actor.failed
        return {"first": first, "decisions": decisions, "failed": failed, "waiting": actor.waiting}

    def _rest(self, request: Mapping[str, Any], run: str) -> dict[str, Any]:
        if (actor := self._of(run)) is not None:
            actor.pause()
        return {}


def device_of(name: str) -> str:
    """Of ``actor.device``. Raises ConfigError where it cannot be had."""
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"actor.device={name} cannot be had: cpu is always there, cuda is not.")
    return name
