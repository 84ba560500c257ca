"""Fine-tuning starts from a trained policy: ``base=RUN_DIR`` brings its task, observations and demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from configs.loader import groups, load_config
from data.errors import ConfigError, DataError
from data.normaliser import Normaliser
from data.opening import open_with
from data.source import Episodes
from data.spec import TaskSpec
from envs.make import is_live, make_env
from launch.contract import no_environment, take_environment
from launch.demos import demonstrations, env_args_of, random_statistics
from launch.live import on_robot
from policies.black_box import BlackBox, is_black_box
from policies.build import denoiser_config, normaliser_modes
from policies.checkpoint import check_contract, load_policy, read_config
from policies.policy import Policy

OF_THE_BASE = ("task", "obs", "policy", "network", "encoder", "n_obs_steps", "horizon")
OF_THE_STUDENT = ("policy", "network")  # with algo=distill; a network only where it is asked for


def adopt_base(config: Mapping[str, Any], argv: list[str]) -> dict[str, Any]:
    """``config`` with all that belongs to the base taken from its checkpoint.

    Raises:
        ConfigError: no base, or an option on the command line that the base has fixed already.
    """
    name = config["algo"]["name"]
    if config["base"] is None:
        raise ConfigError(f"algo={name} improves a trained policy: say which with base=RUN_DIR.")
    if is_black_box(config["base"]):
        return dict(config)
    given = {override.split("=")[0].lstrip("+~").split(".")[0]: override for override in argv}
    own = [key for key in OF_THE_STUDENT if name == "distill" and (key in given or key == "policy")]
    own += ["task"] if is_live(config["task"]) else []  # the base's robot itself
    document = read_config(config["base"], config["features"])
    trained = document["meta"].get("train_config", {})
    if "task" not in trained:  # another project's base: the environment is that of the command line
        own += ["task", "obs"]
        if "task" not in given:
            raise no_environment(TaskSpec.from_dict(document["task"]))
    fixed = [key for key in OF_THE_BASE if key not in own]
    for key, override in given.items():
        if key in fixed:
            raise ConfigError(
                f"'{override}' is fixed by the base {config['base']}, trained with its own {key}. "
                "Inference options of the base are base_policy.n_inference_steps and n_action_steps."
            )
    out = {**config, **{k: trained[k] for k in fixed if k in trained}}
    obs = trained.get("obs", {}).get("name")
    if name == "distill" and obs in groups()["obs"]:  # defaults follow the observation
        defaults = load_config("train", [*argv, f"obs={obs}"])
        out |= {key: defaults[key] for key in ("algo", *own)}
    if name == "distill" and "denoiser" in config["policy"]:
        out["policy"] = {**out["policy"], "denoiser": denoiser_config(document["config"].get("policy", {}))}
    if not any(a.startswith("run_dir=") for a in argv):
        out["run_dir"] = f"{str(config['base']).rstrip('/')}-{name}-s{config['seed']}"
    n_action_steps = next((True for a in argv if a.startswith("n_action_steps=")), False)
    if not n_action_steps:
        out["n_action_steps"] = document["config"]["n_action_steps"]
    return out


def base_and_demos(config: dict[str, Any], accelerator: Accelerator) -> tuple[Policy, TaskSpec, Episodes | None]:
    """The base policy, its task, and the demonstrations it was trained on (or those of data.path).

    Adds to ``config`` what the checkpoint of the fine-tuned policy needs: "base_config", "base_demo_seeds".
    """
    if is_black_box(config["base"]):
        return _black_box_and_demos(config, accelerator)
    device = accelerator.device
    options = {k: v for k, v in config["base_policy"].items() if v is not None}
    policy = load_policy(
        config["base"],
        device=device,
        overrides=options,
        n_action_steps=config["n_action_steps"],
        features=config["features"],
    )
    take_environment(policy, config["task"])
    document = read_config(config["base"], config["features"])
    base_config = {**document["config"], "n_action_steps": config["n_action_steps"]}
    base_config["policy"] = {**base_config["policy"], **options}
    config["base_config"] = base_config
    config["base_demo_seeds"] = document["meta"].get("demo_seeds", [])
    task = on_robot(policy.spec, config["task"])
    env = make_env(task.env_args)
    env.close()
    check_contract(policy, env.spec, f"Task {env.spec.name}")
    source = config["data"]["path"] or document["meta"].get("dataset")
    trained_on = document["meta"].get("train_config", {}).get("data", {})
    if not config["algo"].get("demos", True) or source is None:
        return policy, task, None
    path = Path(source)
    if (
        not path.exists() and config["data"]["path"] is None
    ):  # a cache may have moved; its folders' names tell what is in them
        path = Path(config["data"]["root"]) / path.name
    if not path.exists():
        without = ", or algo.demos=false to do without" if "demos" in config["algo"] else ""
        raise DataError(f"The base's demonstrations are no longer at {source}. Give data.path=...{without}.")
    if config["data"]["path"] is None:
        config["data"]["n_demos"] = len(config["base_demo_seeds"]) or config["data"]["n_demos"]
    given = {k: v for k, v in config["data"].items() if k in ("keys", "hz", "mask", "actions") and v is not None}
    seen = {**trained_on, "mask": None, **given} if config["data"]["path"] is not None else trained_on
    return policy, task, open_with(path, seen)


def _black_box_and_demos(config: dict[str, Any], accelerator: Accelerator) -> tuple[Policy, TaskSpec, Episodes | None]:
    """A policy that is known by its answers only; task and observations are those of the command line."""
    options = {
        "source": config["base"],
        "n_obs_steps": config["n_obs_steps"],
        "n_action_steps": config["n_action_steps"],
    }
    config["base_config"], config["base_demo_seeds"] = {"black_box": options}, []
    if config["algo"].get("demos"):
        store, task = demonstrations(config, accelerator)
        modes = normaliser_modes(task, action="identity")
        n = min(config["data"]["n_demos"], store.n_episodes)
        normaliser = Normaliser.fit(store, modes, episodes=np.arange(n))
    else:
        env = make_env(env_args_of(config))
        store, task = None, env.spec
        env.close()
        normaliser = Normaliser(normaliser_modes(task, action="identity"), random_statistics(task, config["seed"]))
    return BlackBox(task, normaliser, **options).to(accelerator.device), task, store
