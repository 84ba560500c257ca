"""What a policy's chunks ask for now: action i of a chunk is due at ``due + i dt``.

Chunks that are not fit are refused whole, with the reason. Between two actions the target runs along a cubic Hermite
curve through them, so that it has a velocity that the follower can run with; past the last action there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.errors import ConfigError
from real_robot.core.types import SECOND, Chunk, Joints, RobotSpec


@dataclass(frozen=True)
class Wish:
    """What is asked for now.

    Attributes:
        q, v: (n,) position and velocity.
        chunk: id of the chunk, the newest of them where several have a say.
        index: where in it.
    """

    q: Joints
    v: Joints
    chunk: int
    index: float


class Executor:
    """Chunks in, targets out; the queue of a policy, kept in the control process.

    Args:
        spec: of the robot.
        mode: "replace": the newest chunk counts, from its first action on. "ensemble": all that are not
            over yet, chunk i, the oldest being 0, weighing exp(-decay i) (ACT, Zhao et al. 2023).
        max_age: s after its observation that a chunk may be followed.
        action_latency: s that the robot takes to do what is written; actions are sent so much earlier.
        decay: of "ensemble".
    """

    def __init__(
        self,
        spec: RobotSpec,
        *,
        mode: Literal["replace", "ensemble"] = "replace",
        max_age: float = 2.0,
        action_latency: float = 0.0,
        decay: float = 0.01,
    ):
        if mode not in ("replace", "ensemble"):
            raise ConfigError(f"The executor's mode is replace or ensemble, not {mode!r}.")
        self.spec, self.mode, self.max_age, self.decay = spec, mode, max_age, decay
        self.action_latency = round(action_latency * SECOND)
        self.last_id, self.since = -1, 0
        self._live: list[Chunk] = []

    def accept(self, chunk: Chunk, now: int) -> str | None:
        """Takes a chunk at time ``now``; returns why not, or None."""
        reason = self._unfit(chunk, now)
        if reason is None:
            self.last_id = chunk.id
            self._live = [*self._live, chunk] if self.mode == "ensemble" else [*self._running(now), chunk]
        return reason

    def _unfit(self, chunk: Chunk, now: int) -> str | None:
        actions, n = np.asarray(chunk.actions), self.spec.n
        if actions.ndim != 2 or actions.shape[1] != n or len(actions) < 1:
            return f"its actions have shape {actions.shape}, expected (T, {n})"
        if not np.isfinite(actions).all():
            return f"action {int(np.argmin(np.isfinite(actions).all(1)))} is not finite"
        if not (np.isfinite(chunk.dt) and 1e-3 <= chunk.dt <= 1.0):
            return f"{chunk.dt} s between actions is not between 1 ms and 1 s"
        if chunk.id <= self.last_id:
            return f"it comes after chunk {self.last_id}"
        if chunk.t_obs > now:
            return f"its observation lies {(chunk.t_obs - now) / SECOND:.3f} s in the future"
        if now - chunk.t_obs > self.max_age * SECOND:
            return f"its observation is {(now - chunk.t_obs) / SECOND:.3f} s old, {self.max_age} s are allowed"
        if now + self.action_latency > _end(chunk):
            return f"its last action was due {(now + self.action_latency - _end(chunk)) / SECOND:.3f} s ago"
        if chunk.t_obs < self.since:
            return "its observation is from before the policy was to lead"
        return None

    def _running(self, now: int) -> list[Chunk]:
        """Chunks that have a say at ``now``: the newest one whose turn has come."""
        at = now + self.action_latency
        begun = [c for c in self._live if _begin(c) <= at <= _end(c) and now - c.t_obs <= self.max_age * SECOND]
        return begun[-1:] if self.mode == "replace" else begun

    def clear(self, now: int) -> None:
        """Forgets all chunks, and takes none any more that were computed from observations before ``now``."""
        self._live, self.since = [], now

    def target(self, now: int) -> Wish | None:
        """What is asked for at ``now``; None where no chunk is young enough, or none goes on so long."""
        at = now + self.action_latency
        self._live = [c for c in self._live if at <= _end(c) and now - c.t_obs <= self.max_age * SECOND]
        running = self._running(now)
        if not running:
            return None
        weights = np.exp(-self.decay * np.arange(len(running)))
        weights /= weights.sum()
        points = [hermite(c.actions, (at - c.due) / (c.dt * SECOND), c.dt) for c in running]
        q = sum((w * p for w, (p, _) in zip(weights, points, strict=True)), np.zeros(self.spec.n))
        v = sum((w * s for w, (_, s) in zip(weights, points, strict=True)), np.zeros(self.spec.n))
        return Wish(q, v, running[-1].id, (at - running[-1].due) / (running[-1].dt * SECOND))


def _begin(chunk: Chunk) -> int:
    """Its first action counts a step before it is due, so that a chunk can follow another without a gap."""
    return chunk.due - round(chunk.dt * SECOND)


def _end(chunk: Chunk) -> int:
    return chunk.due + round((len(chunk.actions) - 1) * chunk.dt * SECOND)


def hermite(points: np.ndarray, at: float, dt: float) -> tuple[Joints, Joints]:
    """Position (n,) and velocity (n,) at index ``at`` of points (T, n) that lie ``dt`` s apart.

    Cubic Hermite curve with central differences as slopes; before the first and after the last point, those.
    """
    last = len(points) - 1
    at = min(max(at, 0.0), float(last))
    if last == 0:
        return points[0].astype(np.float64), np.zeros(points.shape[1])
    i = min(int(at), last - 1)
    u = at - i
    p0, p1 = points[i], points[i + 1]
    m0 = (p1 - points[i - 1]) / 2 if i > 0 else p1 - p0
    m1 = (points[i + 2] - p0) / 2 if i + 2 <= last else p1 - p0
    q = (2 * u**3 - 3 * u**2 + 1) * p0 + (u**3 - 2 * u**2 + u) * m0 + (3 * u**2 - 2 * u**3) * p1 + (u**3 - u**2) * m1
    slope = (6 * u**2 - 6 * u) * (p0 - p1) + (3 * u**2 - 4 * u + 1) * m0 + (3 * u**2 - 2 * u) * m1
    return q, slope / dt
