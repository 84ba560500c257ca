"""What runs beside the simulator: one environment with its observation window, and the loop of a worker process.

No torch here. A worker is a fresh interpreter (``python -c "from envs.worker import main; main()"``), so it neither
imports the parent's main module nor inherits its threads. It ends when its pipe closes: no orphans, whatever
kills the parent. Its shared memory has no name, so none can be left behind.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from data.errors import ConfigError
from data.spec import TaskSpec
from envs.base import Env, Frame, RealTimeEnv, ScriptedEnv
from envs.make import make_env


class ChunkInfo(NamedTuple):
    """What one environment reports about one chunk, besides its observations; see ``ChunkStep``."""

    reward: float
    discount: float
    terminated: bool
    truncated: bool
    success: bool
    n_steps: int
    undiscounted: float
    video: list[np.ndarray] | None  # frames of the episode that ended, if it was to be filmed
    measures: dict[str, tuple[float, float]]  # (greatest, last) in this chunk, see ``StepResult``


class Film(NamedTuple):
    """How an episode is to be filmed: one (height, width) picture every ``every`` control steps."""

    every: int
    height: int
    width: int


def latest(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """(greatest, last) of each measure over two stretches of an episode."""
    return before | {name: (max(top, before.get(name, (top,))[0]), last) for name, (top, last) in after.items()}


Windows = dict[str, np.ndarray]
"""(To, *shape) per key."""


def window_bytes(spec: TaskSpec, n_obs_steps: int) -> int:
    """Size of one observation window, each key aligned to 64 bytes."""
    return sum(_aligned(n_obs_steps * _frame_bytes(spec, key)) for key in spec.obs)


def window_views(buffer: Any, offset: int, spec: TaskSpec, n_obs_steps: int) -> Windows:
    """Arrays over a window that begins at ``offset`` of ``buffer``."""
    views = {}
    for key, field in spec.obs.items():
        count = n_obs_steps * int(np.prod(field.shape))
        flat = np.frombuffer(buffer, dtype=field.dtype, count=count, offset=offset)
        views[key] = flat.reshape(n_obs_steps, *field.shape)
        offset += _aligned(n_obs_steps * _frame_bytes(spec, key))
    return views


def slot_views(buffer: Any, slot: int, spec: TaskSpec, n_obs_steps: int) -> tuple[Windows, Windows]:
    """The windows ``obs`` and ``next_obs`` of environment ``slot`` in a worker's buffer."""
    size = window_bytes(spec, n_obs_steps)
    offset = 2 * size * slot
    return window_views(buffer, offset, spec, n_obs_steps), window_views(buffer, offset + size, spec, n_obs_steps)


def _frame_bytes(spec: TaskSpec, key: str) -> int:
    field = spec.obs[key]
    return int(np.prod(field.shape)) * np.dtype(field.dtype).itemsize


def _aligned(n: int) -> int:
    return -(-n // 64) * 64


class Slot:
    """One environment that is stepped by chunks and keeps the last To frames."""

    def __init__(self, env: Env, n_obs_steps: int, obs: Windows, next_obs: Windows, gamma: float):
        self.env, self.n_obs_steps, self.gamma = env, n_obs_steps, gamma
        self._obs, self._next_obs = obs, next_obs
        self._frames: list[Frame] = []
        self._film: Film | None = None
        self._video: list[np.ndarray] = []
        self._steps = 0

    def reset(self, seed: int, film: Film | None = None) -> None:
        """Begin an episode; the window is its first frame, repeated. Writes ``obs``."""
        self._begin(seed, film)
        self._write(self._obs)

    def step(self, chunk: np.ndarray, next_seed: int | None) -> ChunkInfo:
        """Execute (Ta, Da) actions until the chunk or the episode ends; writes ``next_obs``, then ``obs``.

        An action that was not executed is left out: the episode was cut before it.

        At the end of an episode a new one begins with ``next_seed``, unless that is None.
        """
        reward = undiscounted = 0.0
        success = terminated = truncated = False
        moments: list[Any] = []
        measures: dict[str, tuple[float, float]] = {}
        n = 0
        if isinstance(self.env, RealTimeEnv):
            self.env.begin_chunk(chunk)
        for action in chunk:
            result = self.env.step(action)
            if not result.executed:
                truncated = True
                break
            reward += self.gamma**n * result.reward
            undiscounted += result.reward
            n += 1
            # Nobody knows in advance which frame is the last, so every step keeps what an observation would need,
            # and only the frames that end up in the window are computed.
            moments = [*moments, self.env.capture()][-self.n_obs_steps :]
            self._film_step()
            success |= result.success
            measures = latest(measures, {name: (value, value) for name, value in (result.measures or {}).items()})
            terminated, truncated = result.terminated, result.truncated
            if terminated or truncated:
                break
        seen = [self.env.observe(moment) for moment in moments]
        self._frames = [*self._frames, *seen][-self.n_obs_steps :]
        self._write(self._next_obs)
        video = None
        if terminated or truncated:
            if self._film:
                video = [*self._video, self.env.render(self._film.height, self._film.width)]  # with the last moment
            if next_seed is not None:
                self._begin(next_seed, None)
        self._write(self._obs)
        discount = self.gamma**n * (not terminated)
        return ChunkInfo(reward, discount, terminated, truncated, success, n, undiscounted, video, measures)

    def _begin(self, seed: int, film: Film | None) -> None:
        first = self.env.reset(seed)
        self._frames = [first] * self.n_obs_steps
        self._film, self._video, self._steps = film, [], 0
        self._film_step()

    def _film_step(self) -> None:
        if self._film and self._steps % self._film.every == 0:
            self._video.append(self.env.render(self._film.height, self._film.width))
        self._steps += 1

    def _write(self, target: Windows) -> None:
        for key, array in target.items():
            for t, frame in enumerate(self._frames):
                array[t] = frame[key]


EXPERT = "expert_action"  # key of what the expert would have done where it was disturbed
NOISE_STEPS = 8  # control steps after which a demonstration's disturbance has lost all but 1/e of itself


def demonstrate(env: Env, seed: int, keep_after_success: int, noise: float = 0.0) -> dict[str, np.ndarray] | None:
    """One episode of the scripted expert, or None where it fails.

    Args:
        env: a ScriptedEnv.
        seed: of the episode and its disturbance.
        keep_after_success: steps recorded beyond the first success.
        noise: standard deviation of an Ornstein-Uhlenbeck disturbance of the expert's actions, in halves of the action
            range; it forgets itself within ``NOISE_STEPS``.

    Returns:
        (T, *shape) per observation key, "action" (T, Da) as executed, "reward" (T,), "success" (T,), and with noise
        "expert_action" (T, Da), what the expert would have done. It ends ``keep_after_success`` steps after the first
        success, or with the time limit.
    """
    if not isinstance(env, ScriptedEnv):
        raise ConfigError(f"{env.spec.name} has no scripted expert to collect demonstrations from.")
    frame = env.reset(seed)
    columns: dict[str, list[Any]] = {key: [] for key in (*frame, "action", "reward", "success")}
    left = None
    low, high = env.spec.action_low, env.spec.action_high
    rng, disturbance, memory = np.random.default_rng([seed, 1]), 0.0, math.exp(-1 / NOISE_STEPS)
    while left is None or left > 0:
        action = env.expert_action()
        if noise:
            columns.setdefault(EXPERT, []).append(np.asarray(action, env.spec.action.dtype))
            fresh = rng.standard_normal(action.shape)
            disturbance = memory * disturbance + math.sqrt(1 - memory**2) * noise * fresh
            action = np.clip(action + disturbance * (high - low) / 2, low, high).astype(np.float32)
        result = env.step(action)
        for key, value in frame.items():
            columns[key].append(value)
        columns["action"].append(action)
        columns["reward"].append(np.float32(result.reward))
        columns["success"].append(result.success)
        if left is not None:
            left -= 1
        elif result.success:
            left = keep_after_success
        if result.terminated or result.truncated:
            break
        frame = env.observe()
    if left is None:
        return None
    return {key: np.asarray(value) for key, value in columns.items()}


def serve(requests: Iterator[tuple], slots: list[Slot]) -> Iterator[Any]:
    """Answer ("reset", slot, seed, film), ("step", slot, chunk, next_seed) and ("demo", slot, seed, ...) one by one."""
    for kind, slot, *arguments in requests:
        if kind == "reset":
            yield slots[slot].reset(*arguments)
        elif kind == "step":
            yield slots[slot].step(*arguments)
        elif kind == "demo":
            yield demonstrate(slots[slot].env, *arguments)
        else:
            raise ValueError(f"unknown request {kind!r}")


def main() -> None:
    """Worker process: file descriptors of the pipe and of the shared memory are the two arguments."""
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    envs: list[Env] = []
    try:
        env_args, n_slots, n_obs_steps, gamma = connection.recv()
        envs = [make_env(env_args) for _ in range(n_slots)]
        connection.send(("ready", envs[0].spec))
        size = connection.recv()
        buffer = mmap.mmap(memory, size)
        os.close(memory)
        spec = envs[0].spec
        slots = [Slot(e, n_obs_steps, *slot_views(buffer, i, spec, n_obs_steps), gamma) for i, e in enumerate(envs)]
        for reply in serve(iter(connection.recv, None), slots):
            connection.send(("done", reply))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # the parent is gone or closes
    except Exception as e:
        _report(connection, e)
    finally:
        for env in envs:
            env.close()


def _report(connection: Connection, error: Exception) -> None:
    """Send the error to the parent, with its traceback as text in case it cannot be pickled."""
    text = traceback.format_exc()
    try:
        connection.send(("error", error, text))
    except Exception:
        connection.send(("error", None, text))
