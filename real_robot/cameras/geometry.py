"""What is known of a camera: its lens, where it sits, how late its pictures are. One JSON file per camera.

Camera frames are OpenCV's: x right, y down, z forward; the centre of the upper left pixel is (0, 0).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Float, Float64

from data.errors import ConfigError

Pose = Float64[np.ndarray, "4 4"]
Mount = Literal["base", "tool"]


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera with OpenCV's distortion.

    Attributes:
        width, height: of the pictures that it holds for, pixels.
        fx, fy, cx, cy: pixels.
        distortion: k1, k2, p1, p2, k3.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = (0.0,) * 5

    @property
    def matrix(self) -> Float64[np.ndarray, "3 3"]:
        """K."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    @classmethod
    def from_matrix(cls, k: np.ndarray, distortion: np.ndarray, width: int, height: int) -> Intrinsics:
        """Of OpenCV's K and distortion."""
        numbers = (float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]))
        return cls(width, height, *numbers, tuple(float(d) for d in np.ravel(distortion)))

    def project(self, points: Float[np.ndarray, "m 3"]) -> Float64[np.ndarray, "m 2"]:
        """Pixels (column, row) of ``points`` in the camera's frame, m."""
        zero = np.zeros(3)
        points, distortion = np.asarray(points, np.float64), np.array(self.distortion)
        pixels, _ = cv2.projectPoints(points, zero, zero, self.matrix, distortion)
        return pixels.reshape(-1, 2)

    @cached_property
    def rays(self) -> Float64[np.ndarray, "h w 3"]:
        """Directions through the pixels' centres, scaled to depth 1; distortion undone."""
        grid = np.stack(np.meshgrid(np.arange(self.width), np.arange(self.height)), axis=-1).astype(np.float64)
        flat = cv2.undistortPoints(grid.reshape(-1, 1, 2), self.matrix, np.array(self.distortion))
        xy = flat.reshape(self.height, self.width, 2)
        return np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1)


@dataclass(frozen=True)
class Calibration:
    """What is known of one camera; None where it is not.

    Attributes:
        camera: its name.
        intrinsics: of its lens.
        pose: of the camera in the frame that it is mounted to, homogeneous, m.
        mount: "base", the robot's frame, or "tool", the tool's.
        latency_ms: from capture to receipt.
    """

    camera: str
    intrinsics: Intrinsics | None = None
    pose: Pose | None = None
    mount: Mount = "base"
    latency_ms: float | None = None

    def in_base(self, tool: Pose | None = None) -> Pose:
        """Pose of the camera in the robot's frame; ``tool`` is the tool's, needed where the camera rides on it.

        Raises:
            ConfigError: not calibrated, or no tool pose.
        """
        if self.pose is None:
            raise ConfigError(f"camera {self.camera}: its place is unknown; see `python -m real_robot.calibrate`.")
        if self.mount == "base":
            return self.pose
        if tool is None:
            raise ConfigError(f"camera {self.camera} rides on the tool: the tool's pose is needed to place it.")
        return tool @ self.pose

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        pose = None if self.pose is None else self.pose.tolist()
        lens = None if self.intrinsics is None else asdict(self.intrinsics)
        return {"camera": self.camera, "intrinsics": lens, "pose": pose, "mount": self.mount,
                "latency_ms": self.latency_ms}  # fmt: skip

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Calibration:
        """Inverse of ``to_dict``."""
        lens = d.get("intrinsics")
        if lens is not None:
            lens = Intrinsics(**{**lens, "distortion": tuple(lens.get("distortion", ()))})
        pose = None if d.get("pose") is None else np.asarray(d["pose"], np.float64)
        if pose is not None and pose.shape != (4, 4):
            raise ValueError(f"pose has shape {pose.shape}, expected (4, 4)")
        mount = d.get("mount", "base")
        if mount not in ("base", "tool"):
            raise ValueError(f"mount is 'base' or 'tool', not {mount!r}")
        return cls(str(d["camera"]), lens, pose, mount, d.get("latency_ms"))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Of a file that ``python -m real_robot.calibrate`` wrote.

        Raises:
            ConfigError: no such file, or something else in it.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except FileNotFoundError:
            raise ConfigError(f"There is no calibration {path}: `python -m real_robot.calibrate` makes one.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ConfigError(f"{path} is not a camera's calibration: {e}.") from e

    def save(self, path: str | Path) -> None:
        """Whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        os.replace(draft, path)

    def over(self, other: Calibration) -> Calibration:
        """This, and what ``other`` knows where this does not."""
        unknown = [k for k in ("intrinsics", "latency_ms") if getattr(self, k) is None]
        merged: dict[str, Any] = {k: getattr(other, k) for k in unknown}
        if self.pose is None and other.pose is not None:
            merged |= {"pose": other.pose, "mount": other.mount}
        return replace(self, **merged)
