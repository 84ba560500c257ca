"""What an unfinished conversion was asked for: it goes on only where the same is asked again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from data.source import Episodes
from data.zarr_write import write_json


def request(source: Episodes, format: str) -> dict[str, str]:
    """What the output depends on, {what: digest}: changes with the source's files and with the options."""
    task = source.task.to_dict() if source.task else None
    numbers = {n: source.episode_meta(n).tolist() for n in source.episode_meta_names}
    parts: dict[str, Any] = {
        "path": str(source.path.resolve()),
        "format": format,
        "episodes": source.episode_ends.tolist(),
        "numbers of the episodes": numbers,
        "task": [task, source.attrs],
    }
    parts |= {f"data/{k}": [str(source.dtype(k)), source.array(k).stamps()] for k in source.keys}
    digest = {
        k: hashlib.sha256(json.dumps(v, sort_keys=True, default=str).encode()).hexdigest() for k, v in parts.items()
    }
    return {k: v[:16] for k, v in digest.items()}


def begin(path: Path, wanted: dict[str, str]) -> None:
    """Writes the journal of a new conversion."""
    write_json(path, wanted)


def changes(path: Path, wanted: dict[str, str]) -> list[str] | None:
    """What is asked for otherwise than in the journal at ``path``; None where there is none that can be read."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return [k for k in sorted({*known, *wanted}) if known.get(k) != wanted.get(k)]
