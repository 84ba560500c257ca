"""Statistics as LeRobot keeps them: of each episode and of the whole, by which its policies normalise.

{feature: {min, max, mean, std, count, q01, q10, q50, q90, q99}}: of numbers along the last axis, of pictures (3, 1, 1),
in [0, 1]. Over several episodes, means and quantiles are averages weighted by count, as LeRobot joins them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
MAX_PICTURES, MAX_SIDE = 100, 300  # of an episode; pixels, from which on every second, third, ... is taken
Stats = dict[str, np.ndarray]


def of_numbers(rows: np.ndarray) -> Stats:
    """(T, *shape): along the last axis of a step, as LeRobot has them; count is T."""
    x = rows.reshape(-1, rows.shape[-1] if rows.ndim > 1 else 1).astype(np.float64)
    out = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0), "count": np.array([len(rows)])}
    return out | {q: np.quantile(x, share, axis=0) for q, share in QUANTILES.items()}


class PictureStats:
    """Of an episode's pictures, up to ``MAX_PICTURES`` of them evenly over it."""

    def __init__(self, n_steps: int) -> None:
        self._wanted = np.unique(np.linspace(0, n_steps - 1, min(n_steps, MAX_PICTURES)).round().astype(int))
        self._seen, self._counts = 0, np.zeros((3, 256), np.int64)

    def add(self, frames: np.ndarray) -> None:
        """The next (n, H, W, 3) uint8."""
        every = max(1, max(frames.shape[1:3]) // (MAX_SIDE // 2)) if max(frames.shape[1:3]) >= MAX_SIDE else 1
        chosen = self._wanted[(self._wanted >= self._seen) & (self._wanted < self._seen + len(frames))] - self._seen
        for picture in frames[chosen, ::every, ::every]:
            for channel in range(3):
                self._counts[channel] += np.bincount(picture[..., channel].reshape(-1), minlength=256)
        self._seen += len(frames)

    def stats(self) -> Stats:
        """Of what was added."""
        level, n = np.arange(256) / 255, self._counts.sum(1, keepdims=True)
        share = self._counts / n
        mean = (share * level).sum(1)
        have = self._counts > 0
        found = {
            "min": level[have.argmax(1)],
            "max": level[255 - have[:, ::-1].argmax(1)],
            "mean": mean,
            "std": np.sqrt((share * (level - mean[:, None]) ** 2).sum(1)),
        }
        found |= {q: level[(share.cumsum(1) >= p - 1e-12).argmax(1)] for q, p in QUANTILES.items()}
        return {k: v.reshape(3, 1, 1) for k, v in found.items()} | {"count": np.array([len(self._wanted)])}


def joined(parts: Sequence[Stats]) -> Stats:
    """Of several episodes together."""
    weight = np.array([float(p["count"][0]) for p in parts])
    weight /= weight.sum()

    def average(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.tensordot(weight, np.stack(values), 1)

    mean = average([p["mean"] for p in parts])
    out = {
        "min": np.min([p["min"] for p in parts], 0),
        "max": np.max([p["max"] for p in parts], 0),
        "mean": mean,
        "std": np.sqrt(average([p["std"] ** 2 + (p["mean"] - mean) ** 2 for p in parts])),
        "count": np.sum([p["count"] for p in parts], 0),
    }
    return out | {q: average([p[q] for p in parts]) for q in QUANTILES}


def as_lists(stats: dict[str, Stats]) -> dict[str, dict[str, list]]:
    """JSON-ready."""
    return {key: {name: value.tolist() for name, value in s.items()} for key, s in stats.items()}
