"""From options to a camera."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.construct import construct, load_named, option_names
from real_robot.cameras.geometry import Calibration
from real_robot.core.types import Camera

CAMERAS = {
    "opencv": "real_robot.cameras.opencv:OpenCvCamera",
    "realsense": "real_robot.cameras.realsense:RealSenseCamera",
    "simulated": "real_robot.cameras.simulated:SimulatedCamera",
}


def build_camera(options: Mapping[str, Any], folder: str | Path | None = None) -> tuple[Camera, Calibration]:
    """A camera that is not started, and what is known of it.

    Args:
        options: ``type``, a key of CAMERAS or "package.module:Class" for a driver of your own, ``name``, perhaps
            ``calibration`` (a file), and the type's arguments. The calibration's
            ``latency_ms`` holds where none is given.
        folder: of the session, where a simulated camera's ``world`` is.

    Raises:
        ConfigError: an unknown type or option, or a missing one.
    """
    rest = {k: v for k, v in options.items() if v is not None}
    kind, name = str(rest.pop("type", None)), str(rest.get("name", "unnamed"))
    make = load_named(CAMERAS, kind, f"cameras.{name}.type")
    known = option_names(make)
    path = rest.pop("calibration", None)
    calibration = Calibration.load(path) if path is not None else Calibration(name)
    if calibration.latency_ms is not None and "latency_ms" in known:
        rest.setdefault("latency_ms", calibration.latency_ms)
    if "world" in known and (folder is not None or "world" in rest):
        rest["world"] = Path(folder or ".") / rest.get("world", "world")
    given = {"clock": None} if "clock" in known else {}
    return construct(make, rest, f"cameras.{name}", **given), calibration
