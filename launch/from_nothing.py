"""Reinforcement learning without a base: what differs from fine-tuning one."""

from __future__ import annotations

from typing import Any

import numpy as np
from accelerate import Accelerator

from algos.learner import Learner
from algos.sac import SAC, GaussianPolicy
from data.construct import construct
from data.normaliser import Normaliser
from data.source import Episodes
from data.spec import TaskSpec
from envs.make import make_env
from launch.demos import demonstrations, env_args_of, random_statistics
from launch.session import Session
from policies.build import normaliser_modes
from policies.policy import Policy


class WithoutBase(Session):
    """The parts of FineTuning that need no base: a Gaussian policy and SAC, with demonstrations or from nothing."""

    def start_from(
        self, config: dict[str, Any], accelerator: Accelerator
    ) -> tuple[Policy | None, TaskSpec, Episodes | None]:
        """The task, and demonstrations where they are asked for."""
        if config["algo"]["demos"]:
            store, task = demonstrations(config, accelerator)
            return None, task, store
        env = make_env(env_args_of(config))
        env.close()
        return None, env.spec, None

    def make_learner(self, options: dict[str, Any]) -> Learner:
        """A Gaussian policy and SAC around it."""
        modes = normaliser_modes(self.task, action="identity")
        if self.store is not None:
            normaliser = Normaliser.fit(self.store, modes, episodes=np.arange(self.n_demos))
        else:
            normaliser = Normaliser(modes, random_statistics(self.task, self.config["seed"]))
        hidden, layer_norm = options.pop("hidden"), options["layer_norm"]
        policy = GaussianPolicy(
            self.task, normaliser, n_obs_steps=self.config["n_obs_steps"], hidden=hidden, layer_norm=layer_norm
        )
        given = {"policy": policy, "n_envs": self.config["algo"]["n_envs"], "seed": self.config["seed"]}
        return construct(SAC, options, "algo", **given)
