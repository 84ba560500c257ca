"""What the training loop asks of a reinforcement learner, on-policy or off-policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from algos.demos import Demo
from policies.policy import Metrics, Obs


class Learner(Protocol):
    """``explore``, step the environments, ``observe``, ``update``: that is the whole loop.

    Off-policy learners update between the beginning of a step and its end, on-policy ones after ``observe``.

    Attributes:
        policy: what is evaluated, saved and deployed.
        n_action_steps: control steps of one decision.
        exact_at_start: whether the untrained policy must act exactly as its base (algos.gate).
        on_policy: whether it learns only from what its present policy did.
    """

    policy: Any
    n_action_steps: int
    exact_at_start: bool
    on_policy: bool

    def explore(self, obs: Obs, fresh: Bool[Tensor, " n"]) -> Float[Tensor, "n ta da"]:
        """Actions for N environments, environment units; ``fresh`` marks those whose episode has just begun."""
        ...

    def observe(self, step: Any) -> None:
        """Takes what followed ``explore``, a ChunkStep."""
        ...

    def update(self) -> Metrics:
        """All updates that are due; none may be. Metrics of the last one."""
        ...

    @property
    def counters(self) -> dict[str, float]:
        """For the log: "updates", and what else is counted."""
        ...

    def add_demo(self, demo: Demo) -> None:
        """One demonstration, cut into decisions."""
        ...

    def base_result(self, successes: int, episodes: int) -> None:
        """How the base did when it was measured."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that continues bit-exactly, but for the environments."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        ...
