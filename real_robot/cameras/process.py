"""The process of one camera: from the device into the ring ``camera.<name>``, whatever happens to the cable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ConfigError
from real_robot.cameras.build import build_camera
from real_robot.cameras.geometry import Calibration
from real_robot.core.ring import Ring
from real_robot.core.streams import Events, Session, camera_dtype
from real_robot.core.types import Camera, DeviceError, Frame

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0  # s between attempts to reach a device


def run(folder: str, camera: Mapping[str, Any], keep_s: float = 4.0) -> None:
    """Writes pictures until the session stops; starts the device anew when it fails, for as long as it takes.

    Args:
        folder: of the session.
        camera: options, see ``build_camera``.
        keep_s: s of pictures that the ring holds: for how long a recorder may be away without loss.

    Raises:
        ConfigError: options that cannot work; no other attempt would.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the supervisor decides
    session = Session(folder)
    events = Events(session, f"camera.{camera.get('name', 'unnamed')}")
    try:
        device, calibration = build_camera(camera, folder)
        _Loop(session, events, device, calibration, keep_s).run()
    except ConfigError as e:
        events.error(str(e))
        raise


def describe(device: Camera, calibration: Calibration) -> Calibration:
    """What the calibration file says, and what it does not and the device knows."""
    lens, pose = getattr(device, "intrinsics", None), getattr(device, "pose", None)
    return calibration.over(Calibration(device.name, lens, pose))


def read_description(folder: str | Path, name: str) -> dict[str, Any]:
    """What the process of camera ``name`` last wrote of it: width, height, fps, depth, calibration."""
    return json.loads((Path(folder) / f".camera.{name}.json").read_text())


class _Loop:
    """One camera's life: reach it, read it, lose it, reach it again."""

    def __init__(self, session: Session, events: Events, device: Camera, calibration: Calibration, keep_s: float):
        self.session, self.events, self.device, self.calibration = session, events, device, calibration
        self.keep_s = keep_s
        self.ring: Ring | None = None
        self.last_t, self.seq_before = -1, 0
        self.pause, self.said, self.lost = FIRST_PAUSE, "", False
        self._resume()

    def _resume(self) -> None:
        """Time and count go on where this process, before it was started anew, left them."""
        name = f"camera.{self.device.name}"
        if self.session.has(name) and (newest := self.session.attach(name).latest()) is not None:
            self.last_t, self.seq_before = newest.t, int(newest.data["seq"])

    def run(self) -> None:
        while not self.session.stopping:
            try:
                self.device.start()
                self._tell()
                self._pump()
            except DeviceError as e:
                self._missed(str(e))
            finally:
                self.device.close()

    def _tell(self) -> None:
        """Notes of the device; its description beside the ring."""
        device = self.device
        for note in getattr(device, "notes", []):
            self.events.warning(f"camera {device.name}: {note}")
        known = describe(device, self.calibration)
        text = json.dumps({"name": device.name, "width": device.width, "height": device.height, "fps": device.fps,
                           "depth": device.has_depth, "calibration": known.to_dict()})  # fmt: skip
        path = self.session.folder / f".camera.{device.name}.json"
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(text)
        os.replace(draft, path)

    def _pump(self) -> None:
        base = self.seq_before  # a device that is started anew counts from 1 again; readers see one rising count
        while not self.session.stopping:
            frame = self.device.read()
            if frame.t <= self.last_t:  # an old picture, or a stamp that cannot be right
                continue
            if self.lost or self.ring is None:
                self.events.info(
                    f"camera {self.device.name}: pictures come, "
                    f"{self.device.width} x {self.device.height} at {self.device.fps:g} Hz"
                )
                self.lost, self.said, self.pause = False, "", FIRST_PAUSE
            self._put(frame, base + frame.seq)

    def _put(self, frame: Frame, seq: int) -> None:
        dtype = camera_dtype(frame.rgb.shape[0], frame.rgb.shape[1], frame.depth is not None)
        if self.ring is None or self.ring.dtype != dtype:
            self.ring = self._open(dtype)
        record: Any = np.zeros((), dtype)
        record["seq"], record["rgb"] = seq, frame.rgb
        if frame.depth is not None:
            record["depth"] = frame.depth
        self.ring.put(record, frame.t)
        self.last_t, self.seq_before = frame.t, seq

    def _open(self, dtype: np.dtype) -> Ring:
        slots = max(8, round(self.keep_s * (self.device.fps or 30.0)))
        name, size = f"camera.{self.device.name}", slots * dtype.itemsize
        free = shutil.disk_usage(self.session.folder).free
        if not self.session.has(name) and free < 1.2 * size:  # a write into memory that is not there kills the process
            raise ConfigError(
                f"camera {self.device.name}: {slots} pictures need {size / 1e6:.0f} MB of {self.session.folder}, "
                f"which has {free / 1e6:.0f} MB left: lower keep_s, or give it more (docker: --shm-size)."
            )
        return self.session.reopen(name, dtype, slots)

    def _missed(self, why: str) -> None:
        """Says so, once per cause, and waits, longer each time."""
        self.lost = True
        if why != self.said:
            self.events.warning(f"{why} Trying again.")
            self.said = why
        until = time.monotonic() + self.pause
        while time.monotonic() < until and not self.session.stopping:
            time.sleep(0.05)
        self.pause = min(2 * self.pause, LONGEST_PAUSE)
