"""The demonstrations that a configuration asks for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.episodes import EpisodeStore
from data.errors import ConfigError
from data.spec import TaskSpec
from envs.collect import collect_demos, demo_seed
from envs.make import make_env
from launch.terminal import Bar


def env_args_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``make_env`` needs: the task's options and the observation keys."""
    cameras = config["task"].get("cameras", [])
    keys: list[str] = []
    for key in config["obs"]["keys"]:
        keys += [f"{key}_{camera}" for camera in cameras] if key in ("rgb", "depth") else [key]
    return {**config["task"], "obs": keys}


def demonstrations(config: Mapping[str, Any], accelerator: Accelerator) -> tuple[EpisodeStore, TaskSpec]:
    """The data set to train on, and the part of its task that is used; missing demonstrations are collected."""
    data = config["data"]
    if data["path"] is not None:
        store = EpisodeStore.open(data["path"])
        task = chosen_part(store, config["obs"]["keys"])
        make_env(task.env_args).close()  # an environment that cannot be made shows here, before any work
        return store, task
    env_args = env_args_of(config)
    digest = hashlib.sha256(json.dumps(env_args, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{config['task']['suite']}-{config['task']['name']}-{config['obs']['name']}-s{config['seed']}-{digest}.zarr"
    path = Path(data["root"]) / name
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            with Bar(f"demonstrations of {config['task']['name']}", data["n_demos"]) as bar:
                collect_demos(
                    env_args,
                    path,
                    data["n_demos"],
                    first_seed=demo_seed(config["seed"], 0),
                    n_workers=data["n_workers"],
                    progress=lambda done, total: bar.update(done),
                )
    store = EpisodeStore.open(path)
    assert store.task is not None
    return store, store.task


def chosen_part(store: EpisodeStore, keys: list[str]) -> TaskSpec:
    """The task of ``store`` with the observations ``keys`` only; "rgb" and "depth" stand for those of every camera."""
    if store.task is None:
        raise ConfigError(f"{store.path} has no task metadata; convert it first, or collect with Deft.")
    have = store.task.obs
    chosen = {}
    for key in keys:
        found = [k for k in have if k == key or (key in ("rgb", "depth") and k.startswith(f"{key}_"))]
        if not found:
            raise ConfigError(f"{store.path} has no observation '{key}', only {', '.join(have)}; choose another obs=.")
        chosen |= {k: have[k] for k in found}
    env_args = {**store.task.env_args, "obs": list(chosen)}
    return dataclasses.replace(store.task, obs=chosen, env_args=env_args)
