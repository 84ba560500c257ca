"""From an ``env_args`` dictionary to an environment."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from data.errors import ConfigError, nearest
from envs.base import Env

SUITES = {
    "metaworld": "envs.metaworld:MetaWorldEnv",
    "toy": "envs.toy:ToyEnv",
    "gymnasium": "envs.gym_env:GymEnv",
    "pusht": "envs.pusht:PushTEnv",
    "robomimic": "envs.robosuite_env:RobosuiteEnv",
    "real": "real_robot.live.env:LiveEnv",
}


def is_live(env_args: Mapping[str, Any]) -> bool:
    """Whether it is a robot: there is one of it, it goes by the clock on the wall, and no episode can be repeated."""
    return env_args.get("suite") == "real"


def make_env(env_args: dict[str, Any]) -> Env:
    """Build the environment that ``env_args`` describes; ``TaskSpec.env_args`` rebuilds it elsewhere.

    Args:
        env_args: {"suite": ..., **options}. The suite is a key of ``SUITES``, or "package.module:factory" for an
            environment of your own; options are the factory's arguments.

    Raises:
        ConfigError: unknown suite, task or option (with the nearest names), or a missing option.
    """
    options = dict(env_args)
    suite = options.pop("suite", None)
    target = SUITES.get(str(suite), suite)
    if not isinstance(target, str) or ":" not in target:
        raise ConfigError(
            f"env_args names no known suite: {suite!r}. {nearest(str(suite), sorted(SUITES))} "
            "Or name your own as 'package.module:factory'."
        )
    module, _, attribute = target.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"The environment suite '{suite}' cannot be loaded: {e}") from e
    parameters = inspect.signature(factory).parameters
    for option in options:
        if option not in parameters:
            raise ConfigError(f"Suite '{suite}' has no option '{option}'. {nearest(option, list(parameters))}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if missing:
        raise ConfigError(f"Suite '{suite}' needs the option(s) {', '.join(missing)}.")
    return factory(**options)
