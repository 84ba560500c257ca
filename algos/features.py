"""What actors and critics see of an observation, as one vector each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from algos.replay import Transition
from data.errors import ConfigError
from data.normaliser import Normaliser
from policies.chunk_policy import ChunkPolicy
from policies.encoders.augment import random_shift
from policies.policy import Obs, Policy

LIMIT = 5.0  # normalised units; far outside the demonstrations a state dimension says no more than that it is there


class Features(nn.Module):
    """Observation window -> (B, F): normalised states as they are, everything else through the frozen encoder.

    Args:
        policy: a base policy with a ``normaliser``; frozen.
    """

    def __init__(self, policy: Policy):
        super().__init__()
        self._policy = [policy]  # in a list: its weights belong to whoever owns the policy
        self.states = [k for k, f in policy.spec.obs.items() if f.kind == "state"]
        self.encoded = len(self.states) < len(policy.spec.obs)
        if not isinstance(getattr(policy, "normaliser", None), Normaliser):
            raise ConfigError(f"{type(policy).__name__} has no normaliser to see observations through.")

    @torch.no_grad()
    def forward(self, obs: Obs, tokens: Tensor | None = None) -> Float[Tensor, "b f"]:
        """Environment units in, features out; ``tokens`` (B, L, C) are the encoder's, where they are known already."""
        policy = self._policy[0]
        normaliser: Normaliser = policy.normaliser  # type: ignore[assignment]
        parts = _states(normaliser, self.states, obs)
        if self.encoded:
            parts.append((policy.encode(obs) if tokens is None else tokens).flatten(1))
        return torch.cat(parts, 1)

    def out_dim(self) -> int:
        """F, found by encoding a window of zeros."""
        policy = self._policy[0]
        kinds = {k: torch.uint8 if f.dtype == "uint8" else torch.float32 for k, f in policy.spec.obs.items()}
        zeros = {
            k: torch.zeros(1, policy.n_obs_steps, *f.shape, dtype=kinds[k], device=policy.device)
            for k, f in policy.spec.obs.items()
        }
        return self(zeros).shape[1]


def _states(normaliser: Normaliser, keys: Sequence[str], obs: Obs) -> list[Tensor]:
    return [normaliser.normalise(k, obs[k]).clamp(-LIMIT, LIMIT).flatten(1) for k in keys]


class LearnedFeatures(Features):
    """The same through an encoder of its own, which begins as a copy of the policy's and is trained by the critics.

    Args:
        policy: a base policy with a ``normaliser`` and an encoder.
        shift: pixels that images are moved by in training, see ``random_shift``.
    """

    def __init__(self, policy: Policy, shift: int = 4):
        super().__init__(policy)
        if not isinstance(policy, ChunkPolicy) or not self.encoded:
            raise ConfigError(
                "algo.encoder=learned goes on training an encoder; the base has none beside its states. "
                "Leave it at frozen."
            )
        self.encoder = policy.encoder.trainable_copy()
        self.images = [k for k, f in policy.spec.obs.items() if f.is_image]
        self.shift = shift

    def forward(self, obs: Obs, tokens: Tensor | None = None) -> Float[Tensor, "b f"]:
        """Environment units in, features out; the base's ``tokens`` are not these."""
        del tokens
        base = self._policy[0]
        assert isinstance(base, ChunkPolicy)
        encoded = base.encode(obs, encoder=self.encoder)
        return torch.cat([*_states(base.normaliser, self.states, obs), encoded.flatten(1)], 1)

    def augmented(self, obs: Obs, generator: torch.Generator | None) -> Float[Tensor, "b f"]:
        """Of shifted images; colour and depth that are encoded together are shifted together."""
        moved, pairs = dict(obs), self.encoder.pairs
        for key in self.images:
            if key in pairs:
                depth = obs[pairs[key]]
                both = random_shift(torch.cat([obs[key].to(depth), depth[..., None]], -1), self.shift, generator)
                moved[key], moved[pairs[key]] = both[..., :3], both[..., 3]
            elif key not in pairs.values():
                moved[key] = random_shift(obs[key], self.shift, generator)
        return self(moved)


class CriticFeatures:
    """What only a simulator knows, for critics: they are not deployed (Pinto et al. 2018, asymmetric actor-critic).

    Args:
        shapes: the states that are shown, by key.
        normaliser: of those keys.
        n_obs_steps: To of the windows.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], normaliser: Normaliser, n_obs_steps: int):
        self.keys, self.normaliser = list(shapes), normaliser
        self.width = n_obs_steps * sum(torch.Size(shape).numel() for shape in shapes.values())

    @torch.no_grad()
    def __call__(self, obs: Obs) -> Float[Tensor, "b f"]:
        """Environment units in, features out."""
        return torch.cat(_states(self.normaliser, self.keys, obs), 1)


class Sight:
    """What is kept of an observation: the actor's features, and the critic's where they are others.

    Attributes:
        of_critic: the key of what the critic sees, in what this returns and so in the replay.
        critic_width: its length.
        window: To, where windows of To frames are kept instead of one vector (LearnedSight).
    """

    window: int | None = None

    def __init__(self, actor: Features, critic: CriticFeatures | None):
        self._actor, self._critic = actor, critic
        self.of_critic = "features" if critic is None else "critic_features"
        self.critic_width = actor.out_dim() if critic is None else critic.width

    def __call__(self, obs: Obs, tokens: Tensor | None = None) -> dict[str, Tensor]:
        """{"features": (B, F)} and, where the critic sees something else, {"critic_features": (B, G)}.

        ``tokens`` as in ``Features``.
        """
        seen = {"features": self._actor(obs, tokens)}
        return seen if self._critic is None else {**seen, self.of_critic: self._critic(obs)}

    def features(self, seen: Obs) -> Float[Tensor, "b f"]:
        """The actor's, of what ``__call__`` returned."""
        return seen["features"]

    def open(self, batch: Transition, generator: torch.Generator | None) -> Transition:
        """A batch of the replay with features for observations: here they are what was kept."""
        del generator
        return batch

    def critic(self, obs: Obs, tokens: Tensor | None = None) -> Float[Tensor, "b f"]:
        """What the critic sees, alone."""
        return self._actor(obs, tokens) if self._critic is None else self._critic(obs)


class LearnedSight(Sight):
    """Keeps the observations themselves, because their features change; the critics' gradient reaches the encoder."""

    def __init__(self, actor: LearnedFeatures, n_obs_steps: int):
        super().__init__(actor, None)
        self._learned, self.window = actor, n_obs_steps

    def __call__(self, obs: Obs, tokens: Tensor | None = None) -> dict[str, Tensor]:
        """The windows."""
        del tokens
        return dict(obs)

    @torch.no_grad()
    def features(self, seen: Obs) -> Float[Tensor, "b f"]:
        """As the encoder is now."""
        return self._learned(seen)

    def open(self, batch: Transition, generator: torch.Generator | None) -> Transition:
        """Features of shifted images, (B, 1, F); those of the successors have no gradient."""
        with torch.no_grad():
            after = self._learned.augmented(batch.next_obs, generator)
        now = self._learned.augmented(batch.obs, generator)
        return batch._replace(obs={"features": now[:, None]}, next_obs={"features": after[:, None]})


def sight_of(actor: Features, n_obs_steps: int, critic: CriticFeatures | None = None) -> Sight:
    """What is kept of observations, for an actor that sees ``actor``. Raises ConfigError where that cannot be."""
    if not isinstance(actor, LearnedFeatures):
        return Sight(actor, critic)
    if critic is not None:
        raise ConfigError("An encoder is learned from critics that see through it: leave out algo.critic_obs.")
    return LearnedSight(actor, n_obs_steps)
