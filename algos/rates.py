"""Learning rates that fall to nothing at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from data.errors import ConfigError


class FallingRates:
    """The rates of some optimisers, constant at first and falling linearly to 0 over the last part of a run.

    With a constant rate an actor goes on wandering when it has nothing more to learn, and what is handed out is
    wherever it happens to be.

    Args:
        optimisers: with the rates that they start from.
        part: of the run's environment steps, over which rates fall; 0: they stay.
        env_steps: of the run.

    Raises:
        ConfigError: ``part`` is not one.
    """

    def __init__(self, optimisers: Sequence[Optimizer], part: float, env_steps: int):
        if not 0 <= part <= 1:
            raise ConfigError(f"algo.lr_decay={part} is a part of env_steps: expected 0 to 1.")
        self._optimisers = [(o, [group["lr"] for group in o.param_groups]) for o in optimisers]
        self._part, self._env_steps = part, env_steps

    def share(self, env_steps: int) -> float:
        """What is left of a rate at this environment step."""
        left = max(0.0, 1 - env_steps / self._env_steps)
        return min(1.0, left / self._part) if self._part else 1.0

    def set(self, env_steps: int) -> None:
        """The rates that belong to this environment step."""
        for optimiser, rates in self._optimisers:
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = self.share(env_steps) * rate
