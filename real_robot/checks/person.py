"""Who stands beside the robot: answers questions, and may stop it by any key."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data.errors import ConfigError
from launch.terminal import console
from real_robot.teleop.devices.keys import Keys


class Person:
    """At the terminal, over SSH too.

    Args:
        yes: answers by itself, for a robot that is simulated.
        stdin: file descriptor of what is typed: a terminal or a pipe.
    """

    def __init__(self, *, yes: bool, stdin: int = 0):
        self.yes, self._stdin = yes, stdin
        self._typed = ""
        self._keys: Keys | None = None

    def ask(self, question: str, meanwhile: Callable[[], None], answers: str = "yn") -> str:
        """The letter of ``answers`` that is typed, and Enter; ``meanwhile`` is called some 25 times a second.

        Raises ConfigError where nobody can answer.
        """
        console.print(f"{question} [{'/'.join(answers)}]" + (" y (yes=true)" if self.yes else ""))
        while not self.yes:
            meanwhile()
            self._read(0.04)
            line, newline, rest = self._typed.partition("\n")
            if newline:
                self._typed = rest
                if (letter := line.strip().lower()[:1]) and letter in answers:
                    return letter
                console.print(f"Please type one of {', '.join(answers)}, and Enter.")
        return "y"

    @contextmanager
    def at_the_stop(self) -> Iterator[None]:
        """While the robot moves: ``pressed`` tells of any key, without Enter where it is a terminal."""
        self._typed = ""
        if not self.yes and os.isatty(self._stdin):
            self._keys = Keys(os.ttyname(self._stdin))
            self._keys.start()
        try:
            yield
        finally:
            if self._keys is not None:
                self._keys.close()
                self._keys = None

    def pressed(self) -> bool:
        """Whether a key was, since ``at_the_stop`` began."""
        if self.yes:
            return False
        if self._keys is not None:
            return bool(self._keys.read())
        self._read(0.0)
        found, self._typed = bool(self._typed), ""
        return found

    def _read(self, seconds: float) -> None:
        if not select.select([self._stdin], [], [], seconds)[0]:
            return
        typed = os.read(self._stdin, 1024)
        if not typed:
            raise ConfigError(
                "Nobody can answer: standard input is closed. Run in a terminal (ssh -t); yes=true is for simulators."
            )
        self._typed += typed.decode(errors="ignore").replace("\r", "\n")


def pause(seconds: float, meanwhile: Callable[[], None]) -> None:
    """Waits, looking after everything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        meanwhile()
        time.sleep(0.02)
