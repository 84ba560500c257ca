"""The weights of somebody else's file: each is taken once, by name and shape, and none may be left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data.errors import DataError


class Tensors:
    """Named tensors of a file.

    Args:
        file: for messages.
        tensors: by name.
    """

    def __init__(self, file: Path | str, tensors: Mapping[str, Tensor]):
        self.file, self._left = file, dict(tensors)

    def names(self, prefix: str = "") -> list[str]:
        """Not taken yet."""
        return [name for name in self._left if name.startswith(prefix)]

    def take(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """The tensor, as float32, or float64 where it is that.

        Args:
            name: in the file.
            shape: that it must have; None: any.

        Raises:
            DataError: it is missing (or taken), of another shape, or not finite.
        """
        if name not in self._left:
            raise DataError(f"{self.file} has no '{name}'{'' if shape is None else f', expected {tuple(shape)}'}.")
        x = self._left.pop(name)
        if shape is not None and tuple(x.shape) != tuple(shape):
            raise DataError(f"{self.file}: '{name}' is {tuple(x.shape)}, expected {tuple(shape)}.")
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise DataError(f"{self.file}: '{name}' ({x.dtype}) must be finite real numbers.")
        return x if x.dtype == torch.float64 else x.float()

    def drop(self, unwanted: Callable[[str], bool]) -> None:
        """Forgets those that nothing needs."""
        self._left = {name: x for name, x in self._left.items() if not unwanted(name)}

    def finish(self) -> None:
        """Raises DataError where something was not taken."""
        if self._left:
            names = ", ".join(f"'{name}'" for name in list(self._left)[:3])
            more = f" and {len(self._left) - 3} more" if len(self._left) > 3 else ""
            raise DataError(f"{self.file} holds weights that its configuration has no place for: {names}{more}.")


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file.

    Raises:
        DataError: it is missing, truncated or something else.
    """
    if not file.is_file():
        raise DataError(f"{file} is missing.")
    try:
        return load_file(file)
    except (OSError, SafetensorError, ValueError) as e:
        raise DataError(f"{file} cannot be read ({e}); it is corrupt.") from e


def interleaved(x: Tensor) -> Tensor:
    """Columns (x_1 .. x_K, y_1 .. y_K), as our spatial softmax has them, to (x_1, y_1, x_2, ...)."""
    return torch.stack(x.chunk(2, 1), 2).flatten(1)


def side_by_side(x: Tensor) -> Tensor:
    """Inverse of ``interleaved``."""
    return torch.cat([x[:, 0::2], x[:, 1::2]], 1)
