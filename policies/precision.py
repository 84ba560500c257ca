"""Which floating-point precision is fastest here."""

from __future__ import annotations

import time

import torch


def measure_bf16_gain(size: int = 256, repeats: int = 3) -> float:
    """Time of a float32 matrix product over that of the same product in bf16, on the CPU; above 1, bf16 is faster.

    Processors without bf16 instructions emulate them at a fiftieth of the speed, so this must be measured, not assumed.
    """
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size).to(dtype)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - start)
        best[dtype] = min(times[1:])
    return best[torch.float32] / best[torch.bfloat16]


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto" -> "bf16" or "fp32": bf16 on GPUs that have it, and on CPUs where it is at least 1.3 times as fast."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if measure_bf16_gain() > 1.3 else "fp32"
