"""N environments in worker processes (or in this one): requests go out, replies come back in any order.

Plain numpy; ``ChunkEnv``, ``evaluate`` and ``collect_demos`` are built on it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from data.errors import ConfigError, DeftError
from data.spec import TaskSpec
from envs.make import is_live, make_env
from envs.worker import Slot, Windows, serve, slot_views, window_bytes

_START_SECONDS = 300
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerError(DeftError):
    """A worker process died, or an environment in it raised."""


class _Process:
    """A worker process with its pipe and shared memory, and the environments it holds."""

    def __init__(self, envs: list[int]):
        self.envs = envs
        self.pending: deque[int] = deque()  # environments whose replies are still to come, in order
        self.connection, theirs = Pipe()
        self._memory = _anonymous_memory()
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from envs.worker import main; main()", str(theirs.fileno()), str(self._memory)],
            env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONPATH": path},
            pass_fds=(theirs.fileno(), self._memory),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which then closes the pipe
        )
        theirs.close()  # so that the worker's death shows as the end of the pipe
        self.buffer: mmap.mmap | None = None

    def share(self, spec: TaskSpec, n_obs_steps: int) -> None:
        """Give the shared memory its size, now that the shapes are known."""
        size = max(1, 2 * window_bytes(spec, n_obs_steps) * len(self.envs))
        os.ftruncate(self._memory, size)
        self.buffer = mmap.mmap(self._memory, size)
        self.send(size)

    def send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self.receive()  # an error the worker reported says more than the broken pipe
            raise self._died() from None

    def receive(self) -> Any:
        try:
            kind, *content = self.connection.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            raise self._died() from None
        if kind == "error":
            error, text = content
            if isinstance(error, DeftError):
                raise error
            raise WorkerError(f"An environment in a worker process raised:\n{text}")
        return content[0]

    def _died(self) -> WorkerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        hint = " The system may be out of memory." if code == -signal.SIGKILL else ""
        return WorkerError(f"The worker process of environments {self.envs} died ({how}).{hint}")

    def close(self) -> None:
        self.connection.close()
        if self.pending:
            self._process.kill()  # nobody will read what it is working on
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            os.close(self._memory)


class _Local:
    """The same interface without a process: requests are answered at once, in order."""

    def __init__(self, env_args: dict[str, Any], envs: list[int], n_obs_steps: int, gamma: float):
        self.envs = envs
        self.pending: deque[int] = deque()
        self.replies: deque[Any] = deque()
        self._envs = [make_env(env_args) for _ in envs]
        self.spec = self._envs[0].spec
        self.buffer = bytearray(max(1, 2 * window_bytes(self.spec, n_obs_steps) * len(envs)))
        views = [slot_views(self.buffer, i, self.spec, n_obs_steps) for i in range(len(envs))]
        self._slots = [Slot(e, n_obs_steps, *v, gamma) for e, v in zip(self._envs, views, strict=True)]

    def send(self, message: Any) -> None:
        self.replies.extend(serve(iter([message]), self._slots))

    def receive(self) -> Any:
        return self.replies.popleft()

    def close(self) -> None:
        for env in self._envs:
            env.close()


class EnvPool:
    """N equal environments, dealt to workers in turn.

    Attributes:
        spec: the task's contract.
    """

    def __init__(
        self,
        env_args: dict[str, Any],
        *,
        n_envs: int,
        n_obs_steps: int,
        gamma: float = 1.0,
        n_workers: int | None = None,
        in_process: bool = False,
    ):
        """Start the workers and build the environments.

        Args:
            env_args: see ``make_env``.
            n_envs: N.
            n_obs_steps: To.
            gamma: discount per control step, inside ``ChunkInfo``.
            n_workers: processes; by default one per environment, at most one per core.
            in_process: no processes at all (debugging, tests, tiny environments).

        Raises:
            ConfigError: counts below one, or what ``make_env`` raises.
            WorkerError: a worker died while starting.
        """
        if n_envs < 1 or n_obs_steps < 1:
            raise ConfigError(f"n_envs and n_obs_steps must be at least 1, got {n_envs} and {n_obs_steps}.")
        if is_live(env_args) and n_envs > 1:
            raise ConfigError(f"There is one robot, n_envs={n_envs} of it cannot be had: set n_envs=1.")
        self.n_envs, self.n_obs_steps = n_envs, n_obs_steps
        n_workers = min(n_envs, n_workers or os.cpu_count() or 1)
        self._workers: list[_Process] | list[_Local] = []
        self._closed = False
        if in_process:
            local = _Local(env_args, list(range(n_envs)), n_obs_steps, gamma)
            self._workers, self.spec = [local], local.spec
        else:
            self.spec = self._start(env_args, n_workers, gamma)
        self._place = {}
        for worker in self._workers:
            for slot, env in enumerate(worker.envs):
                self._place[env] = (worker, slot, *slot_views(worker.buffer, slot, self.spec, n_obs_steps))

    def _start(self, env_args: dict[str, Any], n_workers: int, gamma: float) -> TaskSpec:
        if any(str(key).startswith("rgb") for key in env_args.get("obs", ())):
            settle_renderer()
        workers: list[_Process] = []
        self._workers = workers
        try:
            for w in range(n_workers):
                workers.append(_Process(list(range(w, self.n_envs, n_workers))))
                workers[-1].send((env_args, len(workers[-1].envs), self.n_obs_steps, gamma))
            specs = []
            for worker in workers:
                if not worker.connection.poll(_START_SECONDS):
                    raise WorkerError(f"A worker process did not start within {_START_SECONDS} s.")
                specs.append(worker.receive())
                worker.share(specs[0], self.n_obs_steps)
            return specs[0]
        except BaseException:
            self.close()
            raise

    def request(self, env: int, kind: str, *arguments: Any) -> None:
        """Ask environment ``env`` for something (see ``worker.serve``) without waiting for it."""
        worker, slot, _, _ = self._place[env]
        worker.pending.append(env)
        worker.send((kind, slot, *arguments))

    def next_reply(self) -> tuple[int, Any]:
        """Wait for any reply: (environment, content). Raises WorkerError, or what the environment raised."""
        busy = [w for w in self._workers if w.pending]
        if not busy:
            raise RuntimeError("nothing was requested")
        ready = busy[0]
        if isinstance(ready, _Process):
            connections: dict[Connection, _Process] = {w.connection: w for w in busy}  # type: ignore[union-attr]
            ready = connections[wait(list(connections))[0]]  # type: ignore[index]
        content = ready.receive()
        return ready.pending.popleft(), content

    def obs(self, env: int) -> Windows:
        """(To, *shape) per key: a view of the window for the next decision; valid until the next request."""
        return self._place[env][2]

    def next_obs(self, env: int) -> Windows:
        """(To, *shape) per key: a view of the last chunk's true successor; valid until the next request."""
        return self._place[env][3]

    def close(self) -> None:
        """End the workers and free their memory; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._place = {}
            for worker in self._workers:
                worker.close()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


def settle_renderer() -> None:
    """Find out once which renderer works, so that the workers need not each try."""
    from envs.render import backend

    backend()


def stack_windows(windows: list[Windows]) -> dict[str, np.ndarray]:
    """N windows (To, *shape) to arrays (N, To, *shape), copied."""
    return {key: np.stack([w[key] for w in windows]) for key in windows[0]}


def _anonymous_memory() -> int:
    """A descriptor of shared memory that vanishes with its last user: nothing to leak, nothing to unlink."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("deft-obs")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
