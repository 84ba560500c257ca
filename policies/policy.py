"""The door between a policy and everything that trains, evaluates or deploys one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.chunks import ChunkBatch, executed_slice
from data.errors import ContractError
from data.spec import TaskSpec
from policies.rng import BatchRng

Obs = dict[str, Tensor]  # each (B, To, *shape), environment units
Metrics = dict[str, Tensor]


def check_chunk(n_obs_steps: int, horizon: int, n_action_steps: int) -> None:
    """Raises ContractError where a chunk of H actions, of which To - 1 are past, has fewer than Ta left."""
    if n_obs_steps - 1 + n_action_steps > horizon:
        raise ContractError(
            f"n_action_steps={n_action_steps} does not fit: with n_obs_steps={n_obs_steps} a chunk of "
            f"horizon={horizon} has {horizon - n_obs_steps + 1} actions from the present on."
        )


class Policy(nn.Module, ABC):
    """Maps a window of To observations to a chunk of H actions. Stateless: queues live outside.

    Attributes:
        spec: the task's shape metadata; what ``act`` accepts and returns.
        n_obs_steps, horizon, n_action_steps: To, H, Ta.
    """

    def __init__(self, spec: TaskSpec, n_obs_steps: int, horizon: int, n_action_steps: int):
        super().__init__()
        check_chunk(n_obs_steps, horizon, n_action_steps)
        self.spec = spec
        self.n_obs_steps, self.horizon, self.n_action_steps = n_obs_steps, horizon, n_action_steps

    reproducible = True  # the same noise gives the same actions

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def action_dim(self) -> int:
        """Da."""
        return self.spec.action.shape[0]

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one sample's noise: (H, Da), or more where the sampler draws noise at every step."""

    @abstractmethod
    def loss(self, batch: ChunkBatch, rng: BatchRng | None = None) -> tuple[Float[Tensor, ""], Metrics]:
        """The training objective on a batch; ``rng`` makes its draws reproducible."""

    @abstractmethod
    def encode(self, obs: Obs) -> Float[Tensor, "b l c"]:
        """Observation tokens; FiLM networks flatten them."""

    @abstractmethod
    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """A chunk in normalised units: a function of ``noise`` (B, *noise_shape), drawn here when not given."""

    @abstractmethod
    def unnormalise_action(self, action: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """From [-1, 1] to environment units, clipped to the action range."""

    @torch.no_grad()
    def act(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b ta da"]:
        """The actions to execute now, environment units."""
        self.check_obs(obs)
        chunk = self.unnormalise_action(self.sample(obs, noise=noise))
        return chunk[:, executed_slice(self.n_obs_steps, self.n_action_steps)]

    def act_from(
        self, obs: Obs, memory: Any, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "b ta da"], Any]:
        """``act`` within an episode, for policies that carry something from one decision to the next.

        Args:
            obs: see ``act``.
            memory: what the previous decision returned; None at the start of an episode. The caller keeps it.
            generator: of the noise; drawn from only when a chunk is sampled.

        Returns:
            actions, environment units, and the memory for the next decision.
        """
        n = len(next(iter(obs.values())))
        return self.act(obs, noise=self.draw_noise(n, generator)), None

    def forward(self, batch: ChunkBatch, rng: BatchRng | None = None) -> tuple[Tensor, Metrics]:
        """``loss``, under the name that data-parallel wrappers call."""
        return self.loss(batch, rng)

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise for n samples, (n, *noise_shape), on the policy's device.

        Drawn on the generator's device (the CPU unless given otherwise), so that a seed means the same everywhere.
        """
        device = self.device
        source = generator.device if generator is not None else device
        return torch.randn(n, *self.noise_shape, generator=generator, device=source).to(device)

    def check_obs(self, obs: Obs) -> None:
        """Raises ContractError, naming the key, where ``obs`` is not what the policy was trained on."""
        for key, field in self.spec.obs.items():
            if key not in obs:
                raise ContractError(f"The policy needs observation '{key}' {field.shape}; got {sorted(obs)}.")
            want = (self.n_obs_steps, *field.shape)
            if tuple(obs[key].shape[1:]) != want:
                raise ContractError(
                    f"Observation '{key}' has shape {tuple(obs[key].shape)}; expected (B, {', '.join(map(str, want))})."
                )
