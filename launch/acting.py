"""Who acts in training: this process in its environments, or a robot's machine by itself (``task.actor=robot``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from algos.learner import Learner
from data.errors import ConfigError
from data.spec import TaskSpec
from envs.base import ChunkStep
from envs.chunk_env import ChunkEnv
from envs.make import is_live
from launch.privileged import with_observations


class Acting(Protocol):
    """Whoever acts for a learner, a decision at a time.

    Attributes:
        repeats: whether episodes can be acted again, as a simulation's can.
    """

    repeats: bool

    def reset(self) -> None:
        """The first episodes."""
        ...

    def begin(self) -> None:
        """Sets the next decision going, while the caller does something else."""
        ...

    def finish(self) -> ChunkStep:
        """What came of it, which the learner has been told; of no environment at all, where nothing has come yet."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on there, the learner having been loaded."""
        ...

    def close(self) -> None:
        """Ends what acts."""
        ...


class ActingHere:
    """The learner explores in environments of this process, or of its workers.

    Args:
        learner: is asked, and told.
        env: its own from now on.
    """

    def __init__(self, learner: Learner, env: ChunkEnv):
        self.learner, self.env, self.repeats = learner, env, env.repeats
        self.obs: dict[str, Tensor] = {}
        self.fresh = torch.ones(env.n_envs, dtype=torch.bool)

    def reset(self) -> None:
        """See Acting."""
        self.obs = self.env.reset()

    def begin(self) -> None:
        """See Acting."""
        self.env.begin_step(self.learner.explore(self.obs, self.fresh))

    def finish(self) -> ChunkStep:
        """See Acting."""
        step = self.env.finish_step()
        self.learner.observe(step)
        self.obs, self.fresh = step.obs, step.terminated | step.truncated
        return step

    def state_dict(self) -> dict[str, Any]:
        """See Acting."""
        return {"env": self.env.state_dict(), "fresh": self.fresh}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Acting."""
        self.obs = self.env.load_state_dict(state["env"])
        self.fresh = state["fresh"] if self.repeats else torch.ones_like(state["fresh"])

    def close(self) -> None:
        """See Acting."""
        self.env.close()


def start_acting(
    config: Mapping[str, Any], learner: Learner, task: TaskSpec, policy_config: Mapping[str, Any]
) -> Acting:
    """As ``config`` has it; ``policy_config`` is what a checkpoint of the learner's policy holds.

    Raises:
        ConfigError: the algorithm cannot act elsewhere.
    """
    algo, env_args = config["algo"], task.env_args
    if is_live(env_args) and config["task"].get("actor", "learner") != "learner":
        if config["task"]["actor"] != "robot":
            raise ConfigError(f"task.actor is learner or robot, not '{config['task']['actor']}'.")
        from algos.dsrl import DSRL
        from algos.residual import Residual
        from real_robot.live.remote_actor import RemoteActor

        if not isinstance(learner, Residual | DSRL):
            raise ConfigError(
                f"task.actor=robot takes algo=residual or dsrl; algo={algo['name']} acts where it learns."
            )
        return RemoteActor(learner, env_args, policy_config, gamma=algo["gamma"], seed=config["seed"])
    env = ChunkEnv(
        with_observations(env_args, algo.get("critic_obs") or []),
        n_envs=algo["n_envs"],
        n_obs_steps=learner.policy.n_obs_steps,
        n_action_steps=learner.n_action_steps,
        gamma=algo["gamma"],
        in_process=algo["n_workers"] == 0 and not is_live(env_args),  # a robot does not wait for updates
        n_workers=algo["n_workers"] or None,
        base_seed=config["seed"],
    )
    return ActingHere(learner, env)
