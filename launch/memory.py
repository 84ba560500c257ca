"""The allocator's setting; imported before torch, so this module imports nothing that is slow."""

from __future__ import annotations

import ctypes
import os
import sys


def keep_large_tensors() -> None:
    """Restarts the interpreter with glibc told to keep freed memory.

    By default glibc gives large CPU tensors back to the system when they are freed and faults them in again at the next
    step; a point-cloud training step takes twice as long that way. Only the environment can say so.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    try:
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 - musl has no such symbol and no such setting
    except AttributeError:
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(2**32)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
