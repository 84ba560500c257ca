"""Which floating-point precision, and which library's matrix products, are fastest here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch


def measure_bf16_gain(size: int = 256, repeats: int = 3) -> float:
    """Time of training's float32 matrix product over that of the same in bf16, on the CPU; above 1, bf16 is faster.

    Processors without bf16 instructions emulate them at a fiftieth of the speed, so this must be measured, not assumed.
    """
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size).to(dtype)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            with large_products():
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


@cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN's float32 products are to be preferred to MKL's: on processors with AVX-512 that are not Intel's.

    Decided by what the processor is, not by a measurement, so that a resumed run computes as the one before it did.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    processor = Path("/proc/cpuinfo")
    if not processor.exists() or "GenuineIntel" in processor.read_text():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    try:
        with _onednn():
            error = (a @ b - (a.double() @ b.double())).abs().max()
    except (AttributeError, RuntimeError, ValueError):  # a torch, or a build of it, without this switch
        return False
    return bool(error < 1e-3)  # in bf16 it would be 0.2


class _Switch:
    """torch's, which is one for all threads: set by the first that enters, set back by the last that leaves."""

    lock = threading.Lock()
    inside = 0
    before: Any = None


@contextmanager
def _onednn() -> Iterator[None]:
    switch: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue] - torch 2.9
    with _Switch.lock:
        if _Switch.inside == 0:
            _Switch.before = switch.fp32_precision
            switch.fp32_precision = "bf16"
        _Switch.inside += 1
    try:
        yield
    finally:
        with _Switch.lock:
            _Switch.inside -= 1
            if _Switch.inside == 0:
                switch.fp32_precision = _Switch.before


@contextmanager
def large_products() -> Iterator[None]:
    """Float32 products of large matrices on the CPU by the faster library, as exact as ever.

    torch leaves them to MKL, which on AMD's processors makes no use of AVX-512; oneDNN does, in less than half the
    time. It is asked only where the precision within a product may be bf16, which it does not use unless the processor
    has tiles (AMX); that its products are float32's is checked once. For training, and for the points of a cloud; not
    for the rest of acting: one observation's products are small, and oneDNN takes longer to begin.
    """
    if torch.compiler.is_compiling() or not _onednn_is_faster():
        yield
        return
    with _onednn():
        yield
