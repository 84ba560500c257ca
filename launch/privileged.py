"""``algo.critic_obs``: what critics see of a simulation beyond the policy's own observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from algos.features import CriticFeatures
from data.errors import ConfigError, DataError
from data.normaliser import Normaliser
from data.source import Episodes
from data.spec import TaskSpec
from envs.collect import replay
from envs.make import make_env
from launch.demos import random_statistics
from policies.build import normaliser_modes


def with_observations(env_args: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The environment of ``env_args`` that shows ``keys`` as well."""
    return {**env_args, "obs": [*env_args["obs"], *(k for k in keys if k not in env_args["obs"])]}


def critic_features(task: TaskSpec, keys: Sequence[str], n_obs_steps: int, seed: int) -> CriticFeatures | None:
    """What critics see, normalised by what random actions see; None where ``keys`` is empty.

    Raises:
        ConfigError: a key that is not a state.
    """
    if not keys:
        return None
    env = make_env({**task.env_args, "obs": list(keys)})
    env.close()
    others = [k for k in keys if env.spec.obs[k].kind != "state"]
    if others:
        raise ConfigError(f"algo.critic_obs takes states only, not {', '.join(others)}.")
    modes = {k: mode for k, mode in normaliser_modes(env.spec).items() if k != "action"}
    normaliser = Normaliser(modes, random_statistics(env.spec, seed))
    return CriticFeatures({k: env.spec.obs[k].shape for k in keys}, normaliser, n_obs_steps)


def unrecorded(store: Episodes, keys: Sequence[str], episode: int) -> Mapping[str, np.ndarray]:
    """Those of ``keys`` that ``store`` lacks, found by acting the episode again.

    Raises:
        DataError: it does not succeed again, so what is seen now is not what was seen then.
    """
    missing = [k for k in keys if k not in store.fields]
    if not missing:
        return {}
    success, seen = replay(store, episode, missing)
    if not success:
        raise DataError(
            f"Episode {episode} of {store.path} does not succeed when its actions are repeated here, so "
            f"algo.critic_obs={list(keys)} cannot be found for it. Set algo.demos=false, or collect new demonstrations."
        )
    return seen
