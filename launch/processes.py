"""Several processes: the device and the place of this one among them, and the processes a launcher did not start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from accelerate import PartialState
from accelerate.commands.launch import launch_command_parser

from data.errors import ConfigError

COLLECTION_TIME = timedelta(hours=12)  # how long processes wait for each other, for example while one collects


def join_processes(device: str) -> tuple[PartialState, torch.device]:
    """This process among all, and its device; joins the process group when there are several.

    Args:
        device: auto (the GPU if there is one), cpu or cuda.

    Raises:
        ConfigError: no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is auto, cpu or cuda, not '{device}'.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but PyTorch finds no CUDA device; device=auto takes what there is.")
    cpu = device == "cpu" or not torch.cuda.is_available()
    # gloo on the CPU; accelerate only takes it when told so.
    options = {"timeout": COLLECTION_TIME} if "LOCAL_RANK" in os.environ else {}
    state = PartialState(cpu=cpu, **options)
    assert state.device is not None
    return state, state.device


@contextmanager
def sibling_processes() -> Iterator[None]:
    """Starts what ``accelerate launch --num_processes N`` does not start on a machine without GPUs, and ends with it.

    There accelerate runs the script once and leaves the rest to MPI, so that N processes would silently become one.
    This process then becomes rank 0 of N and starts the others; under torchrun or with GPUs nothing is left to do.
    """
    n, port = _missing_processes()
    siblings: list[subprocess.Popen] = []
    try:
        if n > 1:
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or _free_port()), "WORLD_SIZE": str(n)}
            os.environ.update(group, LOCAL_WORLD_SIZE=str(n), RANK="0", LOCAL_RANK="0")
        for rank in range(1, n):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            siblings.append(subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, **place}))
        yield
        for sibling in siblings:
            sibling.wait()
    finally:
        for sibling in siblings:  # that are left after an error wait for this process, deaf to gentler signals
            with suppress(subprocess.TimeoutExpired):
                sibling.wait(timeout=2)
            sibling.kill()
            sibling.wait()


def lost_connection(error: RuntimeError) -> bool:
    """Whether ``error`` only says that another process of the group is gone, which has told the reason itself."""
    return isinstance(error, torch.distributed.DistError) or "by peer" in str(error)


def _missing_processes() -> tuple[int, int | None]:
    """(number of processes the launcher above us was told to make but did not, its port); (1, None) when none."""
    # What accelerate's launcher sets when it runs a script once although several processes were asked for.
    alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.cuda.is_available()
    if not alone or not on_cpu or any(name in os.environ for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")):
        return 1, None
    words = psutil.Process(os.getppid()).cmdline()
    for i, word in enumerate(words):
        if Path(word).name in ("launch", "accelerate-launch", "launch.py", "accelerate.commands.launch"):
            options = launch_command_parser().parse_args(words[i + 1 :])
            if options.num_processes and (options.num_machines or 1) == 1:
                return options.num_processes, options.main_process_port
    raise ConfigError(
        "accelerate was asked for several processes, but without GPUs it starts only one, and how many were meant "
        "cannot be seen. Give --num_processes N on the command line, or use torchrun --nproc-per-node N train.py ..."
    )


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
