"""torch's zip checkpoints without running what is in them.

A pickle is a program that may import and call anything. This reading of one imports nothing: tensors, dicts, lists,
numbers and strings are built, and everything else, whatever it is called, becomes an inert ``Stand``. Tensors are read
from the archive when they are asked for.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import DataError

LARGEST_PICKLE = 1 << 28  # bytes; the tensors are beside it
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class Stand:
    """In place of an object of any class: takes whatever a pickle does to one, and does nothing.

    Attributes:
        called: "module.name" of the class or function.
        state: what the object would have been restored from.
    """

    called = ""
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Stand:
        """Whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any) -> Stand:
        """Another."""
        return Stand(*args)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Forgotten."""

    def extend(self, values: Any) -> None:
        """Forgotten."""

    def __hash__(self) -> int:
        return id(self)


class _Dict(dict):
    """A dict that a pickle can hang nothing on."""

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    size: int


@dataclass(frozen=True)
class TensorAt:
    """A tensor that has not been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorAt | Stand:
    whole = isinstance(storage, _Storage) and isinstance(offset, int) and offset >= 0
    for sizes in (shape, stride):
        whole = whole and isinstance(sizes, tuple) and all(isinstance(n, int) and n >= 0 for n in sizes)
    if not whole or len(shape) != len(stride):
        raise pickle.UnpicklingError("a tensor that makes no sense")
    return TensorAt(storage, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


BUILDERS = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): _Dict,
    ("builtins", "dict"): _Dict,
    ("builtins", "list"): list,
    ("builtins", "int"): int,
    ("builtins", "set"): set,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Never an import."""
        plain = {"__builtin__": "builtins"}.get(module, module)
        if (plain, name) in BUILDERS:
            return BUILDERS[plain, name]
        return type("Stand", (Stand,), {"called": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        """("storage", class, key, device, size)."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[2], str)):
            raise pickle.UnpicklingError(f"an unknown reference {pid!r:.60}")
        dtype = STORAGES.get(getattr(pid[1], "called", "").removeprefix("torch."))
        if dtype is None or not isinstance(pid[4], int) or pid[4] < 0:
            raise pickle.UnpicklingError("a storage of unknown kind")
        return _Storage(dtype, pid[2], pid[4])


class Archive:
    """A checkpoint of ``torch.save``.

    Args:
        file: of torch 1.6 or later.

    Attributes:
        content: what was saved, made of dicts, lists, plain values, ``TensorAt`` and ``Stand``.

    Raises:
        DataError: it is truncated, compressed, or no such file.
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            self._zip = zipfile.ZipFile(file)
            found = [i for i in self._zip.infolist() if i.filename.split("/")[-1] == "data.pkl"]
            if len(found) != 1 or found[0].file_size > LARGEST_PICKLE:
                raise DataError(f"{file} is not as torch.save writes it: one data.pkl is expected, found {len(found)}.")
            self._root = found[0].filename.removesuffix("data.pkl")
            self.content: Any = _Unpickler(io.BytesIO(self._read(found[0].filename, found[0].file_size))).load()
        except DataError:
            raise
        except Exception as e:  # hostile bytes raise whatever they like
            raise DataError(f"{file} cannot be read as a torch checkpoint ({type(e).__name__}: {e}).") from e

    def _read(self, name: str, size: int) -> bytes:
        try:
            info = self._zip.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != size:
                raise DataError(
                    f"{self.file}: '{name}' holds {info.file_size} bytes, or is compressed; expected {size}."
                )
            return self._zip.read(name)
        except (KeyError, zipfile.BadZipFile, OSError, EOFError) as e:
            raise DataError(f"{self.file}: '{name}' is missing or damaged ({e}).") from e

    def tensor(self, at: TensorAt) -> Tensor:
        """Read from the archive.

        Raises:
            DataError: its bytes are missing, or it reaches beyond them.
        """
        storage = at.storage
        last = at.offset + sum((n - 1) * s for n, s in zip(at.shape, at.stride, strict=True))
        if math.prod(at.shape) == 0:
            return torch.empty(at.shape, dtype=storage.dtype)
        if last >= storage.size or math.prod(at.shape) > storage.size:
            raise DataError(f"{self.file}: a tensor {at.shape} reaches beyond its {storage.size} numbers.")
        data = self._read(f"{self._root}data/{storage.key}", storage.size * storage.dtype.itemsize)
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return flat.as_strided(at.shape, at.stride, at.offset).clone()

    def tensors(self, named: Any, where: str) -> dict[str, Tensor]:
        """All of a state dict."""
        if not isinstance(named, Mapping) or not all(isinstance(x, TensorAt) for x in named.values()):
            raise DataError(f"{self.file}: '{where}' is no dictionary of tensors.")
        return {str(name): self.tensor(x) for name, x in named.items()}


def plain_config(value: Any, depth: int = 0) -> Any:
    """OmegaConf's containers as dicts and lists; what they hold of other classes stays a ``Stand``."""
    if depth > 50:
        raise DataError("The configuration is nested too deeply.")
    if isinstance(value, Stand) and value.called.startswith("omegaconf.") and isinstance(value.state, Mapping):
        return plain_config(value.state.get("_content", value.state.get("_val")), depth + 1)
    if isinstance(value, Mapping):
        return {str(k): plain_config(v, depth + 1) for k, v in value.items()}
    return [plain_config(v, depth + 1) for v in value] if isinstance(value, list | tuple) else value
