"""Training batches by index arithmetic: an observation window, the action chunk that goes with it, and its padding.

For decision time t in an episode of rows [s, e): the observations are frames t-To+1 .. t, step j of the action chunk is
the action of frame t-To+1+j, both clamped to the episode. ``is_pad[j]`` marks action steps outside it. So what a policy
executes at t is ``chunk[executed_slice(To, Ta)]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from data.cache import load_rows
from data.errors import ConfigError, DataError
from data.source import Episodes

DEFAULT_MEMORY_BUDGET = 2 << 30


class ChunkBatch(NamedTuple):
    """What a policy learns from."""

    obs: dict[str, Tensor]  # each (B, To, *shape), stored units; float32, or uint8 for images
    action: Float[Tensor, "B H Da"]
    is_pad: Bool[Tensor, "B H"]


def executed_slice(n_obs_steps: int, n_action_steps: int) -> slice:
    """Steps of a predicted chunk that are executed: the first belongs to the newest observation."""
    return slice(n_obs_steps - 1, n_obs_steps - 1 + n_action_steps)


def split_episodes(n_episodes: int, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split episode numbers into (training, validation), each sorted int64.

    At least one validation episode if ``val_fraction`` > 0 and there are two episodes; never no training episode.
    """
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction must lie in [0, 1), got {val_fraction}.")
    n_val = 0
    if val_fraction > 0 and n_episodes > 1:
        n_val = min(max(1, round(n_episodes * val_fraction)), n_episodes - 1)
    order = np.random.default_rng(seed).permutation(n_episodes)
    return np.sort(order[n_val:]), np.sort(order[:n_val])


class ChunkDataset:
    """Windows of a store, one for every frame of the chosen episodes; ``batch`` gathers many at once.

    Data that fits ``memory_budget_bytes`` (the smallest keys first) lives on ``device`` and is gathered there; the
    rest is read from a decoded file (see ``data.cache``). Neither needs worker processes.
    """

    def __init__(
        self,
        store: Episodes,
        *,
        obs_keys: list[str],
        n_obs_steps: int,
        horizon: int,
        action_key: str = "action",
        episodes: np.ndarray | None = None,
        memory_budget_bytes: int = DEFAULT_MEMORY_BUDGET,
        device: str | torch.device = "cpu",
        cache_dir: str | Path | None = None,
    ) -> None:
        """Load.

        Args:
            store: where the episodes are.
            obs_keys: observations to draw.
            n_obs_steps: To.
            horizon: H, at least To.
            action_key: which key holds the actions.
            episodes: numbers of the episodes to use, each once; None for all.
            memory_budget_bytes: how much decoded data may be held in memory.
            device: where batches come out.
            cache_dir: for decoded files of what exceeds the budget; None for a folder beside the store.

        Raises:
            DataError: no such key or episode, a damaged store, a value that is not finite.
            ConfigError: impossible sizes.
        """
        if n_obs_steps < 1 or horizon < n_obs_steps:
            raise ConfigError(
                f"Expected 1 <= n_obs_steps <= horizon, got n_obs_steps={n_obs_steps}, horizon={horizon}."
            )
        if not obs_keys:
            raise ConfigError(f"No observation keys given; {store.path} has {store.keys}.")
        self.store, self.obs_keys, self.action_key = store, list(obs_keys), action_key
        self.n_obs_steps, self.horizon = n_obs_steps, horizon
        self.device = torch.device(device)
        self.episodes = _check_episodes(store, episodes)
        keys = list(dict.fromkeys([*obs_keys, action_key]))
        if len(store.shape(action_key)) != 1:
            raise DataError(f"{store.path}: data/{action_key} has steps of {store.shape(action_key)}, expected (Da,).")
        self._rows = load_rows(
            store, keys, self.episodes, self.device, memory_budget_bytes, Path(cache_dir) if cache_dir else None
        )
        lengths = (store.episode_ends - store.episode_starts)[self.episodes]
        ends = np.cumsum(lengths)
        # Rows are packed over the chosen episodes; for each window its row, and its episode's first and last row.
        self._row = torch.arange(int(lengths.sum()))
        self._first = torch.from_numpy(np.repeat(ends - lengths, lengths))
        self._last = torch.from_numpy(np.repeat(ends - 1, lengths))

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._row)

    @property
    def n_windows(self) -> int:
        """``len``, by the name ``ChunkSampler`` uses."""
        return len(self)

    def subset(self, episodes: np.ndarray) -> ChunkDataset:
        """The windows of some of this data set's episodes, sharing its memory (training and validation split)."""
        wanted = _check_episodes(self.store, episodes)
        if missing := sorted(set(wanted.tolist()) - set(self.episodes.tolist())):
            raise DataError(
                f"{self.store.path}: episodes {missing} are not in this data set; it was loaded without them."
            )
        lengths = (self.store.episode_ends - self.store.episode_starts)[self.episodes]
        first = dict(zip(self.episodes.tolist(), (np.cumsum(lengths) - lengths).tolist(), strict=True))
        length = dict(zip(self.episodes.tolist(), lengths.tolist(), strict=True))
        spans = [np.arange(first[e], first[e] + length[e]) for e in wanted.tolist()]
        rows = torch.from_numpy(np.concatenate(spans) if spans else np.empty(0, np.int64))
        new = object.__new__(ChunkDataset)
        new.__dict__.update(self.__dict__)
        new.episodes = wanted
        new._row, new._first, new._last = self._row[rows], self._first[rows], self._last[rows]
        return new

    def batch(self, indices: Int64[Tensor, " B"], *, obs: bool = True) -> ChunkBatch:
        """Windows ``indices`` (each in [0, len)) on the device; their observations only with ``obs``.

        Raises:
            IndexError: an index out of range.
        """
        indices = indices.cpu()
        t = self._row.index_select(0, indices)[:, None]
        first, last = self._first.index_select(0, indices)[:, None], self._last.index_select(0, indices)[:, None]
        steps = t + torch.arange(1 - self.n_obs_steps, self.horizon - self.n_obs_steps + 1)
        rows = torch.minimum(torch.maximum(steps, first), last)
        obs_rows = rows[:, : self.n_obs_steps].reshape(-1)
        seen = {k: self._take(k, obs_rows, self.n_obs_steps) for k in self.obs_keys} if obs else {}
        action = self._take(self.action_key, rows.reshape(-1), self.horizon).float()
        return ChunkBatch(seen, action, (steps != rows).to(self.device, non_blocking=True))

    def _take(self, key: str, rows: Tensor, n: int) -> Tensor:
        x = self._rows[key].take(rows)
        x = x.float() if x.is_floating_point() else x
        return x.view(-1, n, *x.shape[1:])


class ChunkSampler:
    """Endless batches of window numbers: every window once per epoch, in a new order each epoch, all batches full.

    A batch that reaches the end of an epoch goes on into the next. With ``world_size`` W, the processes' batches
    together are, in order of rank, the batch of size W * batch_size that one process would draw.
    """

    def __init__(self, n_windows: int, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1) -> None:
        if n_windows < 1:
            raise DataError("The data set has no windows to draw from: it holds no episodes, or none was chosen.")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(f"Impossible sampler: batch_size={batch_size}, rank={rank}, world_size={world_size}.")
        self.n_windows, self.batch_size, self.seed = n_windows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.drawn = 0  # windows drawn by all processes together since the start
        self._order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> ChunkSampler:
        return self

    def __next__(self) -> Int64[Tensor, " B"]:
        """The next batch of this rank, (batch_size,) int64."""
        start = self.drawn + self.rank * self.batch_size
        parts, need = [], self.batch_size
        while need:
            epoch, at = divmod(start, self.n_windows)
            part = self._permutation(epoch)[at : at + need]
            parts.append(part)
            start, need = start + len(part), need - len(part)
        self.drawn += self.world_size * self.batch_size
        return torch.from_numpy(np.concatenate(parts))

    @property
    def epoch(self) -> float:
        """Epochs drawn so far."""
        return self.drawn / self.n_windows

    def state_dict(self) -> dict[str, Any]:
        """All that the batches to come depend on, besides batch size, rank and world size."""
        return {"drawn": self.drawn, "seed": self.seed, "n_windows": self.n_windows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. Raises DataError if the data set has another number of windows."""
        if state["n_windows"] != self.n_windows:
            raise DataError(
                f"The run was drawing from {state['n_windows']} windows, but the data set now has {self.n_windows}: "
                "it has changed since. Resume with the same data."
            )
        self.drawn, self.seed, self._order = int(state["drawn"]), int(state["seed"]), None

    def _permutation(self, epoch: int) -> np.ndarray:
        # A function of (seed, epoch) alone, so any process can resume anywhere.
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.n_windows))
        return self._order[1]


def _check_episodes(store: Episodes, episodes: np.ndarray | None) -> np.ndarray:
    if episodes is None:
        return np.arange(store.n_episodes)
    chosen = np.asarray(episodes, dtype=np.int64).reshape(-1)
    wrong = chosen[(chosen < 0) | (chosen >= store.n_episodes)]
    if len(wrong):
        raise DataError(f"{store.path} has {store.n_episodes} episodes; there is no episode {wrong[0]}.")
    if len(np.unique(chosen)) != len(chosen):
        raise DataError(f"{store.path}: an episode was chosen more than once.")
    return chosen
