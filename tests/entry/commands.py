"""Running the two commands and reading what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).parents[2]
TIMEOUT = 120
EVAL_KEYS = {
    "success_rate", "success_ci95", "n_episodes", "mean_return", "mean_length", "chunk_latency_ms_p50",
    "chunk_latency_ms_p99", "seeds",
}  # fmt: skip


def words(text: str) -> list[str]:
    return text.split()


TINY = words("""
    network=mlp network.hidden_dim=32 network.n_blocks=1 network.time_dim=16 algo.batch_size=16 algo.lr_warmup_steps=5
    log.every=1 eval.n_videos=0 device=cpu precision=fp32
""")
TOY = TINY + words("""
    task.suite=tests.entry.toys:make task.name=toy task.episode_length=30 obs=state data.n_demos=3 data.n_workers=0
    algo.train_steps=30 algo.save_every=10 eval.n_episodes=2 eval.n_envs=1
""")


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out.splitlines()[-1])


def environment(**more: str | None) -> dict[str, str]:
    """This process's and ``more``, without those that are None."""
    wanted = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return {name: value for name, value in wanted.items() if value is not None}


def run_command(*command: str, limit: float = TIMEOUT, **env: str | None) -> Done:
    """A real command in a fresh process, from the repository's root; ``limit`` in seconds."""
    done = subprocess.run(
        command, cwd=REPO, env=environment(**env), capture_output=True, text=True, timeout=limit, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def python(*arguments: str, **env: str | None) -> Done:
    return run_command(sys.executable, *arguments, **env)


class Process:
    """A command that the server runs."""

    def __init__(self, server: Server, pid: int, out: Path, err: Path):
        self.server, self.pid, self._out, self._err = server, pid, out, err
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            self._status = self.server.ask({"wait": self.pid})
        return self._status

    def wait(self) -> Done:
        deadline = time.monotonic() + TIMEOUT
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(self._err.read_text())
            time.sleep(0.02)
        return Done(status, self._out.read_text(), self.err)

    @property
    def err(self) -> str:
        return self._err.read_text() if self._err.exists() else ""

    def signal_when(self, number: int, condition: Any, what: str) -> Done:
        """Sends a signal as soon as ``condition()`` holds."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            status = self.poll()
            assert status is None, f"ended with {status} before {what}: {self.err}"
            assert time.monotonic() < deadline, f"never {what}: {self.err}"
            time.sleep(0.005)
        os.kill(self.pid, number)
        return self.wait()


class Server:
    """tests/entry/server.py."""

    def __init__(self, folder: Path):
        self.folder, self.n = folder, 0
        self.started: list[Process] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.entry.server"],
            cwd=REPO, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, script: str, *argv: str, **env: str) -> Process:
        self.n += 1
        out, err = self.folder / f"{self.n}.out", self.folder / f"{self.n}.err"
        request = {"script": script, "argv": argv, "env": env, "stdout": str(out), "stderr": str(err)}
        self.started.append(Process(self, self.ask(request), out, err))
        return self.started[-1]

    def run(self, script: str, *argv: str, **env: str) -> Done:
        return self.start(script, *argv, **env).wait()

    def train(self, *argv: str) -> Done:
        """A training that must succeed."""
        done = self.run("train.py", *argv)
        assert done.status == 0, done.err
        return done

    def close(self) -> None:
        for process in self.started:  # a test that failed may have left one running
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=20)


def serve(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.close()


def lines(run: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a clock has measured, and without the name of the folder."""
    measured = ("time", "samples_per_s", "chunk_latency_ms_p50", "chunk_latency_ms_p99", "checkpoint")
    measured += ("seconds", "train_seconds", "teacher_chunk_latency_ms_p50")
    return {k: v for k, v in record.items() if k not in measured}


def result(run: Path | str) -> dict[str, Any]:
    return timeless(json.loads((Path(run) / "eval.json").read_text()))


def weights(run: Path | str) -> bytes:
    return (Path(run) / "checkpoint" / "model.safetensors").read_bytes()


def assert_same_run(run: Path, straight: Path) -> None:
    """The two runs computed the same, bit for bit."""
    assert [timeless(r) for r in lines(run)] == [timeless(r) for r in lines(straight)]
    assert weights(run) == weights(straight)
    assert result(run) == result(straight)


def assert_refused(done: Done, *words: str) -> None:
    """Exit status 2 and one paragraph on stderr that contains ``words``."""
    assert done.status == 2, done.err
    assert "Traceback" not in done.err
    paragraph = done.err.strip().splitlines()[-1]
    assert paragraph.startswith("error: "), done.err
    assert done.err.count("error: ") == 1, done.err
    for word in words:
        assert word in paragraph, f"{word!r} is not in: {paragraph}"
    assert done.out == ""
