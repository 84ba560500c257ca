"""Transitions on a byte budget: every frame stored once, n-step returns that stop where episodes stop.

A row is one decision of all N environments. Its observation window is a list of frame numbers, so that the frames that
two windows share, and the window that is one decision's successor and the next one's observation, are kept once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from data.errors import ConfigError, DataError

Obs = dict[str, Tensor]
SPARE = 11  # of so many places in files, one is spare


class Transition(NamedTuple):
    """A batch for temporal-difference learning: the target is always ``reward + discount * value(next_obs)``.

    Attributes:
        obs, next_obs: (B, To, *shape) per key.
        action: (B, ...) as stored.
        reward: (B,) sum of discounted rewards over the n decisions.
        discount: (B,) product of the decisions' discounts; 0 after a terminal state, not after a time-out.
        done: (B,) whether the episode ended within them.
        extras: what the algorithm stored with the first decision; "next_<key>" what it stored of the successor.
    """

    obs: Obs
    action: Tensor
    reward: Float[Tensor, " b"]
    discount: Float[Tensor, " b"]
    done: Bool[Tensor, " b"]
    next_obs: Obs
    extras: dict[str, Tensor]


class _Ring:
    """A first-in, first-out array that counts what was ever written; allocated when the first element comes.

    In a file it has ``spare`` places more than are kept, so that what was there when a state was saved is still there
    when a run goes on from it, although another has written on in the meantime.
    """

    def __init__(self, capacity: int, spare: int = 0, file: Path | None = None):
        self.capacity, self.places, self.file = capacity, capacity + spare, file
        self.array: Tensor | None = None
        self.total = 0

    def append(self, items: Tensor) -> Int64[Tensor, " n"]:
        """Writes items (n, *shape); returns their numbers since the beginning."""
        if self.array is None:
            self.array = self._allocate(items.shape[1:], items.dtype)
        numbers = torch.arange(self.total, self.total + len(items))
        self.array[numbers % self.places] = items
        self.total += len(items)
        return numbers

    def _allocate(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        shape = torch.Size((self.places, *shape))
        if self.file is None:
            return torch.empty(shape, dtype=dtype)  # pages that nothing was written to take no memory
        self.file.parent.mkdir(parents=True, exist_ok=True)
        return torch.from_file(str(self.file), shared=True, size=shape.numel(), dtype=dtype).view(shape)

    def __getitem__(self, numbers: Tensor) -> Tensor:
        assert self.array is not None
        return self.array[numbers % self.places]

    def state_dict(self) -> dict[str, Any]:
        if self.array is None:
            return {"total": 0}
        if self.file is not None:
            with self.file.open("rb") as f:
                os.fsync(f.fileno())
            return {"total": self.total, "shape": self.array.shape[1:], "dtype": self.array.dtype}
        return {"total": self.total, "kept": self[torch.arange(max(0, self.total - self.capacity), self.total)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From its items, or from the file that they are in."""
        self.array, self.total = None, state["total"]
        if "kept" in state:
            self.total -= len(state["kept"])
            self.append(state["kept"])
        elif self.total:
            size = self.places * state["shape"].numel() * state["dtype"].itemsize
            if self.file is None or not self.file.exists() or self.file.stat().st_size != size:
                raise DataError(f"{self.file}: the replay that this state goes on with is not there ({size} bytes).")
            self.array = self._allocate(state["shape"], state["dtype"])


class Replay:
    """Decisions of N environments, oldest dropped first.

    Args:
        n_envs: N.
        n_obs_steps: To of the windows given to ``add``.
        capacity: rows (decisions of all N environments); the byte budget may allow fewer.
        budget_bytes: for frames and rows together; applied when the first row shows their sizes.
        folder: keep the arrays in files there instead of in memory. A state then says where they are and does not hold
            them; one that goes on from it does not see what was written after it, but for rows that came to be
            overwritten (a tenth of the rows may).
    """

    def __init__(
        self,
        n_envs: int,
        n_obs_steps: int,
        *,
        capacity: int = 1_000_000,
        budget_bytes: int = 2 << 30,
        folder: Path | None = None,
    ):
        self.n_envs, self.n_obs_steps = n_envs, n_obs_steps
        self.budget_bytes, self.folder = budget_bytes, folder
        self._limit = capacity
        self.capacity = 0  # rows; known with the first one
        self._frames: dict[str, _Ring] = {}
        self._rows: dict[str, _Ring] = {}
        self._window = torch.zeros(n_envs, n_obs_steps, dtype=torch.int64)  # frame numbers each environment sees now
        self._fresh = torch.ones(n_envs, dtype=torch.bool)
        self.total = 0  # rows ever added
        self._lost = 0  # number of the first row that nothing has been written over
        self._owner = _Ring(2, file=folder / "owner.bin" if folder else None)  # a random number; rows in the files

    def __len__(self) -> int:
        """Rows that can be drawn."""
        return self.total - self._oldest

    @property
    def n_transitions(self) -> int:
        """Decisions that can be drawn, of all environments."""
        return len(self) * self.n_envs

    def add(
        self,
        obs: Obs,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        done: Tensor,
        next_obs: Obs,
        n_steps: Tensor,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        """One decision of every environment, as ``ChunkStep`` describes it; every tensor's first axis is N.

        The window of a new episode is its first frame, repeated (as ``ChunkEnv`` gives it).

        Raises:
            DataError: a value that is not finite, or keys or shapes that change.
        """
        extras = extras or {}
        columns = {"action": action, "reward": reward, "discount": discount, "done": done}
        columns |= {f"extra/{k}": v for k, v in extras.items()}
        for name, value in {**columns, **{f"obs/{k}": v for k, v in next_obs.items()}}.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise DataError(f"A transition's {name} holds a value that is not finite; nothing was stored.")
        if not self.capacity:
            self._size(obs, columns)
        if set(columns) | {"obs", "next"} != set(self._rows):
            raise DataError(f"This replay stores {sorted(self._rows)}; the transition has {sorted(columns)}.")
        windows, successors = self._store_frames(obs, next_obs, n_steps)
        for name, value in {**columns, "obs": windows, "next": successors}.items():
            self._rows[name].append(value.detach().to("cpu")[None])
        self._window = successors.clone()
        self._fresh = done.to("cpu").bool().clone()
        self.total += 1
        if self._owner.array is not None:
            self._owner.array[1] = self.total

    def cut(self, rows: Bool[Tensor, " n"]) -> None:
        """In the chosen environments the last decision was its episode's last one, and what follows is another's."""
        if self.total:
            done = self._rows["done"].array
            assert done is not None
            done[(self.total - 1) % self._rows["done"].places] |= rows
        self._fresh |= rows

    def _size(self, obs: Obs, columns: dict[str, Tensor]) -> None:
        frame = sum(v[0, 0].numel() * v.element_size() for v in obs.values())
        row = sum(v.numel() * v.element_size() for v in columns.values()) + 16 * self.n_envs * self.n_obs_steps
        # A decision adds at most To frames to an environment, and one more where an episode begins.
        frames_per_row = self.n_envs * (self.n_obs_steps + 1)
        self.capacity = min(self._limit, self.budget_bytes // (row + frames_per_row * frame))
        if self.capacity < 2:
            raise ConfigError(
                f"A replay of {self.budget_bytes} bytes has no room for two decisions of "
                f"{row + frames_per_row * frame} bytes each; raise algo.replay_gb."
            )
        if self.folder is not None:
            self.capacity -= self.capacity // SPARE
            self._owner.append(torch.tensor([int.from_bytes(os.urandom(7), "big"), 0]))
        self._make_rings(["obs", "next", *columns], list(obs))

    def _make_rings(self, rows: list[str], keys: list[str]) -> None:
        folder, frames_per_row = self.folder, self.n_envs * (self.n_obs_steps + 1)
        spare = self.capacity // (SPARE - 1) if folder else 0
        n_frames = (self.capacity + self.n_obs_steps) * frames_per_row  # windows reach back

        def ring(capacity: int, spare: int, name: str) -> _Ring:
            return _Ring(capacity, spare, folder / f"{name.replace('/', '-')}.bin" if folder else None)

        self._rows = {k: ring(self.capacity, spare, k) for k in rows}
        self._frames = {k: ring(n_frames, spare * frames_per_row, f"frames-{k}") for k in keys}

    def _store_frames(self, obs: Obs, next_obs: Obs, n_steps: Tensor) -> tuple[Tensor, Tensor]:
        """Frame numbers (N, To) of the windows before and after the decision."""
        windows, successors = self._window.clone(), torch.empty_like(self._window)
        for i in range(self.n_envs):
            if self._fresh[i]:
                windows[i] = self._append({k: v[i, -1:] for k, v in obs.items()})
            new = min(int(n_steps[i]), self.n_obs_steps)
            numbers = self._append({k: v[i, self.n_obs_steps - new :] for k, v in next_obs.items()})
            successors[i] = torch.cat([windows[i], numbers])[-self.n_obs_steps :]
        return windows, successors

    def _append(self, frames: Obs) -> Tensor:
        numbers = torch.empty(0, dtype=torch.int64)
        for key, value in frames.items():
            numbers = self._frames[key].append(value.detach().to("cpu"))
        return numbers

    @property
    def _oldest(self) -> int:
        """Number of the oldest row that is still whole."""
        return max(self._lost, self.total - self.capacity) if self.capacity else 0

    def sample(self, n: int, *, n_step: int = 1, generator: torch.Generator | None = None) -> Transition:
        """n decisions, each with its n-step return.

        A return stops at the end of its episode, and where the stored data ends; the successor is the one reached
        there, so a time-out bootstraps from the frame it was cut at.
        """
        if len(self) == 0:
            raise DataError("The replay is empty: nothing can be drawn from it.")
        drawn = torch.randint(self.n_transitions, (n,), generator=generator)
        row, env = drawn // self.n_envs + self._oldest, drawn % self.n_envs
        return self.gather(row, env, n_step)

    def gather(self, row: Int64[Tensor, " b"], env: Int64[Tensor, " b"], n_step: int = 1) -> Transition:
        """The decisions (row, env), rows counted since the beginning."""
        at = row.clone()
        reward, discount = self._column("reward", at, env), self._column("discount", at, env)
        done = self._column("done", at, env)
        for _ in range(n_step - 1):
            going = ~done & (at + 1 < self.total)
            if not going.any():
                break
            at = torch.where(going, at + 1, at)
            reward = torch.where(going, reward + discount * self._column("reward", at, env), reward)
            discount = torch.where(going, discount * self._column("discount", at, env), discount)
            done = torch.where(going, self._column("done", at, env), done)
        extras = {}
        for name in self._rows:
            if name.startswith("extra/next_"):
                extras[name.removeprefix("extra/")] = self._column(name, at, env)
            elif name.startswith("extra/"):
                extras[name.removeprefix("extra/")] = self._column(name, row, env)
        return Transition(
            obs=self._windows("obs", row, env),
            action=self._column("action", row, env),
            reward=reward,
            discount=discount,
            done=done,
            next_obs=self._windows("next", at, env),
            extras=extras,
        )

    def _column(self, name: str, row: Tensor, env: Tensor) -> Tensor:
        ring = self._rows[name]
        assert ring.array is not None
        return ring.array[row % ring.places, env]

    def _windows(self, name: str, row: Tensor, env: Tensor) -> Obs:
        numbers = self._column(name, row, env)
        return {key: ring[numbers] for key, ring in self._frames.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything, or where it is: see ``folder``."""
        last = torch.tensor([self.total - 1])
        return {
            "total": self.total,
            "capacity": self.capacity,
            "window": self._window,
            "fresh": self._fresh,
            "lost": self._lost,
            "owner": self._owner[torch.tensor([0])].clone() if self._owner.array is not None else None,
            "last_done": self._rows["done"][last] if self.total else None,  # ``cut`` may change it in the file
            "frames": {k: r.state_dict() for k, r in self._frames.items()},
            "rows": {k: r.state_dict() for k, r in self._rows.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken.

        Raises:
            DataError: its files are gone, or another run's.
        """
        self.total, self.capacity, self._lost = state["total"], state["capacity"], state["lost"]
        self._window, self._fresh = state["window"].clone(), state["fresh"].clone()
        self._make_rings(list(state["rows"]), list(state["frames"]))
        if state["owner"] is not None:
            self._take_over(state)
        elif self.folder is not None and self.capacity:
            self._owner.append(torch.tensor([int.from_bytes(os.urandom(7), "big"), self.total]))
        for rings, kept in ((self._rows, state["rows"]), (self._frames, state["frames"])):
            for key, ring in rings.items():
                ring.load_state_dict(kept[key])
        if state["last_done"] is not None:
            done = self._rows["done"]
            assert done.array is not None
            done.array[(self.total - 1) % done.places] = state["last_done"][0]

    def _take_over(self, state: Mapping[str, Any]) -> None:
        """The files of the run that ``state`` is of; what it wrote since may have gone over its oldest rows."""
        if self.folder is None or not (self.folder / "owner.bin").exists():
            raise DataError(f"This state goes on with a replay in files, which are not in {self.folder}.")
        self._owner.load_state_dict({"total": 2, "shape": torch.Size(), "dtype": torch.int64})
        owner = self._owner.array
        assert owner is not None
        if int(owner[0]) != int(state["owner"]):
            raise DataError(
                f"{self.folder} holds the replay of another run by now: algo.replay_dir is for one run alone."
            )
        self._lost = max(self._lost, int(owner[1]) - self._rows["done"].places)
        if (gone := self._lost - max(state["lost"], self.total - self.capacity)) > 0:
            warnings.warn(f"{self.folder}: {gone} of {len(self)} rows have been written over since.", stacklevel=3)
        owner[1] = self.total


def mixed(a: Transition, b: Transition) -> Transition:
    """Both batches in one: symmetric sampling draws half of each from demonstrations and experience (RLPD)."""

    def join(x: Any, y: Any) -> Any:
        return {k: join(x[k], y[k]) for k in x} if isinstance(x, dict) else torch.cat([x, y])

    return Transition(*(join(x, y) for x, y in zip(a, b, strict=True)))
