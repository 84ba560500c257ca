"""Data sets in LeRobot's three layouts, written without Deft: by the published layout, with pyarrow and PyAV."""

import json

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LENGTHS, FPS, SIZE = (7, 12, 5), 10, (48, 64)
CAMERAS = ("observation.images.top", "observation.images.wrist")
V2 = ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
      "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4")  # fmt: skip
V3 = ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
      "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")  # fmt: skip


def pictures(n, seed, size=SIZE):
    """Smooth, and each different from its neighbours: (n, H, W, 3) uint8."""
    y, x = np.mgrid[: size[0], : size[1]]
    t = np.arange(n)[:, None, None] + 13 * seed
    waves = (2 * x + 9 * t, 3 * y + 5 * t, 0 * x + 31 * t)
    return np.stack([np.abs(w % 510 - 255) for w in waves], -1).astype("u1")


def video(path, frames, fps=FPS, codec="libx264", **options):
    """With B-frames and key frames far apart, as others record; returns what it decodes to, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=fps, options={"crf": "12", "bf": "2", "g": "9", **options})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return decoded(path)


def decoded(path):
    """Every frame, by PyAV alone: (n, H, W, 3)."""
    with av.open(str(path)) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])


def rows_of(lengths=LENGTHS):
    """{feature: (T of all, *shape)} without the cameras."""
    rng, n = np.random.default_rng(0), sum(lengths)
    step = np.concatenate([np.arange(k) for k in lengths])
    return {
        "observation.state": rng.normal(size=(n, 3)).astype("f4"),
        "observation.grid": rng.normal(size=(n, 2, 4)).astype("f8"),
        "action": rng.uniform(-1, 1, (n, 2)).astype("f4"),
        "next.reward": rng.normal(size=n).astype("f4"),
        "next.done": np.concatenate([np.arange(k) == k - 1 for k in lengths]),
        "timestamp": (step / FPS).astype("f4"),
        "frame_index": step,
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(n),
        "task_index": np.repeat(np.arange(len(lengths)) % 2, lengths),
    }


def write_rows(path, rows, groups=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {}
    for key, value in rows.items():
        kind = pa.from_numpy_dtype(value.dtype)
        for _ in value.shape[1:]:
            kind = pa.list_(kind)
        columns[key] = pa.array(value.tolist(), kind)
    table = pa.table(columns)
    pq.write_table(table, path, row_group_size=-(-len(table) // groups))


def lerobot_folder(root, version="v3.0", lengths=LENGTHS):
    """A data set at ``root``; returns {feature: rows} as they are to be read, the cameras' decoded independently."""
    rows, ends, n = rows_of(lengths), np.cumsum(lengths), len(lengths)
    data_path, video_path = V3 if version == "v3.0" else V2
    features = {k: {"dtype": v.dtype.name, "shape": list(v.shape[1:]) or [1], "names": None} for k, v in rows.items()}
    for camera in CAMERAS:
        features[camera] = {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channel"]}
    features["note"] = {"dtype": "string", "shape": [1], "names": None}
    info = {
        "codebase_version": version, "robot_type": "so100", "total_episodes": n, "total_frames": int(ends[-1]),
        "total_tasks": 2, "chunks_size": 2 if version != "v3.0" else 1000, "fps": FPS,
        "splits": {"train": f"0:{n - 1}", "valid": f"{n - 1}:{n}"},
        "data_path": data_path, "video_path": video_path, "features": features,
    }  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    spans, tasks = [(e - k, e) for e, k in zip(ends, lengths, strict=True)], ["pick", "place"]
    shown = {k: [] for k in CAMERAS}
    rows["note"] = np.array(["x"] * int(ends[-1]), dtype=object)

    def part(a, b):
        return {k: v[a:b] for k, v in rows.items() if k != "note"}

    if version != "v3.0":
        for i, (a, b) in enumerate(spans):
            at = {"episode_chunk": i // 2, "episode_index": i}
            write_rows(root / data_path.format(**at), part(a, b))
            for seed, k in enumerate(CAMERAS):
                shown[k].append(video(root / video_path.format(**at, video_key=k), pictures(b - a, seed + i)))
        texts = {
            "tasks": [{"task_index": i, "task": t} for i, t in enumerate(tasks)],
            "episodes": [{"episode_index": i, "tasks": [tasks[i % 2]], "length": k} for i, k in enumerate(lengths)],
        }
        for name, lines in texts.items():
            (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:  # rows in two files, frames in other two: the first of the wrist camera holds two episodes, of the top all
        cut = spans[-1][0]
        write_rows(root / data_path.format(chunk_index=0, file_index=0), part(0, cut), groups=3)
        write_rows(root / data_path.format(chunk_index=0, file_index=1), part(cut, int(ends[-1])))
        pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": tasks}), root / "meta/tasks.parquet")
        table = {
            "episode_index": list(range(n)), "length": list(lengths), "tasks": [[tasks[i % 2]] for i in range(n)],
            "dataset_from_index": [a for a, _ in spans], "dataset_to_index": [int(b) for _, b in spans],
            "data/chunk_index": [0] * n, "data/file_index": [0] * (n - 1) + [1],
        }  # fmt: skip
        for seed, k in enumerate(CAMERAS):
            last = seed  # the second camera's last episode has a file of its own
            places = [int(last and i == n - 1) for i in range(n)]
            for f in sorted(set(places)):
                count = sum(k for k, p in zip(lengths, places, strict=True) if p == f)
                at = video_path.format(chunk_index=0, file_index=f, video_key=k)
                shown[k].append(video(root / at, pictures(count, seed + f)))
            starts = [0.0 if places[i] else a / FPS for i, (a, _) in enumerate(spans)]
            table |= {
                f"videos/{k}/chunk_index": [0] * n, f"videos/{k}/file_index": places,
                f"videos/{k}/from_timestamp": starts,
                f"videos/{k}/to_timestamp": [s + k / FPS for s, k in zip(starts, lengths, strict=True)],
            }  # fmt: skip
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.table(table), root / "meta/episodes/chunk-000/file-000.parquet")
    del rows["note"]
    return {**rows, **{k: np.concatenate(v) for k, v in shown.items()}}
