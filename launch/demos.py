"""The demonstrations that a configuration asks for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from data.cache import decoded_dtype
from data.episodes import EpisodeStore
from data.errors import ConfigError, ContractError
from data.opening import open_with
from data.source import Episodes
from data.spec import TaskSpec
from envs.collect import collect_demos, demo_seed
from envs.make import is_live, make_env
from envs.seeds import rollout_seed
from envs.worker import EXPERT
from launch.live import on_robot
from launch.terminal import Bar


def env_args_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``make_env`` needs: the task's options and the observation keys."""
    cameras = config["task"].get("cameras")
    keys: list[str] = []
    for key in config["obs"]["keys"]:
        if key in ("rgb", "depth") and cameras is not None:  # otherwise the task knows what they stand for
            keys += [f"{key}_{camera}" for camera in cameras]
        else:
            keys.append(key)
    return {**config["task"], "obs": keys}


def random_statistics(task: TaskSpec, seed: int, n_episodes: int = 10) -> dict[str, dict[str, torch.Tensor]]:
    """Statistics of the observations under random actions: what a policy without demonstrations is normalised by."""
    if is_live(task.env_args):
        raise ConfigError(f"{task.name} is a robot, and no random actions are tried on it: give demonstrations.")
    env, rng = make_env(task.env_args), np.random.default_rng(seed)
    seen: dict[str, list[np.ndarray]] = {key: [] for key in task.obs}
    for episode in range(n_episodes):
        frame, over = env.reset(rollout_seed(seed, 4095, episode)), False
        while not over:
            for key, value in frame.items():
                seen[key].append(value)
            result = env.step(rng.uniform(task.action_low, task.action_high, task.action.shape))
            frame, over = env.observe(), result.terminated or result.truncated
    env.close()
    rows = {key: torch.from_numpy(np.stack(values)) for key, values in seen.items()}
    return {
        key: {"min": x.amin(0), "max": x.amax(0), "mean": x.mean(0), "std": x.std(0)}
        for key, x in rows.items()
        if task.obs[key].kind == "state"
    }


def demonstrations(config: Mapping[str, Any], accelerator: Accelerator) -> tuple[Episodes, TaskSpec]:
    """The data set to train on, and the part of its task that is used; missing demonstrations are collected."""
    data = config["data"]
    if data["path"] is not None:
        store = open_with(data["path"], data)
        task = on_robot(chosen_part(store, config["obs"]["keys"]), config["task"])
        if config["eval"]["n_episodes"]:
            if "suite" not in task.env_args:
                raise ConfigError(
                    f"{data['path']} does not say in which environment it was recorded, so there is none to evaluate "
                    "in. Train with eval.n_episodes=0."
                )
            if is_live(task.env_args) and not is_live(config["task"]):
                raise ConfigError(
                    f"{data['path']} was recorded on a robot: there is no simulation to evaluate in. Train with "
                    "eval.n_episodes=0, and measure by python -m real_robot.deploy; or evaluate on the robot, with "
                    "task=live task.server=ws://... (python -m real_robot.live)."
                )
            with closing(make_env(task.env_args)) as env:  # what cannot be made, or does not fit, shows before any work
                task = in_environment(data["path"], task, env.spec)
        return store, task
    if is_live(config["task"]):
        raise ConfigError(
            "task=live: a robot is led by people. Record (python -m real_robot.record), and give data.path."
        )
    env_args = env_args_of(config)
    digest = hashlib.sha256(json.dumps(env_args, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{config['task']['suite']}-{config['task']['name']}-{config['obs']['name']}-s{config['seed']}-{digest}"
    path = Path(data["root"]) / (f"{name}-noise{data['noise']:g}.zarr" if data["noise"] else f"{name}.zarr")
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            with Bar(f"demonstrations of {config['task']['name']}", data["n_demos"]) as bar:
                collect_demos(
                    env_args,
                    path,
                    data["n_demos"],
                    first_seed=demo_seed(config["seed"], 0),
                    n_workers=data["n_workers"],
                    noise=data["noise"],
                    progress=lambda done, total: bar.update(done),
                )
    store = EpisodeStore.open(path)
    assert store.task is not None
    return store, store.task


def imitated(labels: str, store: Episodes) -> str:
    """Key of the actions that are imitated; ``labels`` is data.labels.

    Raises:
        ConfigError: the store has none of an expert.
    """
    if labels not in ("executed", "expert"):
        raise ConfigError(f"data.labels is executed or expert, not '{labels}'.")
    if labels == "expert" and EXPERT not in store.keys:
        raise ConfigError(
            f"data.labels=expert: {store.path} has no '{EXPERT}', only {', '.join(store.keys)}. Scripted experts "
            "leave it where they are disturbed: data.noise=0.1, say."
        )
    return EXPERT if labels == "expert" else "action"


def in_environment(path: Path | str, task: TaskSpec, env: TaskSpec) -> TaskSpec:
    """``task`` of a data set with the action range of the environment that it names.

    Raises:
        ContractError: the environment shows, takes or times something else than was recorded; names all of it.
    """
    if env.action_low <= task.action_low and task.action_high <= env.action_high:
        task = dataclasses.replace(task, action_low=env.action_low, action_high=env.action_high)
    differences = task.differences(env)
    if task.control_hz and env.control_hz and task.control_hz != env.control_hz:
        differences.append(f"{env.control_hz:g} actions per second, expected {task.control_hz:g}")
    if differences:
        made = ", ".join(f"{name} {number}" for name, number in env.versions.items())
        raise ContractError(
            f"{path}: the environment it names, {env.name}{f' ({made})' if made else ''}, is not what it was recorded "
            f"in: {'; '.join(differences)}. Train with eval.n_episodes=0, or choose other keys."
        )
    return task


def chosen_part(store: Episodes, keys: list[str]) -> TaskSpec:
    """The task of ``store`` with the observations ``keys`` only; "rgb" and "depth" stand for those of every camera."""
    if store.task is None:
        raise ConfigError(
            f"{store.path} has no actions of that name, only {', '.join(store.keys)}. Say which they are: "
            "data.keys={action: KEY}, or {action: [KEY, KEY]} for several side by side."
        )
    have = store.task.obs
    chosen = {}
    for key in keys:
        found = [k for k in have if k == key or (key in ("rgb", "depth") and have[k].kind == key)]
        if not found:
            raise ConfigError(
                f"{store.path} has no observation '{key}', only {', '.join(have)}; choose another obs=, say "
                f"obs.keys=[...], or put it together: data.keys={{{key}: [...]}}."
            )
        chosen |= {k: have[k] for k in found}
    if store.task.env_args.get("suite") in (None, "robomimic"):  # recorded elsewhere, often in float64
        chosen = {k: dataclasses.replace(f, dtype=decoded_dtype(np.dtype(f.dtype)).name) for k, f in chosen.items()}
    env_args = {**store.task.env_args, "obs": list(chosen)}
    pictures = [f.shape for f in chosen.values() if f.kind == "rgb"]
    if env_args.get("suite") == "robomimic" and pictures:
        env_args["image_size"] = pictures[0][0]
    return dataclasses.replace(store.task, obs=chosen, env_args=env_args)
