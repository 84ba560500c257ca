"""Intel RealSense depth cameras through pyrealsense2: colour, and depth aligned to it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ConfigError
from real_robot.cameras.geometry import Intrinsics
from real_robot.cameras.stamps import DeviceClock
from real_robot.core.clock import MonotonicClock
from real_robot.core.types import Clock, DeviceError, Frame


class RealSenseCamera:
    """One camera, or a recording of one (``rs.recorder``, the Viewer's .bag or .db3) played at its own rate.

    Pictures are stamped by the camera: librealsense's global time where the firmware tells it, else the camera's own
    clock, mapped by its fastest arrivals; less ``latency_ms``.

    Args:
        name: of the camera.
        serial: number on its back; None takes the only one there is.
        recording: file to play instead.
        width, height, fps: of colour and depth alike; a recording has its own.
        depth: whether to see depth as well.
        exposure: fixed, of colour, us; None leaves it automatic.
        latency_ms: from capture to the stamp, calibrated.
        timeout_s: without a picture, after which the device is given up.

    Attributes:
        intrinsics: of colour, and so of the aligned depth, after ``start``.
        notes: what the device gave instead of what it was asked for, after ``start``.
    """

    def __init__(
        self,
        name: str,
        *,
        serial: str | int | None = None,
        recording: str | Path | None = None,
        width: int = 640,
        height: int = 480,
        fps: int = 30,
        depth: bool = True,
        exposure: float | None = None,
        latency_ms: float = 0.0,
        timeout_s: float = 2.0,
        clock: Clock | None = None,
    ):
        self.name, self.width, self.height, self.fps, self.has_depth = name, width, height, float(fps), depth
        self._serial = None if serial is None else str(serial)
        self._recording = None if recording is None else Path(recording)
        if self._recording is not None and not self._recording.is_file():
            raise ConfigError(f"camera {name}: there is no recording {recording}.")
        self._exposure, self._latency, self._timeout_s = exposure, round(latency_ms * 1e6), timeout_s
        self._clock = clock or MonotonicClock()
        self.intrinsics: Intrinsics | None = None
        self.notes: list[str] = []
        self._pipeline: Any = None

    def start(self) -> None:
        """Starts the streams, sets options, asks for intrinsics."""
        self.close()
        rs = self._rs = _import()
        config = rs.config()
        if self._recording is None and self._serial not in self._found():
            raise DeviceError(self._advice("it is not connected"))  # the pipeline would wait 15 s for it
        if self._recording is not None:
            config.enable_device_from_file(str(self._recording), repeat_playback=False)
        else:
            if self._serial is not None:
                config.enable_device(self._serial)
            size = (self.width, self.height)
            config.enable_stream(rs.stream.color, *size, rs.format.rgb8, round(self.fps))
            if self.has_depth:
                config.enable_stream(rs.stream.depth, *size, rs.format.z16, round(self.fps))
        pipeline = rs.pipeline()
        try:
            profile = pipeline.start(config)
        except RuntimeError as e:
            raise DeviceError(self._advice(str(e))) from e
        self._pipeline = pipeline
        self._align = rs.align(rs.stream.color)
        self._device_clock, self._number, self._seq = DeviceClock(), -1, 0
        self._learn(profile)

    def _found(self) -> set[str | None]:
        """Serial numbers of what is connected; None among them where anything is."""
        number = self._rs.camera_info.serial_number
        found = {d.get_info(number) for d in self._rs.context().query_devices() if d.supports(number)}
        return found | ({None} if found else set())

    def _advice(self, why: str) -> str:
        what = self._recording or self._serial or "any RealSense"
        connected = ", ".join(s for s in self._found() if s) or "none"
        return (
            f"camera {self.name}: {what} does not start ({why}); asked for {self.width} x {self.height} at "
            f"{self.fps:g} Hz; connected: {connected}. Look at its cable (USB 3), the udev rules, and whether another "
            "program has it."
        )

    def _learn(self, profile: Any) -> None:
        """Size, intrinsics, what became of the options."""
        rs = self._rs
        kinds = [s.stream_type() for s in profile.get_streams()]
        if rs.stream.color not in kinds or (self.has_depth and rs.stream.depth not in kinds):
            raise DeviceError(f"camera {self.name}: colour or depth is missing among {[str(k) for k in kinds]}.")
        colour = profile.get_stream(rs.stream.color).as_video_stream_profile()
        lens = colour.get_intrinsics()
        self.width, self.height, self.fps = lens.width, lens.height, float(colour.fps())
        # Inverse Brown-Conrady with coefficients that are not zero has no OpenCV equivalent; colour's are zero
        plain = lens.model in (rs.distortion.none, rs.distortion.brown_conrady, rs.distortion.modified_brown_conrady)
        self.notes = [] if plain or not any(lens.coeffs) else [f"distortion {lens.model} is ignored: calibrate it"]
        coefficients = tuple(float(c) for c in lens.coeffs) if plain else (0.0,) * 5
        self.intrinsics = Intrinsics(self.width, self.height, lens.fx, lens.fy, lens.ppx, lens.ppy, coefficients)
        if self._exposure is not None:
            self.notes += self._expose(profile.get_device())

    def _expose(self, device: Any) -> list[str]:
        option = self._rs.option
        sensors = [s for s in device.query_sensors() if s.supports(option.exposure) and not s.is_depth_sensor()]
        if not sensors:
            return ["exposure cannot be set on this device"]
        try:
            sensors[0].set_option(option.enable_auto_exposure, 0)
            sensors[0].set_option(option.exposure, self._exposure)
        except RuntimeError as e:
            return [f"exposure {self._exposure:g} was refused: {e}"]
        given = sensors[0].get_option(option.exposure)
        return [] if given == self._exposure else [f"exposure is {given:g}, asked for {self._exposure:g}"]

    def read(self) -> Frame:
        """Waits for the next picture."""
        if self._pipeline is None:
            raise DeviceError(f"camera {self.name} is not started.")
        give_up = time.monotonic() + self._timeout_s
        while time.monotonic() < give_up:
            try:
                frames = self._pipeline.wait_for_frames(round(self._timeout_s * 1000))
            except RuntimeError as e:
                raise DeviceError(f"camera {self.name}: {e}. Look at its cable and its power.") from e
            received = self._clock.now()
            colour, depth = frames.get_color_frame(), frames.get_depth_frame()
            if not colour or (self.has_depth and not depth) or colour.frame_number <= self._number:
                continue  # a set may repeat the colour of the one before with new depth
            self._seq += max(1, colour.frame_number - self._number) if self._number >= 0 else 1
            self._number = colour.frame_number
            t = self._stamp(colour, received)
            if not self.has_depth:
                return Frame(t, self._seq, self._rgb(colour))
            aligned = self._align.process(frames)
            depth = aligned.get_depth_frame()
            metres = np.asanyarray(depth.get_data()).astype(np.float32) * np.float32(depth.get_units())
            return Frame(t, self._seq, self._rgb(aligned.get_color_frame()), metres)
        raise DeviceError(f"camera {self.name}: no new picture for {self._timeout_s:g} s. Look at its cable.")

    def _rgb(self, frame: Any) -> np.ndarray:
        image, kind = np.array(frame.get_data()), frame.profile.format()
        if kind == self._rs.format.rgb8:
            return image
        if kind == self._rs.format.bgr8:
            return np.ascontiguousarray(image[..., ::-1])
        raise DeviceError(f"camera {self.name}: colour comes as {kind}, not as rgb8 or bgr8: record it anew.")

    def _stamp(self, frame: Any, received: int) -> int:
        ns = round(frame.timestamp * 1e6)
        if self._recording is None and frame.frame_timestamp_domain != self._rs.timestamp_domain.hardware_clock:
            t = received - (time.time_ns() - ns)  # of the wall clock: only its age is of use
        else:  # a recording's stamps are of another day, whatever their clock
            t = self._device_clock.map(ns, received)
        return min(t, received) - self._latency

    def close(self) -> None:
        """Stops the streams."""
        if self._pipeline is not None:
            pipeline, self._pipeline = self._pipeline, None
            pipeline.stop()


def _import() -> Any:
    try:
        import pyrealsense2  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ConfigError(
            f"RealSense cameras need pyrealsense2 ({e}): pip install 'deft[realsense]', and libusb "
            "(apt install libusb-1.0-0)."
        ) from e
    return pyrealsense2
