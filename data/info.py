"""What a data set holds. See ``--help``."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from data.command import READING, READING_HELP, Bar, options, run_command, table
from data.errors import ConfigError
from data.opening import open_with
from data.source import Episodes
from data.survey import Survey, size_on_disk, survey

USAGE = f"""python -m data.info PATH [json=true] [key=value ...]

Episodes, lengths, rate, arrays with their ranges, size, and what is wrong with them (told in full by data.check).
PATH is a data set of any format: Deft's, Diffusion Policy's or UMI's zarr (directory or .zip), robomimic's HDF5,
LeRobot's folder (v2.0, v2.1, v3.0).

Options (key=value):
  json: false    one JSON object instead
{READING_HELP}"""


def summary(source: Episodes, found: Survey) -> dict[str, object]:
    """JSON-ready."""
    lengths = source.episode_ends - source.episode_starts
    task = source.task
    observed = set(task.obs) if task else set()
    role = {k: "action" if k == "action" else "observation" if k in observed else "extra" for k in source.keys}
    masks = [n for n in source.episode_meta_names if n.startswith("mask_")]
    return {
        "path": str(source.path),
        "format": source.format,
        "task": task.name if task else None,
        "episodes": source.n_episodes,
        "steps": source.n_steps,
        "lengths": [int(f(lengths)) for f in (np.min, np.median, np.max)] if len(lengths) else [],
        "control_hz": task.control_hz if task else 0.0,
        "action_range": [task.action_low, task.action_high] if task else None,
        "environment": str(task.env_args.get("suite")) if task and "suite" in task.env_args else None,
        "bytes": size_on_disk(source.path),
        "masks": {n.removeprefix("mask_"): int(source.episode_meta(n).sum()) for n in masks},
        "episode_meta": [n for n in source.episode_meta_names if n not in masks],
        "keys": {
            k: {
                "role": role[k],
                "kind": f.kind,
                "shape": list(f.shape),
                "dtype": str(source.dtype(k)),
                "low": found.keys[k].low,
                "high": found.keys[k].high,
            }
            for k, f in source.fields.items()
        },
        "problems": [{"kind": p.kind, "episode": p.episode, "text": p.text} for p in found.problems],
    }


def text(s: dict) -> str:
    """``summary`` for people."""
    low, mid, high = s["lengths"] or (0, 0, 0)
    hz = f"{s['control_hz']:g} actions per second" if s["control_hz"] else "unknown (hz=... says it)"
    length = f"{low} to {high}, median {mid}" + (f" ({mid / s['control_hz']:.1f} s)" if s["control_hz"] else "")
    span = s["action_range"]
    lines = [
        f"{s['path']}: {s['format']}, {s['bytes'] / 1e6:.1f} MB",
        f"task         {s['task'] or 'none: no key is called action (keys={action: ...} says which one is)'}",
        f"environment  {s['environment'] or 'unknown: train with eval.n_episodes=0'}",
        f"episodes     {s['episodes']} of {length} steps; {s['steps']} steps",
        f"rate         {hz}",
        *([f"actions      in [{span[0]:g}, {span[1]:g}]"] if span else []),
        *(["masks        " + ", ".join(f"{k} ({n})" for k, n in s["masks"].items())] if s["masks"] else []),
        *(["per episode  " + ", ".join(s["episode_meta"])] if s["episode_meta"] else []),
        "",
    ]
    rows: list[tuple[str, ...]] = [("key", "", "kind", "shape", "dtype", "least", "greatest")]
    for key, k in s["keys"].items():
        ends = [f"{k[e]:.4g}" if k[e] is not None else "-" for e in ("low", "high")]
        rows.append((key, k["role"], k["kind"], str(tuple(k["shape"])), k["dtype"], *ends))
    kinds: dict[str, set[int]] = {}
    for p in s["problems"]:
        kinds.setdefault(p["kind"], set()).add(p["episode"])
    told = [f"{kind} ({'all' if -1 in e else len(e)} of {s['episodes']} episodes)" for kind, e in kinds.items()]
    lines += [
        table(rows),
        "",
        "problems: " + (", ".join(told) + f"; python -m data.check {s['path']}" if told else "none"),
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    paths = [w for w in argv if "=" not in w]
    if len(paths) != 1:
        raise ConfigError(f"Which data set? Give one path, got {len(paths)}.")
    given = options([w for w in argv if "=" in w], {"json": False, **READING})
    source = open_with(paths[0], given)
    bar = Bar("looking at episodes", source.n_episodes) if source.n_steps > 20_000 else None
    found = summary(source, survey(source, bar.update if bar else lambda done: None))
    print(json.dumps(found) if given["json"] else text(found))
    return 0


if __name__ == "__main__":
    run_command(main, USAGE)
