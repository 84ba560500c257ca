"""N environments stepped by action chunks: what reinforcement learning and evaluation see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import ConfigError, ContractError
from envs.base import ChunkStep
from envs.make import is_live
from envs.pool import EnvPool, stack_windows
from envs.seeds import rollout_seed
from envs.worker import ChunkInfo


class ChunkEnv:
    """N environments in worker processes, with the window To and chunk semantics of ``ChunkStep``.

    Within a chunk an environment stops at the end of its episode and begins the next one by itself. Seeds are a pure
    function of (environment, episode number), so a run can be resumed exactly (``state_dict``).

    Attributes:
        spec: the task's contract. n_envs: N. n_obs_steps: To. n_action_steps: Ta, or None for any. gamma: per step.
        repeats: whether its episodes can be acted again, as a simulation's can.
    """

    def __init__(
        self,
        env_args: dict[str, Any],
        *,
        n_envs: int,
        n_obs_steps: int,
        n_action_steps: int | None = None,
        gamma: float = 0.99,
        n_workers: int | None = None,
        in_process: bool = False,
        base_seed: int = 0,
        seed_fn: Callable[[int, int], int] | None = None,
    ):
        """Start the environments.

        Args:
            env_args: see ``make_env``.
            n_envs: N.
            n_obs_steps: To.
            n_action_steps: Ta that ``step`` insists on; None accepts any.
            gamma: discount per control step.
            n_workers: processes; by default one per environment, at most one per core.
            in_process: no worker processes.
            base_seed: the run's seed, from which the default episode seeds follow (``seeds.rollout_seed``).
            seed_fn: (environment, episode number) to seed, instead of the default.

        Raises:
            ConfigError: an impossible count, or what ``make_env`` raises.
        """
        self._pool = EnvPool(
            env_args, n_envs=n_envs, n_obs_steps=n_obs_steps, gamma=gamma, n_workers=n_workers, in_process=in_process
        )
        self.spec, self.n_envs, self.n_obs_steps = self._pool.spec, n_envs, n_obs_steps
        self.n_action_steps, self.gamma = n_action_steps, gamma
        self.repeats = not is_live(env_args)
        self._seed_fn = seed_fn or (lambda env, episode: rollout_seed(base_seed, env, episode))
        self._episode = [0] * n_envs  # number of the present episode
        self._seed: list[int | None] = [None] * n_envs
        self._under_way = np.empty(0)  # chunks of ``begin_step``
        self._actions: list[list[np.ndarray]] = [[] for _ in range(n_envs)]  # chunks of the present episode

    def reset(self, seeds: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Begin a new episode everywhere.

        Args:
            seeds: one per environment; None goes on with the seed stream.

        Returns:
            (N, To, *shape) per key, environment units; a window is its first frame, repeated.
        """
        if seeds is not None and len(seeds) != self.n_envs:
            raise ConfigError(f"reset got {len(seeds)} seeds for {self.n_envs} environments.")
        for i in range(self.n_envs):
            if self._seed[i] is not None:
                self._episode[i] += 1
            seed = int(seeds[i]) if seeds is not None else self._seed_fn(i, self._episode[i])
            self._begin(i, seed)
            self._pool.request(i, "reset", seed, None)
        self._collect()
        return self._observations(self._pool.obs)

    def step(self, actions: Tensor) -> ChunkStep:
        """Execute (N, Ta, Da) actions, environment units; see ``ChunkStep``.

        Raises:
            ContractError: a wrong shape, or a value that is not finite.
            WorkerError: a worker died.
        """
        self.begin_step(actions)
        return self.finish_step()

    def begin_step(self, actions: Tensor) -> None:
        """Set the environments going; worker processes act while the caller does something else."""
        self._under_way = self._check(actions)
        for i, chunk in enumerate(self._under_way):
            self._pool.request(i, "step", chunk, self._seed_fn(i, self._episode[i] + 1))

    def finish_step(self) -> ChunkStep:
        """What came of ``begin_step``."""
        infos: list[ChunkInfo] = self._collect()
        for i, info in enumerate(infos):
            self._actions[i].append(self._under_way[i, : info.n_steps])
            if info.terminated or info.truncated:
                self._episode[i] += 1
                self._begin(i, self._seed_fn(i, self._episode[i]))

        def column(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([getattr(info, name) for info in infos], dtype=dtype)

        return ChunkStep(
            obs=self._observations(self._pool.obs),
            next_obs=self._observations(self._pool.next_obs),
            reward=column("reward", torch.float32),
            discount=column("discount", torch.float32),
            terminated=column("terminated", torch.bool),
            truncated=column("truncated", torch.bool),
            success=column("success", torch.bool),
            n_steps=column("n_steps", torch.int64),
        )

    @property
    def seeds(self) -> list[int | None]:
        """The seed of each environment's present episode (None before the first ``reset``)."""
        return list(self._seed)

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to put every environment back where it is now: seeds and actions so far."""
        return {
            "episode": list(self._episode),
            "seed": list(self._seed),
            "actions": [[torch.from_numpy(chunk.copy()) for chunk in chunks] for chunks in self._actions],
        }

    def load_state_dict(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """Return to the moment of ``state_dict`` by replaying its episodes; returns that moment's observations.

        What cannot be repeated (``repeats``) begins new episodes instead.

        Raises:
            ConfigError: the state is of another number of environments, or was taken before the first ``reset``.
        """
        if len(state["seed"]) != self.n_envs or None in state["seed"]:
            raise ConfigError(f"The saved state {state['seed']} does not fit {self.n_envs} running environments.")
        self._episode = list(state["episode"])
        if not self.repeats:
            self._seed = list(state["seed"])
            return self.reset()
        for i, seed in enumerate(state["seed"]):
            self._begin(i, seed)
            self._actions[i] = [np.asarray(chunk, np.float32) for chunk in state["actions"][i]]
            self._pool.request(i, "reset", seed, None)
        self._collect()
        for k in range(max(len(chunks) for chunks in self._actions)):
            still = [i for i in range(self.n_envs) if k < len(self._actions[i])]
            for i in still:
                self._pool.request(i, "step", self._actions[i][k], None)
            self._collect(len(still))
        return self._observations(self._pool.obs)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    def __enter__(self) -> ChunkEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, i: int, seed: int) -> None:
        self._seed[i], self._actions[i] = seed, []

    def _collect(self, n: int | None = None) -> list[Any]:
        """Wait for ``n`` (default N) replies; those of N environments in their order."""
        replies = dict(self._pool.next_reply() for _ in range(self.n_envs if n is None else n))
        return [replies[i] for i in sorted(replies)]

    def _observations(self, window: Callable[[int], dict[str, np.ndarray]]) -> dict[str, Tensor]:
        stacked = stack_windows([window(i) for i in range(self.n_envs)])
        return {key: torch.from_numpy(array) for key, array in stacked.items()}

    def _check(self, actions: Tensor) -> np.ndarray:
        """(N, Ta, Da) float32 in host memory."""
        if self._seed[0] is None:
            raise ContractError("ChunkEnv.step was called before reset.")
        steps = self.n_action_steps or (actions.shape[1] if actions.ndim == 3 else "Ta")
        expected = (self.n_envs, steps, *self.spec.action.shape)
        if tuple(actions.shape) != expected or 0 in actions.shape:
            raise ContractError(f"ChunkEnv.step got actions {tuple(actions.shape)}, expected {expected}.")
        chunks = actions.detach().to("cpu", torch.float32).numpy().copy()
        if not np.isfinite(chunks).all():
            bad = sorted(set(np.argwhere(~np.isfinite(chunks))[:, 0].tolist()))
            raise ContractError(f"The actions of environment(s) {bad} hold values that are not finite.")
        return chunks
