"""What a LeRobot data set says of itself, in the layouts of v2.0, v2.1 and v3.0.

    meta/info.json                          codebase_version, fps, features, totals, patterns of the files' paths
    meta/tasks.jsonl                        v2: {"task_index": 0, "task": "..."} a line
    meta/episodes.jsonl                     v2: {"episode_index": 0, "length": 120, "tasks": [...]} a line
    meta/tasks.parquet                      v3: task_index, and the text as the table's index
    meta/episodes/chunk-000/file-000.parquet
                                            v3: one row an episode: where its rows and its frames lie
    data/, videos/                          v2: a file an episode; v3: files of many episodes

Statistics (meta/stats.json, meta/episodes_stats.jsonl, columns stats/*) are not needed to read it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.formats.parquet_rows import numbers, open_parquet, read_column
from data.zarr_read import REPAIR, reason

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
MAX_JSON = 1 << 28
MAX_EPISODES = 10_000_000
_PLACE = re.compile(r"\{(episode_chunk|episode_index|chunk_index|file_index|video_key)(:0?\d?\d?d)?\}")
_FEATURE = re.compile(r"[A-Za-z0-9_][^/\\\x00]{0,200}")


@dataclass
class Feature:
    """One entry of ``features``: its dtype ("video", "image", "float32", ...), shape of a step, the rest of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    more: dict[str, Any]


@dataclass
class Outline:
    """Where everything lies.

    Attributes:
        info: meta/info.json.
        features: by name.
        fps: steps per second.
        tasks: texts by task_index; "" for a number that none has.
        ends: (n_episodes,) exclusive ends.
        files: parquet files in the order of their rows, with ``file_ends`` (n_files,) exclusive.
        videos: {feature: (each episode's file, (n_episodes,) seconds at which it starts there)}.
        numbers: {name: (n_episodes, ...)} that Deft has written.
    """

    info: dict[str, Any]
    features: dict[str, Feature]
    fps: float
    tasks: list[str]
    ends: np.ndarray
    files: list[Path]
    file_ends: np.ndarray
    videos: dict[str, tuple[list[Path], np.ndarray]]
    numbers: dict[str, np.ndarray] = field(default_factory=dict)


def read_outline(path: Path) -> Outline:
    """Of the data set in the folder ``path``. Raises DataError, naming file and key."""
    info = read_json(path / INFO)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise DataError(
            f"{path / INFO}: codebase_version is {version!r}; this Deft reads {', '.join(VERSIONS)}. Convert older "
            "data sets with LeRobot's own scripts."
        )
    features, fps = _features(path, info), info.get("fps")
    if not isinstance(fps, (int, float)) or not 0 < fps < 1e6:
        raise DataError(f"{path / INFO}: fps is {fps!r}, expected frames per second.")
    cameras = [f.name for f in features.values() if f.dtype == "video"]
    read = _read_v3 if version == "v3.0" else _read_v2
    out = read(path, info, cameras)
    out.features, out.fps = features, float(fps)
    for name, have in (("total_episodes", len(out.ends)), ("total_frames", int(out.ends[-1]))):
        if info.get(name, have) != have:
            raise DataError(
                f"{path / INFO}: {name} is {info[name]!r}, but the episodes listed in meta/ make {have}. "
                f"The data set is half-written or half-copied. {REPAIR}"
            )
    for file in dict.fromkeys([*out.files, *(f for files, _ in out.videos.values() for f in files)]):
        if not file.is_file():
            raise DataError(f"{file} is missing, though meta/ lists it. {REPAIR}")
    return out


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError."""
    value = _parsed(path, _text(path))
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object.")
    return value


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JSON:
            raise DataError(f"{path} has {path.stat().st_size} bytes; metadata has megabytes.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read ({reason(e)}). {REPAIR}") from e


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path} is not JSON ({reason(e)}). It is cut off or corrupt. {REPAIR}") from e


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = [_parsed(path, line) for line in _text(path).splitlines() if line.strip()]
    if not all(isinstance(r, dict) for r in rows):
        raise DataError(f"{path}: expected a JSON object a line.")
    return rows


def _features(path: Path, info: dict[str, Any]) -> dict[str, Feature]:
    found, out = info.get("features"), {}
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path / INFO}: no features; expected {{name: {{dtype, shape}}}}.")
    for name, feature in found.items():
        given = feature.get("shape") if isinstance(feature, dict) else None
        shape: list[int] = given if isinstance(given, list) else []
        fits = bool(shape) and all(type(n) is int and n > 0 for n in shape)
        if not _FEATURE.fullmatch(name) or not fits or not isinstance(feature.get("dtype"), str):
            raise DataError(
                f"{path / INFO}: feature {name!r} is {str(feature)[:120]}; expected {{dtype: ..., shape: [...]}} and a "
                "name without slashes."
            )
        if math.prod(shape) > 1 << 28:
            raise DataError(f"{path / INFO}: feature '{name}' claims {math.prod(shape):.1e} numbers a step {shape}.")
        out[name] = Feature(name, feature["dtype"], tuple(shape), feature)
    return out


def _place(path: Path, info: dict[str, Any], name: str, **values: int | str) -> Path:
    """A file by the pattern ``info[name]``, inside the data set."""
    pattern = info.get(name)
    if not isinstance(pattern, str) or "{" in _PLACE.sub("", pattern) or len(pattern) > 500:
        raise DataError(f"{path / INFO}: {name} is {pattern!r}, expected the pattern of a path.")
    try:
        place = path / pattern.format(**values)
    except (KeyError, ValueError, IndexError) as e:
        raise DataError(f"{path / INFO}: {name} is {pattern!r} ({reason(e)}); expected {sorted(values)}.") from e
    if ".." in place.parts or Path(pattern).is_absolute():
        raise DataError(f"{path / INFO}: {name} leads out of the data set: {place}.")
    return place


def _tasks(path: Path, rows: list[tuple[Any, Any]]) -> list[str]:
    found = {i: t for i, t in rows if type(i) is int and isinstance(t, str) and 0 <= i < MAX_EPISODES}
    if len(found) != len(rows) or (found and max(found) > 10 * len(found) + 1000):
        raise DataError(f"{path}: expected one text for each task_index from 0 on, got {str(rows)[:120]}.")
    return [found.get(i, "") for i in range(max(found, default=-1) + 1)]


def _read_v2(path: Path, info: dict[str, Any], cameras: list[str]) -> Outline:
    place = path / "meta/episodes.jsonl"
    rows = _lines(place)
    size = info.get("chunks_size", 1000)
    if type(size) is not int or size < 1:
        raise DataError(f"{path / INFO}: chunks_size is {size!r}, expected episodes a folder.")
    lengths, at = [], []
    for i, row in enumerate(rows):
        n, number = row.get("length"), row.get("episode_index")
        if type(n) is not int or type(number) is not int or n < 1 or not 0 <= number < MAX_EPISODES:
            raise DataError(f"{place}: line {i + 1} is {str(row)[:120]}; expected an episode_index and a length >= 1.")
        lengths.append(n)
        at.append({"episode_index": number, "episode_chunk": number // size})
    ends = _ends(place, lengths)
    tasks = path / "meta/tasks.jsonl"
    return Outline(
        info, {}, 0.0,
        _tasks(tasks, [(r.get("task_index"), r.get("task")) for r in _lines(tasks)]),
        ends, [_place(path, info, "data_path", **a) for a in at], ends,
        {k: ([_place(path, info, "video_path", video_key=k, **a) for a in at], np.zeros(len(at))) for k in cameras},
        _numbers(place, [r.get("deft") for r in rows]),
    )  # fmt: skip


def _read_v3(path: Path, info: dict[str, Any], cameras: list[str]) -> Outline:
    folder = path / "meta/episodes"
    places = sorted(folder.glob("*/*.parquet"))
    if not places:
        raise DataError(f"{folder} holds no parquet files; expected chunk-000/file-000.parquet with the episodes.")
    wanted = ["length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
    found = _table(places, [*wanted, *(f"videos/{k}/{n}" for k in cameras for n in ("chunk_index", "file_index"))])
    starts = _table(places, [f"videos/{k}/from_timestamp" for k in cameras], np.float64)
    length, first = found["length"], found["dataset_from_index"]
    ends = _ends(folder, length.tolist())
    wrong = (found["dataset_to_index"] != ends) | (first != ends - length)
    if wrong.any():
        i = int(wrong.argmax())
        raise DataError(
            f"{folder}: episode {i} is rows {first[i]} to {found['dataset_to_index'][i]} (dataset_from_index, "
            f"dataset_to_index), expected {ends[i] - length[i]} to {ends[i]}, after the episodes before it."
        )

    def pairs(prefix: str) -> list[tuple[int, int]]:
        return list(zip(found[f"{prefix}/chunk_index"].tolist(), found[f"{prefix}/file_index"].tolist(), strict=True))

    def place(name: str, chunk: int, file: int, **more: str) -> Path:
        return _place(path, info, name, chunk_index=chunk, file_index=file, **more)

    rows = pairs("data")
    last = [i for i in range(len(rows)) if i + 1 == len(rows) or rows[i] != rows[i + 1]]
    videos = {}
    for k in cameras:
        files = {p: place("video_path", *p, video_key=k) for p in set(pairs(f"videos/{k}"))}
        videos[k] = ([files[p] for p in pairs(f"videos/{k}")], starts[f"videos/{k}/from_timestamp"])
    return Outline(
        info, {}, 0.0, _tasks_v3(path / "meta/tasks.parquet"), ends,
        [place("data_path", *rows[i]) for i in last], ends[last], videos, _deft_columns(places),
    )  # fmt: skip


def _ends(place: Path, lengths: list[int]) -> np.ndarray:
    if not lengths or min(lengths) < 1 or sum(lengths) > 1 << 40:
        raise DataError(f"{place}: expected episodes of one step and more, got lengths {str(lengths)[:80]}.")
    return np.cumsum(np.array(lengths, np.int64))


def _table(places: list[Path], columns: list[str], dtype: type = np.int64) -> dict[str, np.ndarray]:
    """Columns of scalars of the episodes' parquet files, (n_episodes,)."""
    parts: dict[str, list[np.ndarray]] = {c: [] for c in columns}
    for place in places:
        with open_parquet(place) as file:
            if file.metadata.num_rows > MAX_EPISODES:
                raise DataError(f"{place} claims {file.metadata.num_rows} episodes.")
            for group in range(file.metadata.num_row_groups):
                n = file.metadata.row_group(group).num_rows
                for column in columns:
                    array = read_column(file, place, group, column, n)
                    parts[column].append(numbers(array, (n,), np.dtype(dtype), f"{place}: column '{column}'"))
    return {c: np.concatenate(v) if v else np.empty(0, dtype) for c, v in parts.items()}


def _tasks_v3(place: Path) -> list[str]:
    with open_parquet(place) as file:
        names, rows = file.schema_arrow.names, []
        text = next((n for n in ("task", "__index_level_0__", *names) if n in names and n != "task_index"), "task")
        for group in range(file.metadata.num_row_groups):
            columns = [read_column(file, place, group, name).to_pylist() for name in ("task_index", text)]
            rows += zip(*columns, strict=True)
    return _tasks(place, rows)


def _deft_columns(places: list[Path]) -> dict[str, np.ndarray]:
    """Columns deft/<name>: JSON texts."""
    out: dict[str, list[Any]] = {}
    for place in places:
        with open_parquet(place) as file:
            if "deft" not in file.schema_arrow.names:
                return {}
            for group in range(file.metadata.num_row_groups):
                for text in read_column(file, place, group, "deft").to_pylist():
                    out.setdefault("rows", []).append(_parsed(place, text) if isinstance(text, str) else None)
    return _numbers(places[0], out.get("rows", []))


def _numbers(place: Path, rows: list[Any]) -> dict[str, np.ndarray]:
    """What Deft adds to an episode: {name: [dtype, numbers]}."""
    if not rows or not all(isinstance(r, dict) for r in rows):
        return {}
    try:
        return {
            name: np.stack([np.array(r[name][1], dtype=np.dtype(str(rows[0][name][0]))) for r in rows])
            for name in rows[0]
        }
    except Exception as e:
        raise DataError(f"{place}: what Deft has added to the episodes (deft) cannot be read: {reason(e)}.") from e
