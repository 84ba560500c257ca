"""Vectors against time as SVG."""

from __future__ import annotations

from html import escape

import numpy as np

MOST_LINES = 32
_LEFT, _WIDTH, _HEIGHT, _TOP = 62, 926, 150, 8
_COLORS = ("#0b62c4", "#c8480a", "#1c8a4a", "#8a3ab9", "#b08600", "#00838f", "#c2185b", "#5d6b78")


def plot(name: str, rows: np.ndarray, marked: np.ndarray | None = None) -> str:
    """A heading and a picture of (T, D) numbers, a line each; steps with ``marked`` (T,) have another ground.

    Values that are not finite are gaps. Of more than ``MOST_LINES`` dimensions the first are drawn.
    """
    n, d = rows.shape
    values = rows[:, :MOST_LINES].astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    pad = 0.05 * (high - low) or max(1e-3, 0.05 * abs(high))
    low, high = low - pad, high + pad
    x = _LEFT + _WIDTH * np.arange(n) / max(1, n - 1)
    y = _TOP + _HEIGHT * (1 - (values - low) / (high - low))
    parts = [_bands(x, marked)] if marked is not None else []
    for value in (low + pad, high - pad, *([0.0] if low + 3 * pad < 0 < high - 3 * pad else [])):
        at = _TOP + _HEIGHT * (1 - (value - low) / (high - low))
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e3e7ea"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for k in range(values.shape[1]):
        color, dash = _COLORS[k % len(_COLORS)], ("", "5 2", "2 2", "8 2 2 2")[k // len(_COLORS) % 4]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        for run in _finite_runs(values[:, k]):
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[run], y[run, k], strict=True))
            title = f"<title>{escape(name)}[{k}]</title>"
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}"{style}>{title}</polyline>')
    parts.append(
        f'<line class="cursor" data-left="{_LEFT}" data-width="{_WIDTH}" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" '
        f'y2="{_TOP + _HEIGHT}"/>'
    )
    more = f", the first {MOST_LINES} of {d}" if d > MOST_LINES else f", {d} values" if d > 1 else ""
    box = f"0 0 1000 {_TOP + _HEIGHT + 8}"
    return f'<h2>{escape(name)}{more}</h2><svg viewBox="{box}" data-key="{escape(name)}">{"".join(parts)}</svg>'


def _bands(x: np.ndarray, marked: np.ndarray) -> str:
    edges = np.flatnonzero(np.diff(np.r_[0, marked.astype(np.int8), 0])).reshape(-1, 2)
    half = (x[1] - x[0]) / 2 if len(x) > 1 else _WIDTH / 2
    return "".join(
        f'<rect class="good" x="{x[a] - half:.1f}" y="{_TOP}" width="{x[b - 1] - x[a] + 2 * half:.1f}" '
        f'height="{_HEIGHT}"/>'
        for a, b in edges
    )


def _finite_runs(values: np.ndarray) -> list[slice]:
    edges = np.flatnonzero(np.diff(np.r_[0, np.isfinite(values).astype(np.int8), 0])).reshape(-1, 2)
    return [slice(int(a), int(b)) for a, b in edges]
