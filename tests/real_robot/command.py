"""A command that a test talks to."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

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
