"""Which seeds belong to what, so that no policy is ever evaluated on an episode it was trained on.

Evaluation uses small integers (below 2**31), demonstrations start at 2**31, training rollouts at 2**40.
"""

from __future__ import annotations

DEMO_BASE = 2**31
ROLLOUT_BASE = 2**40
_PER_RUN = 100_000


def demo_seed(run_seed: int, index: int) -> int:
    """Seed of demonstration attempt ``index`` (< 100 000) of run ``run_seed``."""
    return DEMO_BASE + _PER_RUN * run_seed + index


def rollout_seed(run_seed: int, env_index: int, episode: int) -> int:
    """Seed of the ``episode``-th training episode of environment ``env_index`` (< 4096)."""
    return ROLLOUT_BASE + ((run_seed * 4096 + env_index) << 24) + episode
