"""Gymnasium's observation spaces as named boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces


def kind(space: spaces.Space) -> str | None:
    """state, rgb, or None for what is not understood."""
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype or object, np.number):
        return None
    if len(space.shape) == 3 and space.shape[2] == 3 and space.dtype == np.uint8:
        return "rgb"
    return "state" if len(space.shape) == 1 else None


def flatten(space: spaces.Space, prefix: str = "") -> dict[str, spaces.Space]:
    """Leaves of an observation space by dotted name; a space without names is "state" or "rgb", or "obs"."""
    if isinstance(space, spaces.Dict):
        out: dict[str, spaces.Space] = {}
        for key, inner in space.spaces.items():
            out |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return out
    return {prefix or kind(space) or "obs": space}


def items(raw: Any, boxes: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of an observation."""
    if isinstance(raw, Mapping):
        return [item for key, v in raw.items() for item in items(v, boxes, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix or next(iter(boxes)), raw)]
