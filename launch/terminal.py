"""Progress for people, interruption, and errors without tracebacks."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from data.errors import DeftError
from launch.processes import lost_connection, sibling_processes

# No markup and no wrapping: paths and option values contain brackets, and are copied from the terminal.
console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class Bar:
    """A progress bar in a terminal; a line every ten seconds where the output goes to a file.

    Args:
        label: what is being done.
        total: number of units.
        start: units already done.
        enabled: false in all but one process of a data-parallel run.
    """

    def __init__(self, label: str, total: int, *, start: int = 0, enabled: bool = True):
        self.label, self.total, self.enabled = label, total, enabled
        self._live = enabled and console.is_terminal
        self._last_line = time.monotonic()
        if self._live:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._progress.add_task(label, total=total, completed=start, note="")

    def __enter__(self) -> Bar:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._progress.stop()

    def update(self, done: int, note: str = "") -> None:
        """``done`` units are finished; ``note`` stands behind the bar."""
        if self._live:
            self._progress.update(self._task, completed=done, note=note)
        elif self.enabled and (time.monotonic() - self._last_line > 10 or done == self.total):
            self._last_line = time.monotonic()
            console.print(f"{self.label}: {done}/{self.total} {note}".rstrip())


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived while something that may simply stop was running."""


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a flag that the loop looks at; a second Ctrl-C stops at once.

    Args:
        talk: whether to say what is going on; false in all but one process.
    """

    def __init__(self, *, talk: bool = True) -> None:
        self.received: str | None = None
        self._talk = talk
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        if self._talk:
            console.print(f"{self.received}: finishing this step and saving (once more to stop at once)")

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        if self.received is not None:
            raise Interrupted(self.received)


def fail(message: str) -> None:
    """One paragraph that says what went wrong."""
    console.print(Text.assemble(("error: ", "bold red"), message))


def run_main(main: Callable[[list[str]], int]) -> None:
    """Runs an entry point; errors that the user can act on are one paragraph on stderr and exit status 2.

    SIGTERM ends what it interrupts as Ctrl-C does, so that worker processes are ended too.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with sibling_processes():
            status = main(sys.argv[1:])
        sys.stdout.flush()
    except DeftError as e:
        fail(str(e))
        status = 2
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        status = 0  # | head
    except (KeyboardInterrupt, Interrupted):
        # What it interrupted may have been zarr, about to await: nobody needs to know.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        console.print("interrupted")
        status = 130
    except RuntimeError as e:
        if not lost_connection(e):
            raise
        fail(f"Another process of this run has ended, so this one ends too ({str(e).splitlines()[0]}).")
        status = 1
    sys.stdout.flush()
    sys.exit(status)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone; what is left to print then goes nowhere."""
    out = sys.stdout.fileno()
    look = select.poll()
    look.register(out, 0)
    gone = any(event & select.POLLERR for _, event in look.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return gone
