"""The disk that a recording lies on: whose it is, how much of it is free, and a little that is kept back."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from data.errors import ConfigError

RESERVE_BYTES = 256 << 10  # so that an episode can be closed on a full disk


class Disk:
    """Of the folder ``out``, made if need be, for one recorder at a time.

    Args:
        out: of the recording.
        min_free_mb: with less it counts as full.
        patience: s to wait for another recorder to be gone.

    Raises:
        ConfigError: another recorder writes there.
    """

    def __init__(self, out: Path, min_free_mb: float, patience: float = 5.0):
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.min_free_mb = out, min_free_mb
        self._lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it with its holder
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._lock)
                    raise ConfigError(f"Another recorder writes to {out}: give each an out= of its own.") from None
                time.sleep(0.05)
        self._reserve = out / ".reserve"

    @property
    def free_mb(self) -> float:
        """What is free to us; 0 where the disk is gone."""
        try:
            found = os.statvfs(self.out)
        except OSError:
            return 0.0
        return found.f_bavail * found.f_frsize / 1e6

    def low(self) -> OSError:
        """What to say with less than ``min_free_mb``."""
        return OSError(errno.ENOSPC, f"less than {self.min_free_mb:.0f} MB are free")

    def keep_reserve(self) -> bool:
        """Whether some could be kept back."""
        try:
            with open(self._reserve, "wb") as f:
                os.posix_fallocate(f.fileno(), 0, RESERVE_BYTES)
        except OSError:
            self.use_reserve()
            return False
        return True

    def use_reserve(self) -> None:
        """Gives it back to the disk."""
        self._reserve.unlink(missing_ok=True)

    def close(self) -> None:
        """For the next recorder."""
        self.use_reserve()
        os.close(self._lock)
