"""What a session does, in numbers: for the terminal, and for the summary at its end."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import numpy as np
from rich.table import Table

from real_robot.control.follower import Clip
from real_robot.control.machine import Machine
from real_robot.core.ring import Ring
from real_robot.core.streams import POLICY, SOURCES, Session
from real_robot.core.types import SECOND


class Status:
    """Follows a session's rings; call ``look`` a few times a second.

    Attributes:
        delays: s from observation to answer, of the last chunks.
        late: s that ticks began late. lost: ticks that were overwritten before they were seen.
        clipped: ticks by what clipped them. led: ticks by who led.
    """

    def __init__(self, session: Session):
        self.session = session
        self._rings: dict[str, Ring] = {}
        self._seen: dict[str, int] = {}
        self.delays: deque[float] = deque(maxlen=2000)
        self.late: deque[float] = deque(maxlen=100_000)
        self.clipped: Counter[str] = Counter()
        self.led: Counter[str] = Counter()
        self.jerk: deque[float] = deque(maxlen=100_000)  # of what was sent under the policy, RMS over joints
        self.ticks = self.lost = 0
        self.last: Any = None
        self.rates: dict[str, float] = {}
        self._past = np.zeros((0, 0))

    def _new(self, name: str) -> tuple[list, int]:
        if name not in self._rings:
            if not self.session.has(name):
                return [], 0
            self._rings[name] = self.session.attach(name)
        found, missed = self._rings[name].since(self._seen.get(name, 0))
        self._seen[name] = self._seen.get(name, 0) + len(found) + missed
        return found, missed

    def look(self) -> None:
        """At what is new."""
        ticks, missed = self._new("command")
        self.lost += missed
        for record in ticks:
            self._tick(record)
        for record in self._new("chunk")[0]:
            self.delays.append((int(record.data["answered"]) - int(record.data["asked"])) / SECOND)
        for name in self.session.names("camera."):
            found, _ = self._new(name)
            if len(found) > 1:
                self.rates[name] = (len(found) - 1) * SECOND / max(1, found[-1].t - found[0].t)

    def _tick(self, record: Any) -> None:
        d = record.data
        self.ticks, self.last = self.ticks + 1, record
        self.late.append(int(d["late"]) / SECOND)
        self.led[SOURCES[int(d["source"])]] += 1
        for clip in Clip:
            if clip and int(d["clipped"]) & clip:
                self.clipped[str(clip.name)] += 1
        sent = np.asarray(d["sent"])[None]
        if int(d["source"]) != POLICY or self._past.shape[1:] != sent.shape[1:]:
            self._past = sent
            return
        self._past = np.concatenate([self._past[-3:], sent])
        if len(self._past) == 4:
            self.jerk.append(float(np.square(np.diff(self._past, 3, axis=0)).mean()))

    def summary(self, control_hz: float) -> dict[str, Any]:
        """JSON-ready: delays and lateness in ms, jerk in rad/s^3, counts of ticks."""
        late = np.asarray(self.late or [np.nan]) * 1e3
        delay = np.asarray(self.delays or [np.nan]) * 1e3
        of_late = {"p50": np.median(late), "p99": np.percentile(late, 99), "max": late.max()}
        return {
            "ticks": self.ticks,
            "late_ms": {k: _round(v) for k, v in of_late.items()},
            "delay_ms": {"p50": _round(np.median(delay)), "p95": _round(np.percentile(delay, 95))},
            "jerk_rms": _round(float(np.sqrt(np.mean(self.jerk))) * control_hz**3) if self.jerk else None,
            "led": dict(self.led),
            "clipped": dict(self.clipped),
            "not_seen": self.lost,
        }

    def table(self, title: str, control_hz: float) -> Table:
        """For the terminal."""
        numbers = self.summary(control_hz)
        table = Table(title=title, show_header=False, title_justify="left")
        if self.last is not None:
            d = self.last.data
            table.add_row("state", f"{Machine(int(d['state'])).name}, led by {SOURCES[int(d['source'])]}")
            table.add_row("joints", np.array2string(np.asarray(d["sent"]), precision=2, suppress_small=True))
            chunk = "-" if int(d["chunk"]) < 0 else f"{int(d['chunk'])}, action {float(d['index']):.1f}"
            table.add_row("chunk", chunk)
        table.add_row("inference", "p50 {p50} ms, p95 {p95} ms".format(**numbers["delay_ms"]))
        table.add_row("ticks late", "p50 {p50} ms, p99 {p99} ms, most {max} ms".format(**numbers["late_ms"]))
        table.add_row("limits hit", ", ".join(f"{k} {v}" for k, v in self.clipped.items()) or "none")
        for name, rate in self.rates.items():
            table.add_row(name, f"{rate:.1f} pictures/s")
        return table


def _round(x: float) -> float | None:
    return None if not np.isfinite(x) else round(float(x), 3)
