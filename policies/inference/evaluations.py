"""How often a policy's denoising networks are asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from policies.heads.head import Head
from policies.policy import Policy


@dataclass
class Evaluations:
    """Calls of denoising networks."""

    n: int = 0


@contextmanager
def count_evaluations(policy: Policy) -> Iterator[Evaluations]:
    """Counts them, in all heads of ``policy``."""
    count = Evaluations()

    def called(*_: Any) -> None:
        count.n += 1

    networks = [module.network for module in policy.modules() if isinstance(module, Head)]
    handles = [network.register_forward_hook(called) for network in networks]  # type: ignore[attr-defined]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
