"""Arrays along time that lie in the columns of parquet files, one file after the other."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.source import Rows
from data.zarr_read import REPAIR, reason

MAX_GROUP = 1 << 30  # bytes that a column of a row group may unpack to


def open_parquet(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``. Raises DataError: pyarrow is not installed, or no parquet file."""
    try:
        import pyarrow.parquet as pq
    except ImportError as e:
        raise DataError(f"{path} is a parquet file; reading it needs pyarrow: pip install 'deft[lerobot]'.") from e
    try:
        return pq.ParquetFile(path, memory_map=False)
    except Exception as e:
        raise DataError(f"{path} cannot be opened as parquet ({reason(e)}). It is cut off or corrupt. {REPAIR}") from e


def read_column(file: Any, path: Path, group: int, name: str, n_values: int | None = None) -> Any:
    """Column ``name`` of row group ``group`` as a ``pyarrow.Array``.

    Args:
        file: from ``open_parquet``.
        path: for messages.
        group: number of the row group.
        name: of the column.
        n_values: how many numbers it must hold, where that is known.

    Raises:
        DataError: no such column, one that claims more than ``MAX_GROUP`` bytes or another number of values, or one
            that cannot be decoded.
    """
    import pyarrow as pa

    names = list(file.schema_arrow.names)
    if name not in names:
        raise DataError(f"{path} has no column '{name}', only {names}.")
    try:
        meta = file.metadata.row_group(group)
        leaves = [meta.column(i) for i in range(meta.num_columns)]
        mine = [c for c in leaves if _owner(c.path_in_schema, names) == name]
        size, values = sum(c.total_uncompressed_size for c in mine), max((c.num_values for c in mine), default=0)
    except Exception as e:
        raise DataError(f"{path}: row group {group} cannot be read ({reason(e)}). {REPAIR}") from e
    if size > MAX_GROUP or size < 0 or values > MAX_GROUP // 8:
        raise DataError(
            f"{path}: row group {group} claims {size / 1e9:.1f} GB and {values} values in column '{name}'; expected "
            "1 GB at most. It is corrupt, or made to exhaust memory."
        )
    if n_values is not None and values != n_values:
        raise DataError(
            f"{path}: column '{name}' holds {values} values in row group {group}, expected {n_values}. {REPAIR}"
        )
    try:
        found = file.read_row_group(group, columns=[name], use_threads=False).column(name)
        array = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0) if array.num_chunks else pa.array([], found.type)
        return array.storage if isinstance(array, pa.ExtensionArray) else array
    except Exception as e:
        raise DataError(
            f"{path}: column '{name}' cannot be decoded in row group {group} ({reason(e)}). The file is cut off or "
            f"corrupt. {REPAIR}"
        ) from e


def _owner(path: str, names: Sequence[str]) -> str:
    """The top-level column that a leaf belongs to; names may hold dots."""
    return max((n for n in names if path == n or path.startswith(f"{n}.")), key=len, default="")


class ColumnRows(Rows):
    """A column of numbers, or of lists of them."""

    def __init__(
        self, files: Sequence[Path], ends: np.ndarray, column: str, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        """Nothing is read yet.

        Args:
            files: one after the other.
            ends: (n_files,) exclusive ends of their rows.
            column: in all of them.
            shape: of one time step.
            dtype: as it is shown; the files may hold numbers of the same kind in another width.
        """
        self._files, self._ends, self._column = list(files), ends, column
        self.name = f"{files[0].parent.parent}: {column}"
        self.shape, self.dtype = (int(ends[-1]), *shape), np.dtype(dtype)
        self._last: tuple[tuple[int, int], Any] | None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""
        out = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        at, i = start, int(np.searchsorted(self._ends, start, side="right"))
        while at < stop:
            first, upto = int(self._ends[i - 1]) if i else 0, min(stop, int(self._ends[i]))
            for a, values in self._of_file(i, at - first, upto - first):
                out[first + a - start : first + a - start + len(values)] = values
            at, i = upto, i + 1
        return out

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places, each row group decoded once."""
        wanted, back = np.unique(rows, return_inverse=True)
        return super().gather(wanted)[back]

    def stamps(self) -> list[Any]:
        """The files' sizes and times of change, and what is read of them."""
        stats = [f.stat() for f in self._files]
        return [self._column, self.shape, str(self.dtype), [[s.st_size, s.st_mtime_ns] for s in stats]]

    def _of_file(self, i: int, start: int, stop: int) -> list[tuple[int, np.ndarray]]:
        """(row, values) of each row group's part in rows [start, stop) of file ``i``."""
        path, n_rows = self._files[i], int(self._ends[i]) - (int(self._ends[i - 1]) if i else 0)
        with open_parquet(path) as file:
            if file.metadata.num_rows != n_rows:
                raise DataError(
                    f"{path} has {file.metadata.num_rows} rows, but its episodes have {n_rows} steps. "
                    f"It is half-written, or does not belong to this data set. {REPAIR}"
                )
            out, first = [], 0
            for group in range(file.metadata.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if first < stop and start < end:
                    a, b = max(start, first), min(stop, end)
                    out.append((a, self._values(self._group(i, file, group, end - first), path, a - first, b - first)))
                first = end
        if first != n_rows:
            raise DataError(f"{path}: its row groups hold {first} rows, its footer says {n_rows}. {REPAIR}")
        return out

    def _group(self, i: int, file: Any, group: int, n_rows: int) -> Any:
        last = self._last  # other threads may replace it
        if last is None or last[0] != (i, group):
            self._last = last = None  # one thread never holds two groups
            last = self._last = ((i, group), self._decode(file, self._files[i], group, n_rows))
        return last[1]

    def _decode(self, file: Any, path: Path, group: int, n_rows: int) -> Any:
        """A row group as (n_rows, *shape)."""
        array = read_column(file, path, group, self._column, n_rows * math.prod(self.shape[1:]))
        return numbers(array, (n_rows, *self.shape[1:]), self.dtype, f"{path}: column '{self._column}'")

    def _values(self, decoded: Any, path: Path, start: int, stop: int) -> np.ndarray:
        return decoded[start:stop]


def numbers(array: Any, shape: tuple[int, ...], dtype: np.dtype, where: str) -> np.ndarray:
    """A ``pyarrow.Array`` of numbers or nested lists of them as ``shape``.

    Raises:
        DataError: gaps, lists of other lengths, or numbers of another kind (float, integer, bool) than ``dtype``.
    """
    import pyarrow as pa

    n = len(array)
    for size in (*shape[1:], None):
        listed = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
        listed = listed or pa.types.is_fixed_size_list(array.type)
        if array.null_count:
            raise DataError(f"{where} has {array.null_count} gaps (null); expected a value at every step.")
        if size is None or (size == 1 and not listed):
            if listed:
                raise DataError(f"{where} is {array.type}; info.json says {shape[1:]}.")
            continue
        flat = array.flatten() if listed else array
        if not listed or len(flat) != n * size or not _all_of(array, size):
            raise DataError(f"{where} is {array.type}, not lists of {size}; info.json says {shape[1:]} a step.")
        array, n = flat, n * size
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise DataError(f"{where} is {array.type}; info.json says {dtype}.")
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind.replace("u", "i") != dtype.kind.replace("u", "i"):
        raise DataError(f"{where} is {values.dtype}; info.json says {dtype}.")
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False).reshape(shape)


def _all_of(array: Any, size: int) -> bool:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(array.type):
        return array.type.list_size == size
    offsets = array.offsets.to_numpy()
    return bool((np.diff(offsets) == size).all())


class PictureRows(ColumnRows):
    """A column of encoded pictures (PNG or JPEG), {bytes, path} as Hugging Face's ``datasets`` has them."""

    def __init__(self, files: Sequence[Path], ends: np.ndarray, column: str, shape: tuple[int, ...]) -> None:
        super().__init__(files, ends, column, shape, np.dtype(np.uint8))

    def _decode(self, file: Any, path: Path, group: int, n_rows: int) -> Any:
        import pyarrow as pa

        array = read_column(file, path, group, self._column)
        if pa.types.is_struct(array.type) and array.type.get_field_index("bytes") >= 0:
            array = array.field("bytes")
        if not (pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)):
            raise DataError(f"{path}: column '{self._column}' is {array.type}, expected pictures: {{bytes, path}}.")
        if len(array) != n_rows or array.null_count:
            raise DataError(
                f"{path}: column '{self._column}' holds {len(array) - array.null_count} pictures in row group {group}, "
                f"expected {n_rows}. Pictures in files of their own cannot be read; embed them."
            )
        return array

    def _values(self, decoded: Any, path: Path, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self.shape[1:]), np.uint8)
        for i in range(start, stop):
            out[i - start] = self._picture(decoded[i].as_py(), path, i)
        return out

    def _picture(self, encoded: bytes, path: Path, row: int) -> np.ndarray:
        from PIL import Image

        height, width = self.shape[1:3]
        try:
            with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
                if image.size == (width, height):  # before anything is unpacked
                    return np.asarray(image.convert("RGB"))
                size = image.size[::-1]
        except Exception as e:
            raise DataError(
                f"{path}: picture {row} of column '{self._column}' cannot be decoded ({reason(e)}). {REPAIR}"
            ) from e
        raise DataError(
            f"{path}: picture {row} of column '{self._column}' is {size}; info.json says {(height, width)}."
        )
