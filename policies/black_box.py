"""A policy of any make: a function from observations to actions, its insides unknown.

``base="package.module:make"`` names one: ``make(spec)`` gets the TaskSpec and returns ``act(obs) -> actions``, with obs
a dictionary of (To, *shape) arrays in environment units and actions an (n, Da) array, n >= Ta, the first one for now.
It may ask another process or another machine. Methods that only ask their base for actions (``algo=residual``,
``algo=residual_ppo``) improve it like any other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data.chunks import ChunkBatch
from data.errors import ConfigError, ContractError
from data.normaliser import Normaliser
from data.spec import TaskSpec
from policies.policy import Metrics, Obs, Policy

Act = Callable[[dict[str, np.ndarray]], np.ndarray]


def is_black_box(base: str) -> bool:
    """Whether ``base`` is the name of a function, and not a path."""
    module, found, function = base.partition(":")
    return bool(found) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def make_act(source: str, spec: TaskSpec) -> Act:
    """Imports ``module:function`` and calls it.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, _, function = source.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"base={source} cannot be had: {e}. It is looked for on PYTHONPATH and here.") from e
    return make(spec)


class BlackBox(Policy):
    """Asks ``act`` for one environment at a time.

    Args:
        spec: the task.
        normaliser: of its observations, for the methods that improve it.
        source: "module:function", see the module.
        n_obs_steps, n_action_steps: To frames are shown, Ta actions executed.
        act: instead of importing ``source``.
    """

    reproducible = False  # what it draws is its own affair

    def __init__(
        self,
        spec: TaskSpec,
        normaliser: Normaliser,
        *,
        source: str,
        n_obs_steps: int,
        n_action_steps: int,
        act: Act | None = None,
    ):
        super().__init__(spec, n_obs_steps, n_obs_steps - 1 + n_action_steps, n_action_steps)
        self.normaliser, self.source = normaliser, source
        self._ask = make_act(source, spec) if act is None else act

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """None is taken from outside."""
        return (0,)

    @torch.no_grad()
    def act(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b ta da"]:
        """What the function answers.

        Raises:
            ContractError: an answer of another shape, or one that is not finite.
        """
        del noise
        self.check_obs(obs)
        arrays = {k: v.cpu().numpy() for k, v in obs.items()}
        answers = [self._one({k: v[i] for k, v in arrays.items()}) for i in range(len(next(iter(arrays.values()))))]
        return torch.from_numpy(np.stack(answers)).to(next(iter(obs.values())).device)

    def _one(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        actions = np.asarray(self._ask(obs), np.float32)
        if actions.ndim != 2 or len(actions) < self.n_action_steps or actions.shape[1] != self.action_dim:
            raise ContractError(
                f"{self.source} answered with shape {actions.shape}; expected (n, {self.action_dim}), n at least "
                f"{self.n_action_steps}."
            )
        if not np.isfinite(actions).all():
            raise ContractError(f"{self.source} answered with values that are not finite.")
        return np.clip(actions[: self.n_action_steps], self.spec.action_low, self.spec.action_high)

    def loss(self, batch: ChunkBatch, rng: Any = None) -> tuple[Tensor, Metrics]:
        """There is none."""
        raise ContractError(f"{self.source} is a black box; it cannot be trained, only improved from outside.")

    def encode(self, obs: Obs) -> Float[Tensor, "b l c"]:
        """Not known."""
        raise ContractError(f"{self.source} is a black box: it has no tokens; observe states, or choose another base.")

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """Not known."""
        raise ContractError(f"{self.source} is a black box: it has no chunk in normalised units.")

    def unnormalise_action(self, action: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """Not known."""
        raise ContractError(f"{self.source} is a black box: its actions are in environment units.")
