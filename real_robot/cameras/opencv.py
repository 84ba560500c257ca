"""Cameras through OpenCV: V4L2 devices, network streams (MJPEG, RTSP), video files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.errors import ConfigError
from real_robot.cameras.geometry import Intrinsics
from real_robot.cameras.stamps import Backlog
from real_robot.core.clock import MonotonicClock
from real_robot.core.types import SECOND, Clock, DeviceError, Frame

_MANUAL_EXPOSURE = 1  # V4L2_EXPOSURE_MANUAL
_OLD = 2 * SECOND  # a driver's stamp that is further back is on another clock


class OpenCvCamera:
    """A thread does nothing but take pictures, so that none grows old in a buffer; ``read`` hands out the newest.

    A picture is stamped when it comes in, or by the kernel where V4L2 does so on the monotonic clock, less
    ``latency_ms``. After a pause (a stalled network, a stopped process) what has piled up meanwhile has no known age,
    and is thrown away until a picture has to be waited for again. A file is played at its own rate.

    Args:
        name: of the camera.
        source: number or path of a V4L2 device (0, "/dev/video0", better "/dev/v4l/by-id/..."), URL, or file.
        width, height: pixels; None leaves the device's.
        fps: pictures per second; None leaves the device's.
        pixel_format: four letters, "MJPG" or "YUYV"; None leaves the device's.
        exposure: fixed, in the driver's unit (100 us for most webcams); None leaves it automatic.
        latency_ms: from capture to receipt, calibrated.
        timeout_s: without a picture, after which the device is given up.

    Attributes:
        notes: what the device gave instead of what it was asked for, after ``start``.
    """

    has_depth = False

    def __init__(
        self,
        name: str,
        source: int | str,
        *,
        width: int | None = None,
        height: int | None = None,
        fps: float | None = None,
        pixel_format: str | None = None,
        exposure: float | None = None,
        latency_ms: float = 0.0,
        timeout_s: float = 2.0,
        clock: Clock | None = None,
    ):
        if pixel_format is not None and len(pixel_format) != 4:
            raise ConfigError(f"camera {name}: pixel_format has four letters ('MJPG', 'YUYV'), not '{pixel_format}'.")
        self.name = name
        self.source = int(source) if str(source).isdecimal() else str(source)
        self.width, self.height, self.fps = width or 0, height or 0, fps or 0.0
        self.intrinsics: Intrinsics | None = None
        self.notes: list[str] = []
        self._asked = {"width": width, "height": height, "fps": fps, "pixel_format": pixel_format, "exposure": exposure}
        self._latency, self._timeout_s = round(latency_ms * 1e6), timeout_s
        self._clock = clock or MonotonicClock()
        self._is_file = isinstance(self.source, str) and Path(self.source).is_file()
        self._is_device = isinstance(self.source, int) or self.source.startswith("/dev/")
        self._thread: threading.Thread | None = None
        self._arrived = threading.Condition()
        self._stop = threading.Event()
        self._frame: Frame | None = None
        self._error: str | None = None
        self._read = 0

    def start(self) -> None:
        """Opens the source, sets its options, begins to drain it."""
        self.close()
        capture = self._open()
        self.notes = self._set(capture)
        self.width, self.height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self.fps = float(capture.get(cv2.CAP_PROP_FPS)) or 30.0
        # The thread gets its own event and slot: one that hangs in a dead driver cannot disturb its successor
        self._stop, self._frame, self._error, self._read = threading.Event(), None, None, 0
        self._thread = threading.Thread(target=self._drain, args=(capture, self._stop), daemon=True)
        self._thread.start()

    def _open(self) -> Any:
        if self._is_device:
            capture = cv2.VideoCapture(self.source, cv2.CAP_V4L2)
        else:
            ms = round(self._timeout_s * 1000)
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, ms]
            capture = cv2.VideoCapture(str(self.source), cv2.CAP_FFMPEG, limits)
        if capture.isOpened():
            return capture
        path = f"/dev/video{self.source}" if isinstance(self.source, int) else self.source
        if not self._is_device:
            advice = "is the file there and the address right, and does it play with ffplay?"
        elif not os.path.exists(path):
            advice = "there is no such device; is it plugged in? (`ls -l /dev/v4l/by-id` lists cameras)"
        else:
            advice = "is it a capture device, free, and yours to open (group video)?"
        raise DeviceError(f"camera {self.name}: {self.source} does not open: {advice}")

    def _set(self, capture: Any) -> list[str]:
        """Sets what was asked for; says what the device gives instead."""
        asked, notes = self._asked, []
        if asked["pixel_format"] is not None:  # first: sizes and rates depend on it
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*asked["pixel_format"]))
            given = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True).decode("latin1")
            if given != asked["pixel_format"]:
                notes.append(f"pixel_format is {given!r}, asked for {asked['pixel_format']}")
        if asked["exposure"] is not None:
            capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL_EXPOSURE)
        properties = {"width": cv2.CAP_PROP_FRAME_WIDTH, "height": cv2.CAP_PROP_FRAME_HEIGHT,
                      "fps": cv2.CAP_PROP_FPS, "exposure": cv2.CAP_PROP_EXPOSURE}  # fmt: skip
        wanted = {k: p for k, p in properties.items() if asked[k] is not None}
        for key, number in wanted.items():
            capture.set(number, asked[key])
        for key, number in wanted.items():  # after all were set: one may move another
            if abs((given := capture.get(number)) - asked[key]) > 0.01 * abs(asked[key]):
                notes.append(f"{key} is {given:g}, asked for {asked[key]:g}")
        return notes

    def _drain(self, capture: Any, stop: threading.Event) -> None:
        """The thread: takes pictures until it is stopped or none comes."""
        try:
            error = self._take(capture, stop)
        except cv2.error as e:
            error = " ".join(str(e).split())
        finally:
            capture.release()  # here and nowhere else: releasing under a grab crashes
        with self._arrived:
            if self._stop is stop:
                self._error = error
                self._arrived.notify_all()

    def _take(self, capture: Any, stop: threading.Event) -> str:
        period = round(SECOND / self.fps)
        backlog = None if self._is_file else Backlog(period, self._clock.now())
        due = self._clock.now()
        seq = 0
        while not stop.is_set():
            if self._is_file:
                self._clock.sleep_until(due)
                due += period
            asked = self._clock.now()
            if not capture.grab():
                return "the file has ended" if self._is_file else "the device or stream has ended"
            now = self._clock.now()
            seq += 1
            t = self._kernel_stamp(capture, now)
            if t is None and backlog is not None and backlog.holds(asked, now):
                if backlog.lasts(now) > self._timeout_s * SECOND:
                    return f"pictures have piled up faster than they are taken for {self._timeout_s:g} s"
                continue
            self._publish(capture, stop, seq, (t or now) - self._latency)
        return "closed"

    def _kernel_stamp(self, capture: Any, now: int) -> int | None:
        """The driver's time of this picture, where it is one of the monotonic clock."""
        if not self._is_device:
            return None
        t = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        return t if 0 <= now - t < _OLD else None

    def _publish(self, capture: Any, stop: threading.Event, seq: int, t: int) -> None:
        ok, bgr = capture.retrieve()
        if not ok or bgr is None:  # a damaged picture; the gap in seq tells
            return
        if bgr.shape[:2] != (self.height, self.width):
            raise cv2.error(f"the picture is {bgr.shape[1]} x {bgr.shape[0]} now, was {self.width} x {self.height}")
        if bgr.ndim == 2:
            bgr = cv2.cvtColor(bgr, cv2.COLOR_GRAY2BGR)
        rgb = np.ascontiguousarray(bgr[..., ::-1])
        with self._arrived:
            if self._stop is stop:
                self._frame = Frame(t, seq, rgb)
                self._arrived.notify_all()

    def read(self) -> Frame:
        """Waits for a picture that was not read yet."""
        if self._thread is None:
            raise DeviceError(f"camera {self.name} is not started.")

        def ready() -> bool:
            return self._error is not None or (self._frame is not None and self._frame.seq > self._read)

        with self._arrived:
            self._arrived.wait_for(ready, self._timeout_s)
            if self._frame is not None and self._frame.seq > self._read:
                self._read = self._frame.seq
                return self._frame
            what = self._error or f"no picture came for {self._timeout_s:g} s"
        raise DeviceError(f"camera {self.name} ({self.source}): {what}. Look at its cable, its power and its light.")

    def close(self) -> None:
        """Ends the thread, which lets go of the device; one that hangs in the driver is left behind."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join(self._timeout_s)
            self._thread = None
