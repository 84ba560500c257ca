"""Decisions and weights as plain data (``real_robot.remote.codec``), and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algos.explorer import Decision
from data.errors import DataError


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copies that no update changes."""
    return {name: x.detach().cpu().numpy().copy() for name, x in tensors.items()}


def tensors(of: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Inverse of ``arrays``."""
    return {name: torch.from_numpy(np.array(x)) for name, x in of.items()}


def plain(decision: Decision) -> dict[str, Any]:
    """Arrays, and maps of arrays."""
    columns = decision._asdict()
    maps = {name: arrays(x) for name, x in columns.items() if isinstance(x, dict)}
    return {**arrays({name: x for name, x in columns.items() if name not in maps}), **maps}


def decision_of(message: Mapping[str, Any]) -> Decision:
    """Inverse of ``plain``. Raises DataError where it is none."""
    if set(message) != set(Decision._fields):
        raise DataError(f"a decision of {sorted(message)}; expected {sorted(Decision._fields)}")
    maps: dict[str, Any] = {name: tensors(x) for name, x in message.items() if isinstance(x, dict)}
    return Decision(**tensors({name: x for name, x in message.items() if name not in maps}), **maps)


def size(decision: Mapping[str, Any]) -> int:
    """Bytes of its arrays."""
    return sum(size(x) if isinstance(x, dict) else x.nbytes for x in decision.values())


def same(a: Mapping[str, Any] | None, b: Mapping[str, Any]) -> bool:
    """Whether two maps of maps of arrays are equal."""
    return a is not None and all(np.array_equal(x, a[part][name]) for part in b for name, x in b[part].items())
