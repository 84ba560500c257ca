"""The files of a LeRobot data set while it is written, in the layouts of v3.0 and v2.1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.formats.lerobot_stats import Stats, as_lists, joined
from data.formats.video_write import VideoFile, as_number
from data.zarr_write import write_json

CHUNK = 1000  # files (v3.0) or episodes (v2.1) a folder
DATA_MB, VIDEO_MB = 100, 200  # v3.0: a file that has grown to this is followed by another
_V3 = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_V2 = "chunk-{episode_chunk:03d}"


class _Files:
    version: str
    data_path: str
    video_path: str

    def __init__(self, path: Path, features: dict[str, dict[str, Any]], fps: float, pictures: str) -> None:
        """Nothing is written yet.

        Args:
            path: the new folder.
            features: of info.json.
            fps: steps per second.
            pictures: a codec, or "png".
        """
        try:
            import pyarrow
        except ImportError as e:
            raise DataError(f"Writing {path} needs pyarrow and PyAV: pip install 'deft[lerobot]'.") from e
        self._pa = pyarrow
        self.path, self.features, self._fps, self._codec = path, features, fps, pictures
        self.lengths: list[int] = []
        self.stats: list[dict[str, Stats]] = []
        self.cameras = [k for k, f in features.items() if f["dtype"] == "video"]
        self._videos: dict[str, VideoFile] = {}
        self._schema = self._pa.schema([(k, self._type(f)) for k, f in features.items() if k not in self.cameras])

    def add_frames(self, camera: str, frames: np.ndarray, first: bool) -> None:
        """(n, H, W, 3), of the episode that is added next; ``first`` where it begins."""
        if camera not in self._videos:
            file = VideoFile(self._new_video(camera), tuple(self.features[camera]["shape"]), self._fps, self._codec)
            self._videos[camera] = file
            self.features[camera]["info"] = file.described()
        self._videos[camera].append(frames, first)

    def close(self) -> None:
        """Closes what is open."""
        for camera in list(self._videos):
            self._videos.pop(camera).close()

    def abandon(self) -> None:
        """Closes what is open, in whatever state."""
        for video in self._videos.values():
            video.abandon()

    def finish(self, tasks: list[str], more: dict[str, Any]) -> None:
        """What belongs to the whole; ``more`` of info.json."""
        info = {
            "codebase_version": self.version,
            "robot_type": None,
            "total_episodes": len(self.lengths),
            "total_frames": sum(self.lengths),
            "total_tasks": len(tasks),
            "chunks_size": CHUNK,
            "fps": as_number(self._fps),
            "data_path": self.data_path,
            "video_path": self.video_path if self.cameras else None,
            **self._info(),
            **more,
            "features": self.features,
        }
        whole = {k: joined([s[k] for s in self.stats]) for k in self.features}
        self._meta(tasks, whole)
        write_json(self.path / "meta" / "info.json", info)

    def _table(self, columns: dict[str, Any]) -> Any:
        arrays = []
        for field in self._schema:
            value = columns[field.name]
            shape = self.features[field.name]["shape"]
            if isinstance(value, np.ndarray) and len(shape) == 1 and value.ndim == 2 and shape != [1]:
                flat = self._pa.array(value.reshape(-1))
                arrays.append(self._pa.FixedSizeListArray.from_arrays(flat, shape[0]))
            elif isinstance(value, np.ndarray):
                flat = value.reshape(-1) if shape == [1] else value.tolist()
                arrays.append(self._pa.array(flat, type=field.type))
            else:
                arrays.append(self._pa.array(value, type=field.type))
        return self._pa.table(arrays, schema=self._schema)

    def _type(self, feature: dict[str, Any]) -> Any:
        pa, shape = self._pa, feature["shape"]
        if feature["dtype"] == "image":
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        number = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
        if len(shape) == 1:
            return number if shape == [1] else pa.list_(pa.field("element", number), shape[0])
        for _ in shape:
            number = pa.list_(pa.field("element", number))
        return number

    def _info(self) -> dict[str, Any]:
        raise NotImplementedError

    def _new_video(self, camera: str) -> Path:
        raise NotImplementedError

    def _meta(self, tasks: list[str], whole: dict[str, Stats]) -> None:
        raise NotImplementedError


class FilesV3(_Files):
    """Episodes one after the other in a few files."""

    version = "v3.0"
    data_path = f"data/{_V3}.parquet"
    video_path = f"videos/{{video_key}}/{_V3}.mp4"

    def __init__(self, path: Path, features: dict[str, dict[str, Any]], fps: float, pictures: str) -> None:
        super().__init__(path, features, fps, pictures)
        self._data: Any = None
        self._at = {"data": -1, **dict.fromkeys(self.cameras, -1)}  # number of the file
        self._began = dict.fromkeys(self.cameras, 0)  # frames in it before this episode
        self._rows: list[dict[str, Any]] = []

    def add_episode(
        self, columns: dict[str, Any], n: int, tasks: list[str], stats: dict[str, Stats], numbers: str | None
    ) -> None:
        """Its rows, after its frames."""
        import pyarrow.parquet as pq

        if self._data is None:
            self._at["data"] += 1
            place = self.path / self.data_path.format(**self._indices("data"))
            place.parent.mkdir(parents=True, exist_ok=True)
            self._data_file, self._data = place, pq.ParquetWriter(place, self._schema, compression="snappy")
        self._data.write_table(self._table(columns))
        start = sum(self.lengths)
        row: dict[str, Any] = {"episode_index": len(self.lengths), "tasks": tasks, "length": n}
        row |= {f"data/{k}": v for k, v in self._indices("data").items()}
        row |= {"dataset_from_index": start, "dataset_to_index": start + n}
        for camera in self.cameras:
            row |= {f"videos/{camera}/{k}": v for k, v in self._indices(camera).items()}
            end = self._videos[camera].n_frames
            row |= {
                f"videos/{camera}/from_timestamp": self._began[camera] / self._fps,
                f"videos/{camera}/to_timestamp": end / self._fps,
            }
            self._began[camera] = end
            if self._videos[camera].size >= VIDEO_MB << 20:
                self._videos.pop(camera).close()
        row |= {f"stats/{k}/{name}": v for k, s in as_lists(stats).items() for name, v in s.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._rows.append(row if numbers is None else {**row, "deft": numbers})
        self.lengths.append(n)
        self.stats.append(stats)
        if self._data_file.stat().st_size >= DATA_MB << 20:
            self._close_data()

    def close(self) -> None:
        """Closes what is open."""
        super().close()
        self._close_data()

    def _close_data(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data = None

    def _indices(self, name: str) -> dict[str, int]:
        return {"chunk_index": self._at[name] // CHUNK, "file_index": self._at[name] % CHUNK}

    def _new_video(self, camera: str) -> Path:
        self._at[camera] += 1
        self._began[camera] = 0
        return self.path / self.video_path.format(video_key=camera, **self._indices(camera))

    def _info(self) -> dict[str, Any]:
        return {"data_files_size_in_mb": DATA_MB, "video_files_size_in_mb": VIDEO_MB}

    def _meta(self, tasks: list[str], whole: dict[str, Stats]) -> None:
        import pyarrow.parquet as pq

        place = self.path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        place.parent.mkdir(parents=True)
        pq.write_table(self._pa.Table.from_pylist(self._rows), place)
        index = "__index_level_0__"  # as pandas keeps a table whose index is the text
        columns = [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
            {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object"},
        ]
        kept = {"index_columns": [index], "column_indexes": [], "columns": [{**c, "metadata": None} for c in columns]}
        table = self._pa.table({"task_index": self._pa.array(range(len(tasks)), self._pa.int64()), index: tasks})
        pq.write_table(
            table.replace_schema_metadata({"pandas": json.dumps(kept)}), self.path / "meta" / "tasks.parquet"
        )
        write_json(self.path / "meta" / "stats.json", as_lists(whole))


class FilesV2(_Files):
    """A file an episode, of rows and of each camera."""

    version = "v2.1"
    data_path = f"data/{_V2}/episode_{{episode_index:06d}}.parquet"
    video_path = f"videos/{_V2}/{{video_key}}/episode_{{episode_index:06d}}.mp4"

    def __init__(self, path: Path, features: dict[str, dict[str, Any]], fps: float, pictures: str) -> None:
        super().__init__(path, features, fps, pictures)
        self._rows: list[dict[str, Any]] = []

    def add_episode(
        self, columns: dict[str, Any], n: int, tasks: list[str], stats: dict[str, Stats], numbers: str | None
    ) -> None:
        """Its rows, after its frames."""
        import pyarrow.parquet as pq

        for camera in list(self._videos):
            self._videos.pop(camera).close()
        place = self.path / self.data_path.format(**self._indices())
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self._table(columns), place)
        row = {"episode_index": len(self.lengths), "tasks": tasks, "length": n}
        self._rows.append(row if numbers is None else {**row, "deft": json.loads(numbers)})
        self.lengths.append(n)
        self.stats.append(stats)

    def _indices(self) -> dict[str, int]:
        return {"episode_index": len(self.lengths), "episode_chunk": len(self.lengths) // CHUNK}

    def _new_video(self, camera: str) -> Path:
        return self.path / self.video_path.format(video_key=camera, **self._indices())

    def _info(self) -> dict[str, Any]:
        n = len(self.lengths)
        return {"total_videos": n * len(self.cameras), "total_chunks": -(-n // CHUNK)}

    def _meta(self, tasks: list[str], whole: dict[str, Stats]) -> None:
        stats = [{"episode_index": i, "stats": as_lists(s)} for i, s in enumerate(self.stats)]
        rows = {"episodes": self._rows, "episodes_stats": stats}
        rows["tasks"] = [{"task_index": i, "task": text} for i, text in enumerate(tasks)]
        (self.path / "meta").mkdir(parents=True, exist_ok=True)
        for name, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (self.path / "meta" / f"{name}.jsonl").write_text(text, encoding="utf-8")
