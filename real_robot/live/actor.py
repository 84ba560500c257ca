"""The acting half of a learner, on the robot's machine: explores by itself, and keeps what it did until that is safe.

A thread of the serving process runs the loop that train.py runs where it asks the robot step by step: the same
environment (``LiveEnv``), the same windows (``Slot``), the same ``Explorer`` (of algo=dsrl: ``Steerer``). Between two
decisions nothing is waited for but the base's inference. New weights are taken between two decisions, as in a learner's
own process.

An episode that has begun is finished whatever becomes of the learner. None begins while the learner has been silent for
``HELD`` s or has not fetched the last ``keep`` bytes, so nothing that was done is ever thrown away before it was
fetched; what was fetched but not saved is kept as well, as far as ``keep`` allows, for a learner that is resumed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algos.explorer import Explorer
from algos.steerer import Steerer
from data.errors import ContractError, DeftError
from envs.base import ChunkStep
from envs.seeds import rollout_seed
from envs.worker import ChunkInfo, Slot
from real_robot.live.env import LiveEnv
from real_robot.live.wire import plain, size

HELD = 30.0  # s of silence after which a robot is another learner's, and no episode begins
BATCH, BATCH_BYTES = 32, 16 << 20  # decisions that are fetched at once


class Paused(Exception):
    """No episode is to begin now."""


class OwnRobot:
    """The robot of this process, behind the door of one that is elsewhere (``LiveEnv``).

    Args:
        obey: carries out a learner's request; see ``ServedRobot``.
        metadata: what a server would say first.
        may_begin: whether an episode may (still) begin.
    """

    address = "of this process"

    def __init__(
        self,
        obey: Callable[[Mapping[str, Any]], dict[str, Any]],
        metadata: Mapping[str, Any],
        may_begin: Callable[[], bool],
    ):
        self._obey, self.metadata, self._may_begin = obey, metadata, may_begin

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Raises Paused instead of waiting on for an episode that need not begin."""
        if request["ask"] == "reset" and not self._may_begin():
            raise Paused
        return self._obey(request)

    def close(self) -> None:
        """There is nothing to end."""


class Actor:
    """Explores in a thread of its own, once it has weights.

    Args:
        explorer: in one environment.
        gamma: per step. seed: of the run, from which those of simulated worlds follow.
        number: decisions before this one's first. episode: number of its first episode.
        keep: bytes.
        threads: of torch.

    Attributes:
        number: of the last decision. idle: whether no episode is under way.
        failed: what ended it.
    """

    def __init__(
        self,
        explorer: Explorer | Steerer,
        *,
        gamma: float,
        seed: int,
        number: int,
        episode: int,
        keep: int,
        threads: int = 1,
    ):
        self.explorer, self.gamma, self.seed, self.keep, self._threads = explorer, gamma, seed, keep, threads
        self.number = self._fetched = number
        self.idle, self.failed = True, ""
        self._episode = episode
        self._kept: deque[tuple[int, dict[str, Any], int]] = deque()  # number, decision, bytes
        self._news: Mapping[str, Mapping[str, Tensor]] | None = None
        self._armed = self._wanted = self._stop = False
        self._heard = -HELD
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="actor", daemon=True)

    def start(self, env: LiveEnv) -> None:
        """Begins to explore in ``env``, which is its own from now on."""
        frames = {key: (self.explorer.policy.n_obs_steps, *f.shape) for key, f in env.spec.obs.items()}
        now, after = ({k: np.zeros(s, env.spec.obs[k].dtype) for k, s in frames.items()} for _ in range(2))
        self._now, self._after, self._env = now, after, env
        self._slot = Slot(env, self.explorer.policy.n_obs_steps, now, after, self.gamma)
        self._thread.start()

    # ------------------------------------------------------------------ what the server's thread calls

    @property
    def waiting(self) -> str:
        """What the robot waits for before an episode can begin; "" if for nothing."""
        return self._env.waiting

    def wanted(self, weights: Mapping[str, Mapping[str, Tensor]] | None) -> None:
        """The learner is there, and wants decisions; ``weights`` if they have changed."""
        with self._changed:
            self._heard, self._wanted = time.monotonic(), True
            if weights is not None:
                self._news, self._armed = weights, True
            self._changed.notify_all()

    def pause(self) -> bool:
        """Lets no other episode begin; whether none is under way."""
        with self._changed:
            self._wanted = False
            return self.idle

    def fetch(self, received: int, saved: int, wait: float) -> tuple[int, list[dict[str, Any]]]:
        """(number of the first, decisions) after number ``received``; waits up to ``wait`` s for one.

        Those up to ``saved`` are forgotten.
        """
        with self._changed:
            self._fetched = received  # fewer than before, where the learner is one that was resumed
            while self._kept and self._kept[0][0] <= saved:
                self._kept.popleft()
            self._changed.wait_for(lambda: self.number > received or self.failed or self._stop, wait)
            new = [item for item in self._kept if item[0] > received]
        first, total, out = new[0][0] if new else received + 1, 0, []
        for _, decision, n in new[:BATCH]:
            total += n
            if out and total > BATCH_BYTES:
                break
            out.append(decision)
        return first, out

    def inherit(self, other: Actor) -> None:
        """Before it starts: goes on counting where the same run's ``other`` one ended, and keeps what that kept."""
        self.number, self._kept = other.number, other._kept

    def stop(self) -> None:
        """For good, within its chunk."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(5)

    # ------------------------------------------------------------------ its own thread

    def may_begin(self) -> bool:
        """Whether an episode may begin now."""
        with self._changed:
            waiting = sum(n for number, _, n in self._kept if number > self._fetched)
            silent = time.monotonic() - self._heard > HELD
            return self._wanted and self._armed and not self._stop and not silent and waiting < self.keep

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            while not self._stop:
                with self._changed:
                    self.idle = not self.may_begin()
                    if self.idle:
                        self._changed.wait(0.2)
                        continue
                try:
                    self._slot.reset(rollout_seed(self.seed, 0, self._episode))
                except Paused:
                    continue
                self._episode += 1
                self._act()
        except Exception as e:
            with self._changed:
                self.failed = str(e) if isinstance(e, DeftError) else f"{type(e).__name__}: {e}"
        with self._changed:
            self.idle = True
            self._changed.notify_all()

    def _act(self) -> None:
        """An episode."""
        fresh, over = torch.tensor([True]), False
        while not over and not self._stop:
            with self._changed:
                news, self._news = self._news, None
            if news is not None:
                self.explorer.load_weights(news)
            actions = self.explorer.explore(_window(self._now), fresh)[0].cpu().numpy()
            if not np.isfinite(actions).all():
                raise ContractError("The actor's actions hold values that are not finite.")
            info = self._slot.step(actions, None)
            decision = plain(self.explorer.observe(_step(info, _window(self._after))))
            fresh, over = torch.tensor([False]), info.terminated or info.truncated
            with self._changed:
                self.number += 1
                self._kept.append((self.number, decision, size(decision)))
                while self._kept[0][0] <= self._fetched and sum(n for _, _, n in self._kept) > self.keep:
                    self._kept.popleft()
                self._changed.notify_all()


def _window(views: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """(1, To, *shape) per key, copied."""
    return {key: torch.from_numpy(view[None].copy()) for key, view in views.items()}


def _step(info: ChunkInfo, after: dict[str, Tensor]) -> ChunkStep:
    def column(value: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([value], dtype=dtype)

    return ChunkStep(
        obs=after,
        next_obs=after,
        reward=column(info.reward, torch.float32),
        discount=column(info.discount, torch.float32),
        terminated=column(info.terminated, torch.bool),
        truncated=column(info.truncated, torch.bool),
        success=column(info.success, torch.bool),
        n_steps=column(info.n_steps, torch.int64),
    )
