"""What an environment is, and what a step of a whole action chunk returns.

Nothing here imports torch: the worker processes that hold simulators load this module.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from data.errors import ContractError
from data.spec import TaskSpec

Frame = dict[str, np.ndarray]
"""One time step's observation, keys and shapes as in ``TaskSpec.obs`` (no time axis), environment units."""


class StepResult(NamedTuple):
    """One control step, without its observation (ask ``Env.observe`` for the frames that are needed).

    ``executed`` is false where a robot did not follow the action (a person took over, it was stopped): then the episode
    was cut before this step, and nothing of the step may be learned from; ``truncated`` is true.

    ``measures`` are what a task reports of this moment besides success, the same names at every step, say {"coverage":
    0.8}. An evaluation tells their greatest and their last value in an episode; they decide nothing.
    """

    reward: float
    success: bool
    terminated: bool
    truncated: bool
    executed: bool = True
    measures: dict[str, float] | None = None


class ChunkStep(NamedTuple):
    """What ``ChunkEnv.step`` returns for N environments; tensors with leading axis N.

    Attributes:
        obs: (N, To, *shape) per key, for the next decision, after any autoreset.
        next_obs: (N, To, *shape) per key, the true successor, before autoreset.
        reward: (N,) float32, sum of gamma^i r_i over the steps really executed.
        discount: (N,) float32, gamma^n * (1 - terminated); a time-out still bootstraps.
        terminated: (N,) bool, the task ended (success); its value beyond is zero.
        truncated: (N,) bool, the time limit cut the episode; its value beyond is not zero.
        success: (N,) bool, some step of this chunk succeeded.
        n_steps: (N,) int64, control steps really executed; 0 where a robot's episode was cut before the first: nothing
            happened, ``next_obs`` is the last that was seen, and there is nothing to learn from.
    """

    obs: dict[str, Any]
    next_obs: dict[str, Any]
    reward: Any
    discount: Any
    terminated: Any
    truncated: Any
    success: Any
    n_steps: Any


@runtime_checkable
class Env(Protocol):
    """A simulated task, one step at a time.

    ``reset`` is a pure function of its seed: the same seed gives bitwise the same episode whatever ran before.
    ``step`` does not compute observations, because a chunk of Ta steps needs only its last To frames.
    """

    spec: TaskSpec

    def reset(self, seed: int) -> Frame:
        """Begin the episode that ``seed`` (>= 0) names; return its first frame."""
        ...

    def step(self, action: np.ndarray) -> StepResult:
        """Execute one (Da,) action in environment units. Raises ContractError on a wrong shape or a NaN."""
        ...

    def capture(self) -> Any:
        """What ``observe`` needs of this moment, copied; cheap, because it is called at every step."""
        ...

    def observe(self, moment: Any = None) -> Frame:
        """The present frame, or that of a moment of this episode that ``capture`` returned."""
        ...

    def render(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 picture for people."""
        ...

    def close(self) -> None:
        """Give back what the environment holds."""
        ...


@runtime_checkable
class ScriptedEnv(Env, Protocol):
    """An environment that knows how to solve itself: what demonstrations are collected from."""

    def expert_action(self) -> np.ndarray:
        """(Da,) float32 action of the scripted expert in the present state, within the action limits."""
        ...


@runtime_checkable
class RestorableEnv(Env, Protocol):
    """A simulation that goes on from a recorded state: what demonstrations of other people are replayed in."""

    n_positions: int

    def sim_state(self) -> np.ndarray:
        """(1 + n_positions + n_velocities,) float64: time, positions, velocities, as robomimic's ``states``."""
        ...

    def restore(self, state: np.ndarray, scene: str | None = None) -> Frame:
        """Go on from ``state``, in the scene of the XML ``scene``, or of the environment. Raises ContractError."""
        ...


@runtime_checkable
class RealTimeEnv(Env, Protocol):
    """An environment that goes on between two calls of ``step``: it has to be told a whole chunk beforehand."""

    def begin_chunk(self, chunk: np.ndarray) -> None:
        """(Ta, Da) actions, environment units, that the next Ta calls of ``step`` will ask for, if none ends it."""
        ...


def check_action(action: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """(Da,) float32, clipped to the task's limits.

    Raises:
        ContractError: wrong shape, or a value that is not finite.
    """
    action = np.asarray(action, dtype=np.float32)
    if action.shape != spec.action.shape:
        raise ContractError(f"{spec.name}: an action has shape {action.shape}, expected {spec.action.shape}.")
    if not np.isfinite(action).all():
        raise ContractError(f"{spec.name}: the action {action.tolist()} holds a value that is not finite.")
    return np.clip(action, spec.action_low, spec.action_high)
