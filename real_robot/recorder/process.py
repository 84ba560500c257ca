"""The recorder's process: turns what happens in a session into episodes on the disk.

START begins an episode, STOP ends it, SUCCESS and FAILURE label it, now or afterwards, DISCARD puts it away; the
buttons come through the rings ``request`` and ``teleop``. A recorder that is killed and started anew goes on with the
episode where it was; the rings hold what it has missed meanwhile. On a full disk the episode ends; what is in it stays.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ConfigError
from real_robot.core.streams import Events, Session
from real_robot.core.types import SECOND, Button
from real_robot.recorder import folder as folders
from real_robot.recorder.disk import Disk
from real_robot.recorder.pictures import Encoding
from real_robot.recorder.take import STATUS, Take, present
from real_robot.recorder.wishes import Wish, Wishes, merge

RECORDER = np.dtype(
    [("recording", "?"), ("full", "?"), ("episode", "<i4"), ("seconds", "<f8"), ("mb", "<f8"), ("missed", "<i8"),
     ("free_mb", "<f8")]
)  # fmt: skip
LOOK = 0.1  # s between two looks for new rings
TELL = 0.2  # s between two records of the ring "recorder"
CHECK = 1.0  # s between two looks at the disk


def run(
    folder: str,
    *,
    out: str,
    info: Mapping[str, Any] | None = None,
    preroll: float = 0.5,
    tail: float = 0.3,
    image: str = "jpeg",
    quality: int = 95,
    depth: str = "png16",
    depth_unit: float = 0.001,
    min_free_mb: float = 200.0,
    poll: float = 0.01,
    nice: int = -10,
) -> None:
    """Records until the session ends.

    Args:
        folder: of the session.
        out: of the recording; episodes are added to those that are there.
        info: kept in every episode's meta.json; JSON-ready. ``export`` reads info["robot"]: {"name", "joints", "lower",
            "upper", "control_hz"}.
        preroll: s before START that are recorded too, as far as the rings reach back.
        tail: s after STOP for which the recorder waits for what was captured before it.
        image: jpeg, png or raw.
        quality: of jpeg, 1 to 100.
        depth: png16 (see ``real_robot.recorder.pictures`` for its error) or raw.
        depth_unit: m, of png16.
        min_free_mb: below it the disk counts as full.
        poll: s between two looks into the rings.
        nice: of the process, as far as the system allows it: a late chunk can be made good, a lost record cannot.
    """
    import cv2

    try:
        json.dumps(info)
    except TypeError as e:
        raise ConfigError(f"recorder: info cannot be written as JSON: {e}.") from None
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides
    cv2.setNumThreads(1)
    recorder = Recorder(
        Session(folder), Path(out), info or {}, Encoding(image, quality, depth, depth_unit),
        preroll=preroll, tail=tail, min_free_mb=min_free_mb,
    )  # fmt: skip
    try:
        while not recorder.session.stopping:
            if recorder.step():
                time.sleep(poll)
        recorder.step()
    finally:
        recorder.close()


class Recorder:
    """What ``run`` does, step by step; see there."""

    def __init__(
        self,
        session: Session,
        out: Path,
        info: Mapping[str, Any],
        encoding: Encoding,
        *,
        preroll: float,
        tail: float,
        min_free_mb: float,
    ):
        self.session, self.out, self.info, self.encoding = session, out, dict(info), encoding
        self.preroll, self.tail = preroll, tail
        self.disk = Disk(out, min_free_mb)
        self.events = Events(session, "recorder")
        self._status = session.reopen(STATUS, RECORDER, 64)
        self._rings = present(session, {})
        self._take: Take | None = None
        self._meta: dict[str, Any] = {}
        self._last: Path | None = None  # the episode that labels belong to
        self._unsettled: tuple[Path, dict[str, Any]] | None = None
        self._full, self._missed, self._looked, self._told, self._checked = False, 0, 0.0, 0.0, 0.0
        self._free_mb = self.disk.free_mb
        self._take_up()

    # ------------------------------------------------------------------------------------- starting and going on

    def _take_up(self) -> None:
        """What another recorder has left."""
        self.disk.use_reserve()
        mine = str(self.session.folder)
        unfinished = folders.clean(self.out)
        resumed = [f for f in unfinished if folders.read_meta(f)["session"] == mine][-1:]
        for folder in unfinished:
            if folder not in resumed:
                try:
                    meta = folders.recover(folder, "its session died")
                except OSError as e:
                    self.events.error(f"{folder.name} had not ended and cannot be recovered yet: {e.strerror}")
                    continue
                self.events.warning(f"{meta['name']} had not ended: {folders.seconds(meta):.1f} s of it are recovered")
        every = [*folders.episodes(self.out), *folders.episodes(self.out, discarded=True)]
        metas = [(f, m) for f in every if (m := folders.read_meta(f))["session"] == mine]
        self.wishes = Wishes(merge(m["handled"] for _, m in sorted(metas, key=lambda x: folders.number(x[0]))))
        self._last = max((f for f, m in metas if folders.is_done(f) and not m["discard"]), default=None)
        self.disk.keep_reserve()
        for folder in resumed:
            self._resume(folder)

    def _resume(self, folder: Path) -> None:
        self._meta = folders.read_meta(folder)
        try:
            self._take = self._open(folder)
        except OSError as e:
            return self._trouble(e)
        found, self._take.log.found = self._take.log.found, None
        self._missed = self._count_missed()
        self.events.warning(f"the recorder was started anew and goes on with {folder.name}")
        for wish in self.wishes.recorded(found) if found else ():
            self._see_to(wish)

    def _open(self, folder: Path) -> Take:
        return Take(folder, self._meta["start"] - round(self.preroll * SECOND), self.encoding)

    # --------------------------------------------------------------------------------------------------- one step

    def step(self) -> bool:
        """Everything there is to do now; whether the rings may be left alone for a while."""
        now, idle = time.monotonic(), True
        if now - self._looked > LOOK and self.session.folder.exists():
            self._rings, self._looked = present(self.session, self._rings), now
        for wish in self.wishes.read(self._rings):
            self._see_to(wish)
        if self._take is not None:
            idle = self._record(self._take)
        if now - self._checked > CHECK:
            self._checked = now
            self._check()
        if now - self._told > TELL:
            self._told = now
            self._tell()
        return idle

    def _record(self, take: Take) -> bool:
        try:
            take.follow(self._rings)
            until = self._until()
            caught_up = take.drain(until)
            take.keep_safe()
            if caught_up and until is not None and time.monotonic_ns() > until:
                self._finish()
        except OSError as e:
            self._trouble(e)
            return True
        return caught_up

    def _check(self) -> None:
        """The disk, and what was missed."""
        self._free_mb = self.disk.free_mb
        enough = self._free_mb >= self.disk.min_free_mb
        if self._full:
            self._settle()
            if self._unsettled is None and enough and self.disk.keep_reserve():
                self._full = False
                self.events.info("there is space on the disk again: episodes can be recorded")
        elif self._take is not None and not enough:
            self._trouble(self.disk.low())
        missed = self._count_missed()
        if self._take is not None and missed > self._missed:
            behind = ", ".join(f"{k} {v['missed']}" for k, v in self._take.streams.items() if v["missed"])
            self.events.warning(f"records overwritten before they could be recorded: {behind}. Disk or CPU too slow?")
        self._missed = missed

    def _tell(self) -> None:
        recording, size = self._take is not None, self._take.log.size if self._take else 0
        now = time.monotonic_ns()
        seconds = ((self._meta["end"] or now) - self._meta["start"]) / SECOND if recording else 0.0
        number = folders.number(self._take.folder) if self._take else -1
        values = recording, self._full, number, seconds, size / 1e6, self._count_missed(), self._free_mb
        self._status.put(np.array(values, RECORDER), now)

    # -------------------------------------------------------------------------------------------- people's wishes

    def _see_to(self, wish: Wish) -> None:
        self.wishes.done(wish)
        try:
            if Button.START in wish.buttons:
                self._start(wish.t)
            if wish.buttons & (Button.SUCCESS | Button.FAILURE):
                self._label("success" if Button.SUCCESS in wish.buttons else "failure")
            if Button.STOP in wish.buttons and self._take is not None:
                self._end(wish.t)
            if Button.DISCARD in wish.buttons:
                self._discard(wish.t)
        except OSError as e:
            self._trouble(e)

    def _start(self, t: int) -> None:
        if self._take is not None and self._meta["end"]:
            self._finish()
        if self._take is not None:
            return self.events.warning(f"START: {self._take.folder.name} is being recorded already")
        if not self._full and self.disk.free_mb < self.disk.min_free_mb:
            self._trouble(self.disk.low())
        if self._full:
            return self.events.error(f"START: {self.out} is full, nothing is recorded")
        now, date = time.monotonic_ns(), datetime.datetime.now().astimezone()
        self._meta = {
            "session": str(self.session.folder), "date": date.isoformat(timespec="seconds"), "start": t, "end": None,
            "realtime": time.time_ns() - (now - t), "label": None, "truncated": None, "discard": False,
            "handled": self.wishes.handled, "streams": {}, "late": {}, "info": self.info,
        }  # fmt: skip
        folder = folders.begin(self.out, self._meta)
        self._meta, self._missed = folders.read_meta(folder), 0
        self._take = self._open(folder)
        self.events.info(f"recording {folder.name}")

    def _label(self, label: str) -> None:
        if self._take is not None:
            self._meta["label"] = label
        elif self._unsettled is not None:
            self._unsettled[1]["label"] = label
        elif self._last is not None and self._last.exists():
            folders.set_label(self._last, label, handled=self.wishes.handled)
            self.events.info(f"{self._last.name}: {label}")
        else:
            self.events.warning(f"{label.upper()}: there is no episode to label")

    def _end(self, t: int) -> None:
        self._meta["end"] = self._meta["end"] or max(t, self._meta["start"])

    def _discard(self, t: int) -> None:
        if self._take is not None:
            self._meta["discard"] = True
            self._end(t)
            self._finish()
        elif self._unsettled is not None:
            self._unsettled[1]["discard"] = True
        elif self._last is not None and self._last.exists():
            folders.discard(self._last, handled=self.wishes.handled)
            self.events.info(f"{self._last.name} discarded")
            self._last = None
        else:
            self.events.warning("DISCARD: there is no episode to discard")

    # ------------------------------------------------------------------------------------------------- how it ends

    def _finish(self, truncated: str | None = None) -> None:
        """The episode is over; raises nothing but OSError."""
        take, meta = self._take, self._meta
        assert take is not None
        self._end(time.monotonic_ns())
        while not take.drain(self._until()):
            pass
        take.close()
        streams = take.streams
        meta |= {"truncated": truncated, "streams": streams}
        folders.finish(take.folder, meta | {"late": take.late, "handled": self.wishes.handled})
        self._take, self._last = None, take.folder
        missed, dropped = (sum(s[key] for s in streams.values()) for key in ("missed", "dropped"))
        said = f"{meta['name']}: {folders.seconds(meta):.1f} s, {missed} records missed, {dropped} pictures dropped"
        self.events.info(f"{said}{f', ended early: {truncated}' if truncated else ''}")
        for name, late in take.late.items():
            self.events.warning(f"{meta['name']}: '{name}' is there from {late:g} s after START only")
        if meta["discard"]:
            folders.discard(take.folder)
            self.events.info(f"{meta['name']} discarded")
            self._last = None

    def _trouble(self, error: OSError) -> None:
        """The disk does not take any more: the episode ends with what is in it."""
        self._full = True
        self.disk.use_reserve()
        if self._take is not None:
            take, self._take = self._take, None
            with contextlib.suppress(OSError):
                take.close()
            self._unsettled = take.folder, {**self._meta, "late": take.late, "truncated": f"disk: {error.strerror}"}
        name = f"; {self._unsettled[0].name} ends here, what is in it is kept" if self._unsettled else ""
        self.events.error(f"{self.out} takes no more data ({error.strerror}){name}. Make room, then START anew")
        self._settle()

    def _settle(self) -> None:
        """Closes the episode that could not be closed; again and again until it works."""
        if self._unsettled is None:
            return
        folder, meta = self._unsettled
        try:
            folders.recover(folder, "disk", **{**meta, "handled": self.wishes.handled})
            self._unsettled, self._last = None, folder
            if meta["discard"]:
                self._last = None
                folders.discard(folder)
        except OSError:  # still full
            return

    def close(self) -> None:
        """The session is over."""
        try:
            if self._take is not None:
                self._finish(None if self._meta["end"] else "the session ended before STOP")
            self._settle()
        except OSError as e:
            self._trouble(e)
        finally:
            self.disk.close()

    def _until(self) -> int | None:
        return self._meta["end"] and self._meta["end"] + round(self.tail * SECOND)

    def _count_missed(self) -> int:
        return sum(s["missed"] for s in self._take.streams.values()) if self._take is not None else 0
