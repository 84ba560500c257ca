"""A command that a test talks to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.real_robot.buses import ENVIRONMENT, ROOT


class Command:
    """``python -m`` and its words."""

    def __init__(self, *words: str):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
        )
        self.said: list[str] = []
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        self.said.extend(iter(self.process.stdout.readline, ""))

    def says(self, words: str, seconds: float = 30.0) -> str:
        """Waits for it."""
        end = time.monotonic() + seconds
        while not (found := [line for line in list(self.said) if words in line]):
            assert time.monotonic() < end, f"'{words}' never came: {''.join(self.said)}"
            time.sleep(0.02)
        return found[-1]

    def types(self, text: str) -> None:
        """To its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def finishes(self, seconds: float = 30.0) -> int:
        """By itself; its status."""
        status = self.process.wait(seconds)
        self._listener.join()
        return status

    def ends(self) -> int:
        """Ctrl-C; its status."""
        self.process.send_signal(signal.SIGINT)
        return self.finishes()

    def kill(self) -> None:
        """Whatever else."""
        self.process.kill()
        self.process.wait()
        self._listener.join()


# For simulated robots on a machine that has other things to do
PATIENT = ("priority=null", "safety.watch.robot=2.0", "safety.watch.late=5.0", "safety.watch.overruns=400")


def train(run: Path, *words: str) -> dict:
    """``train.py`` and its words; what its last line says."""
    done = subprocess.run(
        [sys.executable, "train.py", *words, f"run_dir={run}"], cwd=ROOT, env=ENVIRONMENT, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def brief_base(folder: Path) -> Path:
    """A policy of the simulated robot that has learned next to nothing."""
    small = ["obs=state", "obs.keys=[agent_pos,cube]", "network.hidden_dim=32", "policy.n_inference_steps=2"]
    brief = ["data.n_demos=1", "algo.train_steps=20", "eval.n_episodes=1", "eval.n_videos=0"]
    train(folder / "base", "task=robot", *small, *brief, f"data.root={folder}")
    return folder / "base"
