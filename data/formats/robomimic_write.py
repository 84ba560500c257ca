"""Data sets as robomimic's HDF5 files.

``robomimic.utils.dataset.SequenceDataset`` and its scripts read them as they read their own: ``obs`` and ``next_obs``,
``actions``, ``rewards``, ``dones``, ``num_samples``, filter keys, ``env_args``. ``next_obs`` takes no space: it shows
``obs`` one step later (the last one twice; nobody recorded what came after it).

What robomimic wants and the source does not have is derived, and known as such when Deft reads the file again: without
"reward", ``rewards`` is 1 where "success" says so and otherwise 0; without "done", ``dones`` is 1 at the last step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.formats.robomimic import EXTRAS, OURS
from data.source import Episodes
from data.spec import TaskSpec

_NAMES = {ours: theirs for theirs, ours in EXTRAS.items()}
_TAKEN = {*EXTRAS, "obs", "next_obs", "num_samples", "action_dict"}
_GYM = 2  # robomimic's type of an environment that it does not know


def write_robomimic(source: Episodes, path: Path, progress: Callable[[int], None] = lambda done: None) -> None:
    """``source`` as an HDF5 file at ``path``, which must not exist.

    Raises:
        DataError: no actions, a name that the format uses itself, or rows that cannot be read.
    """
    try:
        import h5py
    except ImportError as e:
        raise DataError(f"Writing {path} needs h5py: pip install 'deft[hdf5]'.") from e
    task = source.task
    if task is None:
        raise DataError(
            f"{source.path} has no 'action', only {source.keys}; say which key holds it: keys={{action: KEY}}."
        )
    for key in source.keys:
        if key in _TAKEN and key not in task.obs:
            raise DataError(f"{source.path}: the key '{key}' has another meaning in robomimic's files; rename it.")
    derived = [k for k in ("reward", "done") if k not in source.keys]
    ours = {"task": task.to_dict(), "schema_version": 1, **source.attrs, "derived": derived}
    with h5py.File(path, "w", libver=("earliest", "v110")) as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(_env_args(task), indent=4)
        data.attrs["total"] = source.n_steps
        data.attrs[OURS] = json.dumps(ours)
        for i in range(source.n_episodes):
            _write_episode(file, f"data/demo_{i}", source, i, task)
            progress(i + 1)
        for name in source.episode_meta_names:
            values = source.episode_meta(name)
            if name.startswith("mask_") and values.dtype == bool:
                demos = [f"demo_{i}" for i in np.flatnonzero(values)]
                file[f"mask/{name.removeprefix('mask_')}"] = np.array(demos, dtype="S")
            else:
                for i in range(source.n_episodes):
                    data[f"demo_{i}"].attrs[name] = values[i]


def _write_episode(file: Any, where: str, source: Episodes, i: int, task: TaskSpec) -> None:
    start, stop = int(source.episode_starts[i]), int(source.episode_ends[i])
    n = stop - start
    demo = file.create_group(where)
    for key in source.keys:
        rows = source.array(key)
        observed = key in task.obs and key != "states"  # the simulator's, which robomimic keeps beside them
        name = f"obs/{key}" if observed else _NAMES.get(key, key)
        # Pictures and clouds are compressed, a few rows at a time; vectors lie as they are, so any reader is quick.
        large = rows.row_bytes > 4096
        chunks = (max(1, min(n, (1 << 18) // rows.row_bytes)), *rows.shape[1:]) if large else None
        options = {"chunks": chunks, "compression": "gzip", "compression_opts": 1} if large else {}
        dataset = demo.create_dataset(name, (n, *rows.shape[1:]), rows.dtype, **options)
        for a, b, _ in rows.blocks(start, stop):
            dataset[a - start : b - start] = rows.read(a, b)
        if observed:
            _one_step_later(demo, f"next_obs/{key}", dataset)
    if "reward" not in source.keys:
        success = source.array("success").read(start, stop).reshape(n, -1)[:, 0] if "success" in source.keys else 0
        demo["rewards"] = np.zeros(n, np.float32) + success
    if "done" not in source.keys:
        demo["dones"] = (np.arange(n) == n - 1).astype(np.int64)
    demo.attrs["num_samples"] = n


def _one_step_later(demo: Any, name: str, dataset: Any) -> None:
    import h5py

    layout, seen = h5py.VirtualLayout(dataset.shape, dataset.dtype), h5py.VirtualSource(dataset)
    if len(dataset) > 1:
        layout[:-1] = seen[1:]
    layout[-1:] = seen[-1:]
    demo.create_virtual_dataset(name, layout)


def _env_args(task: TaskSpec) -> dict[str, Any]:
    """robomimic's own, where the task came from there; else what rebuilds ours, under its type for Gym."""
    theirs = task.env_args.get("env_args")
    if task.env_args.get("suite") == "robomimic" and isinstance(theirs, dict):
        return theirs
    return {"env_name": task.name, "type": _GYM, "env_kwargs": task.env_args}
