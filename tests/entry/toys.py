"""An environment suite of one's own, named on the command line as ``task.suite=tests.entry.toys:make``."""

from __future__ import annotations

import dataclasses

from envs.toy import ToyEnv


def make(
    obs: list[str],
    name: str = "toy",
    episode_length: int = 30,
    terminate_on_success: bool = True,
    reward: str = "dense",
    goal: bool = False,
    n_points: int = 16,
    cameras: list[str] | None = None,
    cloud_source: str = "rays",
    image_size: int = 16,
) -> ToyEnv:
    """The toy; takes all options of configs/task/metaworld.yaml and looks at few of them."""
    env = ToyEnv(obs, episode_length, 0.1, 0.1, "dense", terminate_on_success)
    args = {"suite": "tests.entry.toys:make", "obs": list(obs), "name": name, "episode_length": episode_length}
    args["terminate_on_success"] = terminate_on_success
    env.spec = dataclasses.replace(env.spec, name=name, env_args=args)
    return env
