"""What a data set holds and what is wrong with it, in one pass and a few megabytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.source import Episodes

SATURATED = 0.5  # share of an episode's steps at the limit from which on an action counts as saturated
STILL_STEPS, STILL_SECONDS = 10, 1.0  # a camera with the same picture for longer than both stands still
JUMP = 20.0  # times what 95 % of a dimension's steps stay below (median over the episodes)
GAP = 2.0  # times the median period


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: "unreadable", "NaN", "constant", "saturated", "frozen", "jump", "gap", "short".
        episode: its number; -1: the whole set.
        text: what, where.
    """

    kind: str
    episode: int
    text: str

    def __str__(self) -> str:
        return f"{'all episodes' if self.episode < 0 else f'episode {self.episode}'}: {self.text}"


@dataclass
class Key:
    """One array's statistics over all episodes; ``low`` and ``high`` are None where nothing is finite."""

    low: float | None = None
    high: float | None = None


@dataclass
class Survey:
    """See ``survey``."""

    keys: dict[str, Key] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def survey(source: Episodes, progress: Callable[[int], None] = lambda done: None) -> Survey:
    """Looks at every value once, an episode at a time, large arrays in blocks.

    Args:
        source: any data set.
        progress: called with the number of episodes looked at.
    """
    out = Survey(keys={k: Key() for k in source.keys})
    fields = source.fields
    observed = source.task.obs if source.task else {}
    moves: dict[str, list[tuple[int, np.ndarray]]] = {k: [] for k in observed if fields[k].kind == "state"}
    varies: dict[str, np.ndarray] = {}
    for i in range(source.n_episodes):
        start, stop = int(source.episode_starts[i]), int(source.episode_ends[i])
        if stop - start < 2:
            out.problems.append(Problem("short", i, "it has a single step"))
        for key, spec in fields.items():
            try:
                if spec.kind in ("rgb", "depth", "pointcloud"):
                    _large(source, key, i, start, stop, out)
                    continue
                rows = source.array(key).read(start, stop)
            except DataError as e:
                out.problems.append(Problem("unreadable", i, str(e)))
                continue
            if not _finite(rows, key, i, 0, out):
                continue
            flat = rows.reshape(len(rows), -1).astype(np.float64)
            if spec.kind == "action":
                _saturated(source, flat, key, i, out)
                low, high = varies.get(key, np.stack([flat[0], flat[0]]))
                varies[key] = np.stack([np.minimum(low, flat.min(0)), np.maximum(high, flat.max(0))])
                if len(flat) > 1 and (flat == flat[0]).all():
                    out.problems.append(Problem("constant", i, f"{key} is the same at every step"))
            elif key == "timestamp" and flat.shape[1] == 1:
                _gaps(flat[:, 0], i, out)
            elif key in moves and len(flat) > 1:
                moves[key].append((i, _steps(flat)))
        progress(i + 1)
    for key, (low, high) in varies.items():
        for d in np.flatnonzero(low == high):
            out.problems.append(Problem("constant", -1, f"{key}[{d}] is {low[d]:g} at every step of every episode"))
    for key, found in moves.items():
        _jumps(key, found, out)
    out.problems.sort(key=lambda p: (p.episode, p.kind))
    return out


def size_on_disk(path: Path) -> int:
    """Bytes of a file, of all files in a directory, or of the zip file that ``path`` leads into."""
    if path.is_dir():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return next((p.stat().st_size for p in (path, *path.parents) if p.is_file()), 0)


def _finite(rows: np.ndarray, key: str, episode: int, first: int, out: Survey) -> bool:
    """Widens the range of ``key``; whether all of ``rows``, from step ``first`` on, are finite."""
    good = np.isfinite(rows) if rows.dtype.kind == "f" else np.ones(rows.shape, bool)
    seen, values = out.keys[key], rows[good]
    if values.size:
        low, high = float(values.min()), float(values.max())
        seen.low = low if seen.low is None else min(low, seen.low)
        seen.high = high if seen.high is None else max(high, seen.high)
    if good.all():
        return True
    bad = np.flatnonzero(~good.reshape(len(rows), -1).all(1))
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    out.problems.append(Problem("NaN", episode, f"{key} is not finite at step {first + bad[0]}{more}"))
    return False


def _large(source: Episodes, key: str, episode: int, start: int, stop: int, out: Survey) -> None:
    """Pictures and clouds: finite, and not the same for long."""
    rows, hz = source.array(key), source.task.control_hz if source.task else 0.0
    last: np.ndarray | None = None
    run = longest = at = 0
    for a, b, empty in rows.blocks(start, stop):
        block = np.zeros((b - a, *rows.shape[1:]), rows.dtype) if empty else rows.read(a, b)
        _finite(block, key, episode, a - start, out)
        for t, frame in enumerate(block, a - start):
            run = run + 1 if last is not None and np.array_equal(frame, last) else 0
            last = frame
            if run > longest:
                longest, at = run, t - run
    if longest >= max(STILL_STEPS, STILL_SECONDS * hz):
        seconds = f" ({longest / hz:.1f} s)" if hz else ""
        out.problems.append(
            Problem("frozen", episode, f"{key} does not change for {longest} steps{seconds} from step {at} on")
        )


def _saturated(source: Episodes, flat: np.ndarray, key: str, episode: int, out: Survey) -> None:
    """Dimensions that are mostly at a limit; those of few values (a gripper that opens or closes) are meant to be."""
    if source.task is None:
        return
    low, high = source.task.action_low, source.task.action_high
    near = 1e-4 * (high - low)
    share = ((flat <= low + near) | (flat >= high - near)).mean(0)
    for d in np.flatnonzero(share > SATURATED):
        if len(np.unique(flat[:, d])) > 3:
            text = f"{key}[{d}] is at its limit ({low:g} or {high:g}) in {share[d]:.0%} of the steps"
            out.problems.append(Problem("saturated", episode, text))


def _gaps(t: np.ndarray, episode: int, out: Survey) -> None:
    period = np.diff(t)
    if not len(period):
        return
    if (period <= 0).any():
        out.problems.append(Problem("gap", episode, f"time does not go on at step {int((period <= 0).argmax()) + 1}"))
    elif period.max() > GAP * np.median(period):
        where = int(period.argmax())
        text = f"{period[where]:.3g} s pass between steps {where} and {where + 1}, elsewhere {np.median(period):.3g} s"
        out.problems.append(Problem("gap", episode, text))


def _steps(flat: np.ndarray) -> np.ndarray:
    """(3, D): the largest step of each dimension, where it is, and what 95 % of the steps stay below."""
    steps = np.abs(np.diff(flat, axis=0))
    return np.stack([steps.max(0), steps.argmax(0), np.quantile(steps, 0.95, axis=0)])


def _jumps(key: str, found: list[tuple[int, np.ndarray]], out: Survey) -> None:
    if not found:
        return
    usual = np.median([steps[2] for _, steps in found], axis=0)
    for episode, (largest, where, _) in found:
        times = np.divide(largest, usual, out=np.zeros_like(largest), where=usual > 0)
        if len(times) and times.max() > JUMP:
            d = int(times.argmax())
            text = f"{key}[{d}] jumps by {largest[d]:.3g} after step {int(where[d])}, {times[d]:.0f} times a usual step"
            out.problems.append(Problem("jump", episode, text))
