"""Demonstrations as transitions with the sparse reward: 1 where the task first succeeds, and nothing after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.source import Episodes


class Demo(NamedTuple):
    """One demonstration cut into D decisions of Ta steps.

    Attributes:
        windows: (D + 1, To, *shape) per key; the last one is what the last decision led to.
        actions: (D, Ta, Da) environment units; beyond the end the last action again.
        reward, discount, done, n_steps: (D,) as in ``ChunkStep``.
    """

    windows: dict[str, Tensor]
    actions: Tensor
    reward: Tensor
    discount: Tensor
    done: Tensor
    n_steps: Tensor


def demo_transitions(
    store: Episodes,
    *,
    obs_keys: Sequence[str],
    n_obs_steps: int,
    n_action_steps: int,
    gamma: float,
    n_episodes: int,
    more: Callable[[int], Mapping[str, np.ndarray]] | None = None,
) -> Iterator[Demo]:
    """The first ``n_episodes`` demonstrations that succeed; those that never do teach a sparse reward nothing.

    ``more(episode)`` adds observations (T, *shape) that the store does not have. Where it has no key "success" either,
    the last step of every episode counts as its success.
    """
    for episode in range(min(n_episodes, store.n_episodes)):
        start, end = int(store.episode_starts[episode]), int(store.episode_ends[episode])
        if "success" in store.fields:
            succeeded = np.flatnonzero(np.asarray(store.array("success")[start:end]))
            if not len(succeeded):
                continue
            length = int(succeeded[0]) + 1
        else:
            length = end - start
        # Frame t is what was seen before action t; the frame after the last action may not have been recorded.
        last_frame = min(end - start - 1, length)
        decisions = np.arange(0, length, n_action_steps)
        ends = np.minimum(decisions + n_action_steps, length)
        moments = np.append(decisions, length)
        back = np.arange(1 - n_obs_steps, 1)
        frames = np.clip(moments[:, None] + back, 0, last_frame)
        steps = np.minimum(decisions[:, None] + np.arange(n_action_steps), length - 1)
        n_steps = ends - decisions
        final = ends == length
        seen = {k: np.asarray(store.array(k)[start:end]) for k in obs_keys}
        seen |= more(episode) if more else {}
        yield Demo(
            windows={k: torch.from_numpy(array[frames]) for k, array in seen.items()},
            actions=torch.from_numpy(np.asarray(store.array("action")[start:end], np.float32)[steps]),
            reward=torch.from_numpy(np.where(final, gamma ** (n_steps - 1), 0.0).astype(np.float32)),
            discount=torch.from_numpy(np.where(final, 0.0, gamma**n_steps).astype(np.float32)),
            done=torch.from_numpy(final),
            n_steps=torch.from_numpy(n_steps),
        )
