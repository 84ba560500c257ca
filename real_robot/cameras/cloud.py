"""Point clouds in the robot's frame from depth pictures, cropped and thinned as training's clouds are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from data.cloud import Workspace, even_subsample
from data.errors import ConfigError
from real_robot.cameras.geometry import Calibration, Pose


class CloudSensor:
    """One cloud of what several depth cameras see.

    Args:
        cameras: calibrations with intrinsics and pose; depth is aligned to the pictures that they hold for.
        workspace: what is kept, in the robot's frame: a box, less its fixtures.
        n_points: P, of the cloud.
        stride: takes every so manieth pixel of a row and a column; 2 is plenty for 640 x 480 and P = 1024.
    """

    def __init__(self, cameras: Mapping[str, Calibration], workspace: Workspace, n_points: int, stride: int = 1):
        self.cameras, self.workspace, self.n_points, self.stride = dict(cameras), workspace, n_points, stride
        self._rays = {}
        for name, camera in self.cameras.items():
            if camera.intrinsics is None:
                raise ConfigError(f"camera {name}: its intrinsics are unknown; see `python -m real_robot.calibrate`.")
            self._rays[name] = camera.intrinsics.rays[::stride, ::stride].reshape(-1, 3)

    def points(self, depth: Mapping[str, np.ndarray], tool: Pose | None = None) -> Float32[np.ndarray, "p 3"]:
        """The cloud, m, robot's frame.

        Args:
            depth: (H, W) m per camera, 0 where unknown.
            tool: pose of the tool when the depth was taken, where a camera rides on it.
        """
        clouds = []
        for name, camera in self.cameras.items():
            seen = depth[name]
            lens = camera.intrinsics
            assert lens is not None
            if seen.shape != (lens.height, lens.width):
                raise ConfigError(
                    f"camera {name}: depth is {seen.shape[1]} x {seen.shape[0]}, "
                    f"its intrinsics hold for {lens.width} x {lens.height}."
                )
            d = seen[:: self.stride, :: self.stride].reshape(-1).astype(np.float64)
            known = np.isfinite(d) & (d > 0)
            pose = camera.in_base(tool)
            cloud = (d[known, None] * self._rays[name][known]) @ pose[:3, :3].T + pose[:3, 3]
            clouds.append(cloud[self.workspace.keep(cloud)])
        return even_subsample(np.concatenate(clouds), self.n_points)
