"""Measure a policy: fixed seeds, one episode each, a result that does not depend on how many run side by side.

The policy is called for one environment at a time (batch of 1), with noise from the episode's own generator: neither
the order of episodes nor the company an episode has can change a bit of it. Meanwhile the workers step the others.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import ConfigError, ContractError
from envs.make import is_live
from envs.pool import EnvPool, settle_renderer
from envs.worker import ChunkInfo, Film, latest


@dataclass
class Episode:
    """What a policy may keep for the length of an episode: its stream of noise, and whatever it wants to remember."""

    generator: torch.Generator
    memory: Any = None
    chunk: np.ndarray = field(default_factory=lambda: np.empty(0))  # being executed
    actions: list[np.ndarray] = field(default_factory=list)  # executed so far


Act = Callable[[dict[str, Tensor], Episode], Tensor]
"""(observations (1, To, *shape), the episode) to actions (1, Ta, Da), environment units."""


@dataclass
class EpisodeResult:
    """One evaluated episode.

    Attributes:
        seed: of its initial conditions and its noise.
        success: some step succeeded.
        episode_return: undiscounted sum of rewards.
        length: control steps executed.
        latencies_ms: wall time of every call of the policy.
        digest: of the actions executed, bit for bit.
        actions: those, (length, Da).
        measures: (greatest, last) of what the task measures besides success, see ``StepResult``.
        video: (height, width, 3) uint8 pictures, if the episode was filmed.
    """

    seed: int
    success: bool = False
    episode_return: float = 0.0
    length: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    digest: str = ""
    actions: np.ndarray = field(default_factory=lambda: np.empty(0), compare=False)
    video: list[np.ndarray] | None = None
    measures: dict[str, tuple[float, float]] = field(default_factory=dict)


def evaluate(
    act: Act,
    env_args: dict[str, Any],
    seeds: Sequence[int],
    *,
    n_envs: int,
    n_obs_steps: int,
    n_action_steps: int,
    n_workers: int | None = None,
    in_process: bool = False,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    video_seeds: Sequence[int] = (),
    film: Film | None = None,
) -> list[EpisodeResult]:
    """Run one episode per seed; results come in the order of ``seeds``.

    Args:
        act: the policy.
        env_args: see ``make_env``.
        seeds: one episode each.
        n_envs: environments side by side; changes the wall time only. There is one robot.
        n_obs_steps: To.
        n_action_steps: Ta that ``act`` must return.
        n_workers: processes; by default one per environment, at most one per core.
        in_process: no worker processes.
        on_episode: called with each episode as it finishes (any order).
        video_seeds: episodes to film. film: how; by default 240 x 240 pixels every fourth step.

    Raises:
        ContractError: ``act`` returns a wrong shape or a value that is not finite.
        ConfigError, WorkerError: see ``EnvPool``.
    """
    if not seeds:
        return []
    if is_live(env_args) and not any(key.startswith("rgb") for key in env_args["obs"]):
        video_seeds = ()  # a robot without a camera
    film = film or Film(every=4, height=240, width=240)
    results = [EpisodeResult(int(seed)) for seed in seeds]
    waiting = deque(range(len(results)))
    running: dict[int, tuple[EpisodeResult, Episode]] = {}
    n_envs = min(n_envs, len(results), 1 if is_live(env_args) else len(results))
    if video_seeds and not in_process:
        settle_renderer()
    with EnvPool(env_args, n_envs=n_envs, n_obs_steps=n_obs_steps, n_workers=n_workers, in_process=in_process) as pool:

        def begin(env: int) -> None:
            result = results[waiting.popleft()]
            running[env] = result, Episode(episode_generator(result.seed))
            pool.request(env, "reset", result.seed, film if result.seed in video_seeds else None)

        for env in range(n_envs):
            begin(env)
        while running:
            env, info = pool.next_reply()
            result, episode = running[env]
            if info is not None and _finish_chunk(result, episode, info):
                del running[env]
                if waiting:
                    begin(env)
                if on_episode:
                    on_episode(result)
                continue
            obs = {key: torch.from_numpy(value.copy())[None] for key, value in pool.obs(env).items()}
            start = time.perf_counter()
            chunk = act(obs, episode)
            chunk = _check_chunk(chunk, (1, n_action_steps, *pool.spec.action.shape))
            result.latencies_ms.append(1e3 * (time.perf_counter() - start))
            episode.chunk = chunk[0]
            pool.request(env, "step", chunk[0], None)
    return results


def episode_generator(seed: int) -> torch.Generator:
    """The noise stream of the episode ``seed``: unrelated to its neighbours', and to the simulator's draws."""
    state = np.random.SeedSequence([seed, 0x6E6F697365]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _finish_chunk(result: EpisodeResult, episode: Episode, info: ChunkInfo) -> bool:
    """Add a chunk to its episode's result; whether the episode is over."""
    result.success |= info.success
    result.episode_return += info.undiscounted
    result.length += info.n_steps
    result.measures = latest(result.measures, info.measures)
    episode.actions.append(episode.chunk[: info.n_steps].copy())
    over = info.terminated or info.truncated
    if over:
        result.video = info.video
        result.actions = np.concatenate(episode.actions)
        result.digest = hashlib.blake2b(result.actions.tobytes()).hexdigest()[:16]
    return over


def _check_chunk(chunk: Tensor, expected: tuple[int, ...]) -> np.ndarray:
    if tuple(chunk.shape) != expected:
        raise ContractError(f"The policy returned actions {tuple(chunk.shape)}, expected {expected} (1, Ta, Da).")
    array = chunk.detach().to("cpu", torch.float32).numpy()  # waits for the device: part of the latency
    if not np.isfinite(array).all():
        raise ContractError("The policy returned actions that are not finite (NaN or infinite).")
    return array


def wilson_interval(k: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a success rate of ``k`` in ``n`` (Wilson 1927); (0, 1) without episodes.

    Raises:
        ConfigError: not 0 <= k <= n.
    """
    if not 0 <= k <= n:
        raise ConfigError(f"{k} successes in {n} episodes is impossible.")
    if n == 0:
        return 0.0, 1.0
    p = k / n
    scale = 1 + z * z / n
    middle = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # At the ends the formula gives exactly 0 or 1, but for rounding.
    return (0.0 if k == 0 else middle - half), (1.0 if k == n else middle + half)


def summarise(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """The JSON object that ``eval.py`` prints; ``mean_max_X`` and ``mean_final_X`` are of each measure X of the task.

    Raises:
        ConfigError: no episodes.
    """
    if not results:
        raise ConfigError("There are no episodes to summarise.")
    n, k = len(results), sum(r.success for r in results)
    latencies = np.concatenate([r.latencies_ms for r in results])
    return {
        "success_rate": k / n,
        "success_ci95": [round(bound, 4) for bound in wilson_interval(k, n)],
        "n_episodes": n,
        "mean_return": float(np.mean([r.episode_return for r in results])),
        "mean_length": float(np.mean([r.length for r in results])),
        **_measures(results),
        "chunk_latency_ms_p50": float(np.percentile(latencies, 50)) if len(latencies) else 0.0,
        "chunk_latency_ms_p99": float(np.percentile(latencies, 99)) if len(latencies) else 0.0,
        "seeds": [r.seed for r in results],
    }


def _measures(results: Sequence[EpisodeResult]) -> dict[str, float]:
    names = {name: None for r in results for name in r.measures}
    rows = {name: [r.measures[name] for r in results if name in r.measures] for name in names}
    columns = {
        f"{kind}_{name}": column
        for name, row in rows.items()
        for kind, column in zip(("max", "final"), zip(*row, strict=True), strict=True)
    }
    return {f"mean_{name}": float(np.mean(column)) for name, column in columns.items()}
