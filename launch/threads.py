"""How many threads training computes with, on a CPU.

More are not always faster: threads that sleep while they wait (launch.memory) have to be woken for every operation. For
a network of a few milliseconds a step, on a virtual machine of two cores, one thread can be twice as fast as two.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from data.errors import ConfigError

ENOUGH = 1.1  # times the shortest; what more threads must be worth
PATIENCE = 5.0  # seconds after which no further round begins


def fastest(work: Callable[[], object], counts: Sequence[int]) -> int:
    """The fewest threads of ``counts`` with which ``work`` takes hardly longer than with any; they take turns."""
    before, start = torch.get_num_threads(), time.perf_counter()
    taken: dict[int, list[float]] = {n: [] for n in counts}
    try:
        work()  # sets up what only the first call does
        for _ in range(3):
            for n in counts:
                torch.set_num_threads(n)
                begun = time.perf_counter()
                work()
                taken[n].append(time.perf_counter() - begun)
            if time.perf_counter() - start > PATIENCE:
                break
    finally:
        torch.set_num_threads(before)
    typical = {n: statistics.median(times) for n, times in taken.items()}
    return min(n for n in counts if typical[n] <= ENOUGH * min(typical.values()))


def settle_threads(config: dict[str, Any], work: Callable[[], object] | None) -> None:
    """Sets torch's threads as ``config`` says; what it leaves open is put into it, so that a resumed run has the same.

    Args:
        config: with "threads", a number or None.
        work: what a step of training costs, to choose by; None where one thread is best, as for networks of
            reinforcement learning.

    Raises:
        ConfigError: not a number of threads.
    """
    wanted = config.get("threads")
    if wanted is None:
        # torch has obeyed the variable; what is compiled would be compiled for every number
        if config["device"] != "cpu" or config["compile"] or "OMP_NUM_THREADS" in os.environ:
            return
        most = torch.get_num_threads()
        counts = sorted({most, *(2**i for i in range(most.bit_length()))})
        with torch.random.fork_rng(devices=[]):
            wanted = fastest(work, counts) if work and len(counts) > 1 else 1
        config["threads"] = wanted
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ConfigError(f"threads={wanted}: expected how many, at least 1, or null for what is fastest.")
    torch.set_num_threads(wanted)
