"""The usual policy: normaliser + encoder + head. DP, DP3, ... are configurations of it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from data.chunks import ChunkBatch
from data.normaliser import Normaliser
from data.spec import TaskSpec
from policies.encoders.obs import ObsEncoder
from policies.encoders.reconstruction import Reconstruction
from policies.heads.head import Head
from policies.policy import Metrics, Obs, Policy
from policies.prefix import PREFIX, Prefix
from policies.rng import BatchRng

TOKENS = "tokens"  # the key of observations that a frozen encoder has encoded before


class ChunkPolicy(Policy):
    """Diffusion or flow over action chunks, conditioned on encoded observations.

    Args:
        spec: the task's shapes.
        normaliser: fitted on the training data; kept in the checkpoint.
        encoder: normalised observations -> tokens.
        head: objective + sampler around a denoising network.
        n_obs_steps, horizon, n_action_steps: To, H, Ta.
        reconstruction: an auxiliary loss on the tokens.
        prefix: what goes on from actions that are executed already; None does not look at them.
    """

    def __init__(
        self,
        spec: TaskSpec,
        normaliser: Normaliser,
        encoder: ObsEncoder,
        head: Head,
        *,
        n_obs_steps: int,
        horizon: int,
        n_action_steps: int,
        reconstruction: Reconstruction | None = None,
        prefix: Prefix | None = None,
    ):
        super().__init__(spec, n_obs_steps, horizon, n_action_steps)
        self.normaliser, self.encoder, self.head = normaliser, encoder, head
        self.reconstruction, self.prefix = reconstruction, prefix

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(H, Da), or (K, H, Da) for samplers that draw at every step."""
        shape = (self.horizon, self.action_dim)
        return shape if self.head.n_noise is None else (self.head.n_noise, *shape)

    def encode(
        self, obs: Obs, rng: BatchRng | None = None, encoder: ObsEncoder | None = None
    ) -> Float[Tensor, "b l c"]:
        """Tokens of observations in environment units.

        Args:
            obs: (B, To, *shape) by key; or ``TOKENS`` alone, (B, L, C), which come back as they are. ``PREFIX``,
                (B, n, Da) normalised, are the chunk's first actions, for policies trained to go on from them.
            rng: drives the augmentation in training.
            encoder: another one than the policy's own.
        """
        if TOKENS in obs:
            return obs[TOKENS]
        normalised = {key: self.normaliser.normalise(key, obs[key]) for key in self.spec.obs}
        encoder = encoder or self.encoder
        tokens = encoder({**normalised, **encoder.relative(obs, self.normaliser.normalise)}, rng)
        if self.prefix is None:
            return tokens
        given = self.prefix(obs[PREFIX]) if PREFIX in obs else self.prefix.none(len(tokens))
        return torch.cat([tokens, given], 1)

    def loss(self, batch: ChunkBatch, rng: BatchRng | None = None) -> tuple[Float[Tensor, ""], Metrics]:
        """The head's objective on the normalised chunk, and the reconstruction."""
        if rng is None:
            seed = int(torch.randint(2**31, ()).item())
            rng = BatchRng(seed, batch.action.device)
        action = self.normaliser.normalise("action", batch.action)
        seen = self.encoder.translated(batch.obs, rng)
        given = {} if self.prefix is None else {PREFIX: self.prefix.drawn(action, self.n_obs_steps - 1, rng)}
        tokens = self.encode({**seen, **given}, rng)
        loss = self.head.loss(action, tokens, batch.is_pad, rng)
        if self.reconstruction is None:
            return loss, {"loss": loss.detach()}
        error = self.reconstruction(tokens, {k: self.normaliser.normalise(k, seen[k]) for k in self.spec.obs})
        loss = loss + self.reconstruction.weight * error
        return loss, {"loss": loss.detach(), "reconstruction": error.detach()}

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Float[Tensor, "b h da"]:
        """The head's chunk for ``noise`` (B, *noise_shape)."""
        cond = self.encode(obs)
        return self.decode(cond, self.draw_noise(len(cond)) if noise is None else noise)

    def decode(self, tokens: Float[Tensor, "b l c"], noise: Tensor) -> Float[Tensor, "b h da"]:
        """``sample`` for observations that are encoded already."""
        return self.head.sample(tokens, noise)

    def unnormalise_action(self, action: Float[Tensor, "b h da"]) -> Float[Tensor, "b h da"]:
        """Environment units, clipped to the task's range."""
        return self.normaliser.unnormalise("action", action).clamp(self.spec.action_low, self.spec.action_high)
