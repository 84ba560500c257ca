"""The process's environment; imported before torch, so this module imports nothing that is slow."""

from __future__ import annotations

import ctypes
import os
import sys

_WANTED = {
    # By default glibc gives large CPU tensors back to the system when they are freed and faults them in again at the
    # next step; a point-cloud training step takes twice as long that way.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    # Threads that spin while they wait for one that another process has pushed aside make it wait longer: on two busy
    # cores a training step took five to seven times as long as with threads that sleep.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def keep_large_tensors() -> None:
    """Restarts the interpreter with what only the environment can say, unless the user has said it."""
    missing = {name: value for name, value in _WANTED.items() if name not in os.environ}
    if not missing or not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 - musl has no such symbol and no such setting
    except AttributeError:
        return
    os.environ.update(missing)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
