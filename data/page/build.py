"""Puts the page of one episode together."""

from __future__ import annotations

import base64
import json
import tempfile
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from data.errors import DataError
from data.page.plots import plot
from data.source import Episodes
from data.spec import FieldSpec
from data.zarr_read import reason

UNKNOWN_HZ = 10.0  # what is shown a second where the rate is not known
MOST_PIXELS, MOST_POINTS, MOST_CLOUDS = 640, 2048, 60
_LAST = ("reward", "success", "done", "timestamp", "task_index")


def page(source: Episodes, i: int) -> str:
    """Episode ``i`` of any data set as one HTML file that loads nothing.

    Cameras and depth are H.264 films, vectors are drawn against time (steps with "success" on another ground), clouds
    turn under the mouse. Of clouds, ``MOST_POINTS`` points and ``MOST_CLOUDS`` steps are kept; pictures wider than
    ``MOST_PIXELS`` are made smaller.

    Raises:
        DataError: no such episode, or rows that cannot be read.
    """
    if not 0 <= i < source.n_episodes:
        raise DataError(
            f"{source.path} has {source.n_episodes} episodes, 0 to {source.n_episodes - 1}; there is no {i}."
        )
    start, stop = int(source.episode_starts[i]), int(source.episode_ends[i])
    hz = source.task.control_hz if source.task else 0.0
    films, clouds, vectors = [], [], {}
    ranges: list[list[str]] = []
    for key, spec in source.fields.items():
        if spec.kind in ("rgb", "depth") or (spec.kind == "goal" and len(spec.shape) == 3):
            film, low, high = _film(source, key, spec, start, stop, hz or UNKNOWN_HZ)
            films.append(film)
        else:
            rows = source.array(key).read(start, stop)
            finite = rows[np.isfinite(rows)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
            if spec.kind == "pointcloud":
                clouds.append((key, rows))
            elif rows[0].size <= 4096:
                vectors[key] = rows.reshape(len(rows), -1)
        kept = str(source.dtype(key))
        ranges.append([key, spec.kind, str(tuple(spec.shape)), kept, f"{low:.4g}", f"{high:.4g}"])
    seen = [_cloud(f"cloud{k}", rows) for k, (_, rows) in enumerate(clouds)]
    canvases = [
        _figure(f'<canvas id="cloud{k}"></canvas>', f"{key}, {rows.shape[1]} points")
        for k, (key, rows) in enumerate(clouds)
    ]
    good = vectors["success"][:, 0] > 0 if "success" in vectors else None
    order = sorted(vectors, key=lambda k: (k != "action", _LAST.index(k) if k in _LAST else -1))
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{source.path.name}: episode {i} of {source.n_episodes}"),
        summary=escape(_summary(source, i, stop - start, hz, good)),
        last=stop - start - 1,
        views="\n".join(films + canvases),
        plots="\n".join(plot(k, vectors[k], good) for k in order),
        table=_table(["key", "kind", "shape", "dtype", "least", "greatest"], ranges),
        facts=_table(["", ""], _facts(source, i)),
        hz=json.dumps(hz or UNKNOWN_HZ),
        n=stop - start,
        clouds=json.dumps(seen),
    )


def _film(source: Episodes, key: str, spec: FieldSpec, start: int, stop: int, hz: float) -> tuple[str, float, float]:
    """A figure, and the range of what it shows."""
    rows = source.array(key)
    blocks = [(a, b) for a, b, _ in rows.blocks(start, stop)]
    low, high = np.inf, -np.inf
    for a, b in blocks:
        block = rows.read(a, b)
        finite = block[np.isfinite(block)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        encoder = _encoder(path, spec.shape[:2], hz)
        try:
            for a, b in blocks:
                for picture in rows.read(a, b):
                    encoder.send(_bytes(picture, low, high))
            encoder.close()
        except (OSError, RuntimeError) as e:
            raise DataError(f"{source.path}: data/{key} {spec.shape} cannot be encoded as a film ({reason(e)}).") from e
        film = base64.b64encode(path.read_bytes()).decode()
    note = key if rows.dtype == np.uint8 else f"{key}, black {low:.3g} to white {high:.3g}"
    video = (
        f'<video muted playsinline preload="auto" data-key="{escape(key)}" src="data:video/mp4;base64,{film}"></video>'
    )
    return _figure(video, note), low, high


def _encoder(path: Path, size: tuple[int, ...], hz: float) -> Any:
    """Takes pictures with ``send``; yuv420p with even sides, so that every browser shows it; a key frame often."""
    import imageio_ffmpeg

    even = f"scale=w='trunc(min({MOST_PIXELS},iw)/2)*2':h=-2"
    small = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
    options: dict[str, Any] = {
        "fps": hz, "codec": "libx264", "quality": None, "macro_block_size": 1, "pix_fmt_out": "yuv420p",
        "output_params": ["-crf", "23", "-g", "10", "-vf", even if size[1] > MOST_PIXELS else small,
                          "-movflags", "+faststart"],
    }  # fmt: skip
    encoder = imageio_ffmpeg.write_frames(str(path), (size[1], size[0]), **options)
    encoder.send(None)
    return encoder


def _bytes(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W, 3) uint8 of a picture, or of depth in grey."""
    if picture.dtype != np.uint8:
        gray = (np.nan_to_num(picture.astype(np.float64), posinf=high, neginf=low) - low) / max(high - low, 1e-9)
        picture = np.clip(255 * gray, 0, 255).astype(np.uint8)
    picture = picture[..., None] if picture.ndim == 2 else picture
    channels = picture[..., :3] if picture.shape[2] >= 3 else picture[..., :1]
    return np.ascontiguousarray(np.broadcast_to(channels, (*picture.shape[:2], 3)))


def _cloud(name: str, rows: np.ndarray) -> dict[str, Any]:
    """(T, P, 3 or 6) as the page wants it: 16 bits a coordinate in one box, colours (0 to 1, or to 255) as bytes."""
    n, p, channels = rows.shape
    stride = -(-n // MOST_CLOUDS)
    kept = np.nan_to_num(rows[::stride, np.linspace(0, p - 1, min(p, MOST_POINTS)).astype(int)].astype(np.float64))
    xyz = kept[..., :3]
    low, span = xyz.min((0, 1)), np.ptp(xyz, (0, 1))
    scaled = np.round((xyz - low) / np.where(span > 0, span, 1) * 65535).astype("<u2")
    out = {"id": name, "count": kept.shape[1], "frames": len(kept), "stride": stride, "span": span.tolist()}
    colors = None
    if channels == 6:
        c = kept[..., 3:]
        colors = _base64(np.clip(c * (255 if c.max() <= 1 else 1), 0, 255).astype(np.uint8))
    return {**out, "points": _base64(scaled), "colors": colors}


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _figure(inner: str, caption: str) -> str:
    return f"<figure>{inner}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line(head, 'th') if any(head) else ''}{''.join(line(r, 'td') for r in rows)}</table>"


def _summary(source: Episodes, i: int, n: int, hz: float, good: np.ndarray | None) -> str:
    name = source.task.name if source.task else source.path.name
    seconds = f"{n / hz:.1f} s at {hz:g} steps per second" if hz else f"rate unknown, shown at {UNKNOWN_HZ:g} a second"
    parts = [name, *_texts(source, i), f"{n} steps, {seconds}"]
    if good is not None:
        parts.append(f"success from step {int(good.argmax())} on" if good.any() else "no success")
    if "reward" in source.keys:
        start = int(source.episode_starts[i])
        parts.append(
            f"sum of rewards {float(np.sum(source.array('reward').read(start, start + n), dtype=np.float64)):.4g}"
        )
    return " · ".join(parts)


def _texts(source: Episodes, i: int) -> list[str]:
    """What the episode was told to do."""
    texts = source.attrs.get("tasks")
    if not isinstance(texts, list) or "task_index" not in source.keys:
        return []
    found = source.array("task_index").read(int(source.episode_starts[i]), int(source.episode_ends[i]))
    return [f"“{texts[t]}”" for t in np.unique(found.astype(int)).tolist() if 0 <= t < len(texts)]


def _facts(source: Episodes, i: int) -> list[list[str]]:
    task, lengths = source.task, source.episode_ends - source.episode_starts
    rows = [
        ["path", str(source.path)],
        ["format", source.format],
        ["episodes", f"{source.n_episodes} of {lengths.min()} to {lengths.max()} steps, {source.n_steps} in all"],
    ]
    if task:
        rows += [["actions", f"in [{task.action_low:g}, {task.action_high:g}]"]]
        rows += [["environment", json.dumps(task.env_args)[:400]]] if task.env_args else []
    rows += [[n, str(source.episode_meta(n)[i].tolist())] for n in source.episode_meta_names]
    return rows + [[k, json.dumps(v)[:400]] for k, v in source.attrs.items() if k != "schema_version"]
