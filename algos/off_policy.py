"""What the off-policy fine-tuners share: two replays, counted updates, trust, one random stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algos.demos import Demo
from algos.replay import Replay, Transition, mixed
from algos.roles import Roles
from algos.trust import Trust


class OffPolicy:
    """Bookkeeping between ``explore``, ``observe`` and ``update``.

    Args:
        n_envs: environments that are acted in.
        batch_size: of an update; half of it demonstrations, when there are any.
        utd_ratio: updates per environment step.
        n_step: decisions per return.
        learning_starts: environment steps before the first update.
        warmup_steps: environment steps that are the base's alone, and teach the critics only.
        base_fraction: of the later episodes, acted by the base alone.
        quiet_fraction: of all episodes, acted without exploration noise: what trust looks at.
        replay_size: decisions; replay_gb: gigabytes. Whichever is reached first.
        replay_dir: keeps the replay in files there instead of in memory.
        value_low, value_high: what any return lies between; null where that is not known.
        seed: of exploration and batches.
        window: To, where what is seen are windows of To frames and not one vector.
    """

    def __init__(
        self,
        n_envs: int,
        *,
        batch_size: int,
        utd_ratio: float,
        n_step: int,
        learning_starts: int,
        warmup_steps: int,
        base_fraction: float,
        quiet_fraction: float,
        replay_size: int,
        replay_gb: float,
        replay_dir: str | None,
        value_low: float | None,
        value_high: float | None,
        seed: int,
        window: int | None = None,
    ):
        self.n_envs, self.batch_size, self.utd_ratio, self.n_step = n_envs, batch_size, utd_ratio, n_step
        self.learning_starts, self.warmup_steps = learning_starts, warmup_steps
        self.generator = torch.Generator().manual_seed(seed)
        budget = int(replay_gb * 1e9)
        folder = None if replay_dir is None else Path(replay_dir)
        frames, rows = window or 1, max(2, replay_size // n_envs)
        self.replay = Replay(n_envs, frames, capacity=rows, budget_bytes=budget, folder=folder)
        self.demos = Replay(1, frames, budget_bytes=budget)
        self._windows = window is not None
        self.trust = Trust()
        self.value_low, self.value_high = value_low, value_high
        self.roles = Roles(n_envs, base_fraction, quiet_fraction)
        self.env_steps = self.n_updates = 0
        self.owed = 0.0  # updates that the environment steps so far have earned

    @property
    def warming_up(self) -> bool:
        """Whether the actor has to wait."""
        return self.env_steps < self.warmup_steps

    def store(
        self,
        now: Mapping[str, Tensor],
        action: Float[Tensor, "n ..."],
        step: Any,
        after: Mapping[str, Tensor],
        extras: Mapping[str, Tensor] | None = None,
    ) -> bool:
        """Keeps what N environments did and books it; a robot that was stopped before it did anything did nothing.

        Args:
            now, after: (N, ...) per key; what was seen before the decision, and after it.
            action: what was decided, as the critics see it.
            step: the ChunkStep.
            extras: (N, ...) whatever else belongs to the decision.

        Returns:
            Whether the fine-tuned policy is to be trusted now.
        """
        if (step.n_steps == 0).any():  # there is one robot
            self.replay.cut(step.truncated)
            return self.count(step)
        self.replay.add(
            self._windowed(now),
            action,
            step.reward,
            step.discount,
            step.terminated | step.truncated,
            self._windowed(after),
            step.n_steps,
            extras or {},
        )
        return self.count(step)

    def _windowed(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(seen) if self._windows else {k: v[:, None] for k, v in seen.items()}

    def store_demo(
        self,
        demo: Demo,
        seen: Mapping[str, Tensor],
        action: Float[Tensor, "d ..."],
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Keeps a demonstration of D decisions; ``seen`` has one row more, of what came after the last one."""
        frames = {k: v[:, None] for k, v in self._windowed(seen).items()}
        for d in range(len(action)):
            now = slice(d, d + 1)
            self.demos.add(
                {k: v[d] for k, v in frames.items()},
                action[now],
                demo.reward[now],
                demo.discount[now],
                demo.done[now],
                {k: v[d + 1] for k, v in frames.items()},
                demo.n_steps[now],
                {k: v[now] for k, v in (extras or {}).items()},
            )

    def target(self, batch: Transition, value: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """y = r + discount * value, held within what a return can be."""
        y = batch.reward + batch.discount * value
        return y if self.value_low is None and self.value_high is None else y.clamp(self.value_low, self.value_high)

    def count(self, step: Any) -> bool:
        """Books a ChunkStep; returns whether the fine-tuned policy is to be trusted now."""
        ended = (step.terminated | step.truncated) & self.roles.quiet
        for i in ended.nonzero()[:, 0].tolist():
            if not self.roles.base_only[i]:
                self.trust.add(bool(step.success[i]))
            elif self.trust.measures:
                self.trust.base(int(step.success[i]), 1)
        n = int(step.n_steps.sum())
        self.env_steps += n
        if self.env_steps > self.learning_starts:
            self.owed += n * self.utd_ratio
        return self.trust.active

    def due(self) -> Iterator[Transition]:
        """A batch for every update that is due."""
        while self.owed >= 1:
            self.owed -= 1
            self.n_updates += 1
            yield self.batch()

    def batch(self) -> Transition:
        """Half demonstrations, half experience; all experience without demonstrations."""
        n = self.batch_size // 2 if len(self.demos) else self.batch_size
        batch = self.replay.sample(n, n_step=self.n_step, generator=self.generator)
        if len(self.demos):
            rest = self.batch_size - n
            batch = mixed(batch, self.demos.sample(rest, n_step=self.n_step, generator=self.generator))
        return batch

    @property
    def counters(self) -> dict[str, float]:
        """Updates, and updates per environment step since they began."""
        since = self.env_steps - self.learning_starts
        return {"updates": self.n_updates, "utd": self.n_updates / since if since > 0 else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {
            "replay": self.replay.state_dict(),
            "demos": self.demos.state_dict(),
            "trust": self.trust.state_dict(),
            "base_only": self.roles.base_only,
            "quiet": self.roles.quiet,
            "generator": self.generator.get_state(),
            "counters": (self.env_steps, self.n_updates, self.owed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self.replay.load_state_dict(state["replay"])
        self.demos.load_state_dict(state["demos"])
        self.trust.load_state_dict(state["trust"])
        self.roles.base_only, self.roles.quiet = state["base_only"].clone(), state["quiet"].clone()
        self.generator.set_state(state["generator"])
        self.env_steps, self.n_updates, self.owed = state["counters"]
