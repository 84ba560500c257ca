"""From a command line to a configuration that makes sense, and to the device and processes that it runs on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from configs.loader import check_at_least, load_config
from data.errors import ConfigError
from envs.make import is_live
from launch.base import adopt_base
from launch.processes import join_processes
from launch.run import Run
from policies.policy import check_chunk
from policies.precision import resolve_precision


def read_config(argv: list[str], fine_tuners: Collection[str]) -> tuple[dict[str, Any], bool]:
    """(configuration, whether it continues a run) of a command line; ``fine_tuners`` are the algorithms with a base."""
    config = load_config("train", argv)
    resumed = config["resume"] is not None
    if resumed:
        others = [a for a in argv if not a.startswith("resume=")]
        if others:
            raise ConfigError(f"resume= continues a run with its own configuration; leave out {' '.join(others)}.")
        config = Run.config_of(config["resume"])
    elif config["algo"]["name"] in fine_tuners:
        config = adopt_base(config, argv)
    if config["data"]["path"] is None:  # otherwise its environment tells
        check_value_range(config["algo"], config["task"])
    check_at_least(1, config, ["n_obs_steps", "horizon", "n_action_steps", "log.every", "data.n_demos"])
    if config["algo"]["name"] == "bc":  # before demonstrations are collected
        check_chunk(config["n_obs_steps"], config["horizon"], config["n_action_steps"])
    names = ("train_steps", "batch_size", "save_every", "env_steps", "n_envs")
    check_at_least(1, config, [f"algo.{name}" for name in names if name in config["algo"]])
    live = is_live(config["task"])  # whose episodes are dear
    if live and config["algo"]["name"] in ("dppo", "residual_ppo"):
        raise ConfigError(f"algo={config['algo']['name']} wants many more episodes than a robot has: residual or dsrl.")
    check_at_least(1, config, ["eval.n_envs"])
    check_at_least(0 if live and not config["eval"]["every"] else 1, config, ["eval.every_n_episodes"])
    check_at_least(0 if live or config["algo"]["name"] == "bc" else 1, config, ["eval.n_episodes"])
    if not config["eval"]["n_episodes"] and config["eval"]["every"]:
        raise ConfigError("eval.n_episodes=0 trains without an environment: leave out eval.every.")
    check_stop_at(config)
    check_at_least(1, config, ["policy.n_inference_steps", "policy.noise_per_obs"])
    check_at_least(0, config, ["seed", "data.n_workers", "eval.seed", "eval.every", "eval.n_videos"])
    if config["precision"] not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision is auto, fp32 or bf16, not '{config['precision']}'.")
    return config, resumed


def check_stop_at(config: Mapping[str, Any]) -> None:
    """Raises ConfigError where ``algo.stop_at`` is no success rate, or nothing is evaluated that could reach it."""
    rate = config["algo"].get("stop_at")
    if rate is None:
        return
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate <= 1:
        raise ConfigError(f"algo.stop_at={rate} is not a success rate: expected a number above 0 and at most 1.")
    if not config["eval"]["every"]:
        raise ConfigError(
            f"algo.stop_at={rate} looks at evaluations during training, and there are none: give eval.every=5000, "
            "or another number of environment steps, or algo.stop_at=null."
        )


def check_value_range(algo: Mapping[str, Any], env_args: Mapping[str, Any]) -> None:
    """Raises ConfigError where critics would be held to a sparse reward's returns while the reward is a dense one."""
    if env_args.get("reward") == "dense" and algo.get("value_high") == 1.0:
        raise ConfigError(
            f"algo={algo['name']} holds its critics' values to [{algo['value_low']}, {algo['value_high']}], what a "
            "sparse reward returns, but the task's reward is dense: give algo.value_low=null algo.value_high=null (or "
            "what its returns lie between), or task.reward=sparse."
        )


def start_accelerator(config: dict[str, Any]) -> Accelerator:
    """Device, precision and processes; what "auto" stood for is put into ``config``."""
    device = join_processes(config["device"])[1]
    config["device"] = device.type
    # Measured, so processes might disagree: the first one decides.
    config["precision"] = broadcast_object_list([resolve_precision(config["precision"], device)])[0]
    accelerator = Accelerator(mixed_precision="bf16" if config["precision"] == "bf16" else "no")
    set_seed(config["seed"] + accelerator.process_index)
    return accelerator
