"""Which chunk to ask for, given what is under way: of a policy here or on another machine."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from data.errors import ConfigError
from real_robot.core.types import DeviceError, PolicyClient
from real_robot.remote.keys import CHUNK, DELAY, PREV_CHUNK, RESET

Mode = Literal["sync", "replace", "ensemble", "rtc", "prefix", "rti"]
CONTINUING = ("rtc", "prefix", "rti")  # the chunk under way; names of executions (policies.inference.execution)
MODES = ("sync", "replace", "ensemble", *CONTINUING)


class Planner:
    """Plans chunks.

    Args:
        client: whose metadata tell its contract (``real_robot.remote.serving.metadata``).
        mode: sync, replace and ensemble take every chunk by itself; rtc, prefix and rti ask for one that goes on from
            the one under way, which a policy that is executed so can give.
    """

    def __init__(self, client: PolicyClient, mode: Mode):
        if mode not in MODES:
            raise ConfigError(f"mode={mode} is not known: {', '.join(MODES)}.")
        execution = client.metadata["execution"]["name"]
        if execution != (mode if mode in CONTINUING else "sync"):
            raise ConfigError(f"mode={mode} does not go with a policy that is served with execution.name={execution}.")
        self.client, self.mode = client, mode
        self.n_obs_steps = int(client.metadata["n_obs_steps"])
        self.n_action_steps = int(client.metadata["n_action_steps"])
        self._action = tuple(client.metadata["action"]["shape"])
        self._chunk: np.ndarray | None = None

    def plan(self, obs: Mapping[str, NDArray[Any]], since: int | None, delay: int) -> Float64[np.ndarray, "t n"]:
        """The next chunk in the robot's units; its first action belongs to the newest observation.

        Args:
            obs: {key: (To, *shape)}.
            since: control steps since the chunk before was asked for; None where none is under way.
            delay: control steps until this one is expected to arrive.

        Raises:
            DeviceError: the policy's machine does not answer, or answers nonsense.
        """
        request: dict[str, Any] = dict(obs)
        left = None if since is None or self._chunk is None else self._chunk[since:]
        if left is None:
            request[RESET] = True
        elif self.mode in CONTINUING and len(left):
            request |= {PREV_CHUNK: left.astype(np.float32), DELAY: min(delay, len(left))}
        answer = self.client.infer(request)
        told = answer["actions"] if self.mode == "sync" else answer.get(CHUNK, answer["actions"])
        chunk = np.asarray(told, np.float64)
        if chunk.ndim != 2 or chunk.shape[1:] != self._action:
            raise DeviceError(f"The policy answered actions of shape {chunk.shape}, expected (T, {self._action[0]}).")
        self._chunk = chunk
        return chunk


class Delays:
    """How long inference takes, in control steps, seen from its recent past.

    Args:
        dt: control step of the policy, s.
        percentile: of the recent times, that is planned for.
        window: times remembered.
        first: s, before anything was measured.
    """

    def __init__(self, dt: float, *, percentile: float = 95.0, window: int = 50, first: float = 0.0):
        self.dt, self.percentile, self.first = dt, percentile, first
        self._seen: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        """One more inference, from its observation's time to its answer."""
        self._seen.append(seconds)

    @property
    def seconds(self) -> float:
        """What is planned for."""
        return float(np.percentile(self._seen, self.percentile)) if self._seen else self.first

    @property
    def steps(self) -> int:
        """The same, in whole steps."""
        return math.ceil(self.seconds / self.dt - 1e-9)
