"""Starts the processes of a session, starts again those that die, and ends them together.

The control process is not started again: a robot whose control has died is stopped (``last_gasp``), and a person has to
look at it. Every other process may die and come back; control judges what they say by its age.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from real_robot.core.streams import ERROR, Events, Session, event

READY = 60.0  # s that a part is waited for


@dataclass
class Part:
    """A process of a session.

    Attributes:
        name: for people.
        run: its main function; called with the session's folder and ``options``.
        essential: the session ends when it does.
        ready: ring that the parts after it wait for before they start.
        needs: ring of its own; where it gives up before that is there, the session ends.
        restarts: times that it was started anew.
    """

    name: str
    run: Callable[..., None]
    options: Mapping[str, Any] = field(default_factory=dict)
    essential: bool = False
    ready: str | None = None
    needs: str | None = None
    restarts: int = 0
    process: Any = None
    again_at: float = 0.0


class Supervisor:
    """Of one session.

    Args:
        parts: in the order in which they are started; the first are stopped last.
        last_gasp: called when an essential process died without having been asked to end.
        max_restarts: of a part, after which it is left dead.
        session: to run in; its own by default.
    """

    def __init__(
        self,
        parts: list[Part],
        *,
        last_gasp: Callable[[], None] | None = None,
        max_restarts: int = 20,
        session: Session | None = None,
    ):
        self.session = session or Session()
        self.parts, self.last_gasp, self.max_restarts = parts, last_gasp, max_restarts
        self.events = Events(self.session, "supervisor")
        self._context = mp.get_context("spawn")
        self._heard: dict[str, int] = {}
        self.failed: str | None = None

    def __enter__(self) -> Supervisor:
        for part in self.parts:
            self._start(part)
            end = time.monotonic() + READY
            while (
                part.ready and not self.session.has(part.ready) and part.process.is_alive() and time.monotonic() < end
            ):
                time.sleep(0.02)
            if part.ready and part.essential and not part.process.is_alive():  # nothing for the others to start on
                break
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start(self, part: Part) -> None:
        part.process = self._context.Process(
            target=part.run, args=(str(self.session.folder),), kwargs=dict(part.options), name=f"deft-{part.name}"
        )
        part.process.start()

    def watch(self) -> bool:
        """Looks after all parts once; returns whether the session goes on."""
        if self.session.stopping:
            return False
        for part in self.parts:
            if part.process is None or part.process.is_alive():
                continue
            if part.essential or self._never_came(part):
                self.failed = f"{part.name} ended with status {part.process.exitcode}"
                self.events.error(f"{self.failed}: the session ends")
                if self.last_gasp is not None and part.essential and part.process.exitcode != 2:
                    self.last_gasp()
                self.session.stop()
                return False
            self._again(part)
        return True

    def _gives_up(self, part: Part) -> bool:
        return part.process.exitcode in (0, 2) or part.restarts >= self.max_restarts  # 2: it has said why

    def _never_came(self, part: Part) -> bool:
        return part.needs is not None and self._gives_up(part) and not self.session.has(part.needs)

    def _again(self, part: Part) -> None:
        if self._gives_up(part):
            self.events.error(f"{part.name} ended with status {part.process.exitcode} and is not started again")
            part.process = None
        elif not part.again_at:
            part.again_at = time.monotonic() + min(2.0, 0.1 * 2**part.restarts)
            self.events.warning(f"{part.name} died (status {part.process.exitcode}); it is started again")
        elif time.monotonic() >= part.again_at:
            part.restarts, part.again_at = part.restarts + 1, 0.0
            self._start(part)

    def news(self) -> list[tuple[str, int, str]]:
        """(process, level, text) of what was said since the last call, oldest first."""
        said = []
        for name in self.session.names("event."):
            records, _ = self.session.attach(name).since(self._heard.get(name, 0))
            for record in records:
                self._heard[name] = record.n
                said.append((record.t, name.removeprefix("event."), *event(record)))
        return [tuple(row[1:]) for row in sorted(said)]  # type: ignore[misc]

    def errors(self) -> list[str]:
        """Texts of all errors that are still there."""
        rings = [self.session.attach(name) for name in self.session.names("event.")]
        found = sorted((r.t, *event(r)) for ring in rings for r in ring.since(0)[0])
        return [text for _, level, text in found if level >= ERROR]

    def stop(self, timeout: float = 5.0) -> None:
        """Ends all parts, the last ones first; those that do not end are killed."""
        self.session.stop()
        end = time.monotonic() + timeout
        for part in reversed(self.parts):
            if part.process is None:
                continue
            part.process.join(max(0.1, end - time.monotonic()))
            if part.process.is_alive():
                part.process.kill()
                part.process.join()
        self.session.close()
