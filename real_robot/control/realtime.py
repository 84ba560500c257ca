"""What the operating system can be asked for, so that a tick begins when it is due."""

from __future__ import annotations

import ctypes
import gc
import os

_PR_SET_TIMERSLACK = 29
_MCL_CURRENT, _MCL_FUTURE = 1, 2


def ask_for_priority(priority: int = 60) -> list[str]:
    """This process first, in memory, awake to the microsecond; returns what was refused, as sentences.

    SCHED_FIFO needs root, CAP_SYS_NICE or an rtprio line in /etc/security/limits.conf.
    """
    refused = []
    gc.collect()
    gc.freeze()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_TIMERSLACK, 1)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (PermissionError, AttributeError):
        refused.append(
            "no real-time priority (SCHED_FIFO): ticks may come some ms late; allow it by a line "
            "'USER - rtprio 99' in /etc/security/limits.conf"
        )
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        refused.append("its memory may be swapped out (mlockall was refused)")
    return refused
