"""Point clouds as plain arrays: from a depth image, cropped to a workspace, thinned evenly to a fixed number of points.

The same three functions serve simulated rays, simulated depth images and a real depth camera.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: x right, y up, looking along -z (OpenGL and MuJoCo).

    Attributes:
        position: (3,) metres, world.
        rotation: (3, 3), columns are the camera's axes in the world.
        fovy: vertical field of view, degrees.
    """

    position: np.ndarray
    rotation: np.ndarray
    fovy: float

    def focal(self, height: int) -> float:
        """Focal length in pixels (pixels are square)."""
        return 0.5 * height / np.tan(0.5 * np.deg2rad(self.fovy))

    def directions(self, height: int, width: int) -> np.ndarray:
        """(H * W, 3) world directions through the pixel centres, scaled so that depth 1 is one unit along the axis."""
        f = self.focal(height)
        x = (np.arange(width) + 0.5 - 0.5 * width) / f
        y = (0.5 * height - np.arange(height) - 0.5) / f
        local = np.stack(np.broadcast_arrays(x[None, :], y[:, None], -1.0), axis=-1)
        return local.reshape(-1, 3) @ self.rotation.T

    def project(self, points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates (..., 2) as (column, row), and depth (...) in metres, of world ``points`` (..., 3)."""
        local = (points - self.position) @ self.rotation
        depth = -local[..., 2]
        scale = self.focal(height) / np.maximum(depth, 1e-9)
        column = 0.5 * width + local[..., 0] * scale
        row = 0.5 * height - local[..., 1] * scale
        return np.stack([column, row], axis=-1), depth


def depth_to_cloud(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Back-project a depth image: (H, W) metres along the optical axis to (H * W, 3) metres, world.

    Pixels without a reading (zero, or not finite) become NaN; ``Workspace.keep`` drops them.
    """
    height, width = depth.shape
    d = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).reshape(-1, 1)
    return camera.position + d * camera.directions(height, width)


@dataclass(frozen=True)
class Workspace:
    """Which points matter: those inside a box, and not on a known fixture (table, walls).

    Attributes:
        low, high: (3,) metres, world.
        fixture_centre: (F, 3) metres; fixture_axes: (F, 3, 3), columns are the box axes; fixture_half: (F, 3) metres.
        margin: metres around a fixture that are dropped with it (a depth camera's error; 3 mm suits the simulator).
    """

    low: np.ndarray
    high: np.ndarray
    fixture_centre: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    fixture_axes: np.ndarray = field(default_factory=lambda: np.zeros((0, 3, 3)))
    fixture_half: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    margin: float = 0.003

    def keep(self, points: np.ndarray) -> np.ndarray:
        """(M,) bool for ``points`` (M, 3); NaN points are not kept."""
        inside = np.asarray(((points >= self.low) & (points <= self.high)).all(axis=1))
        if len(self.fixture_half):
            # All fixtures at once: a point is clear of a box if it is outside along any of the box's axes.
            along = np.abs(points @ self._axes - self._offset) > self._reach
            clear = np.asarray(along.reshape(len(points), len(self.fixture_half), 3).any(axis=2))
            inside &= clear.all(axis=1)
        return inside

    @cached_property
    def _axes(self) -> np.ndarray:
        return self.fixture_axes.transpose(1, 0, 2).reshape(3, -1)  # (3, 3F)

    @cached_property
    def _offset(self) -> np.ndarray:
        return np.einsum("fi,fij->fj", self.fixture_centre, self.fixture_axes).reshape(-1)  # (3F,)

    @cached_property
    def _reach(self) -> np.ndarray:
        return (self.fixture_half + self.margin).reshape(-1)


def even_subsample(points: np.ndarray, n: int) -> np.ndarray:
    """Thin ``points`` (M, D >= 3) to exactly ``n``, spread evenly over the surfaces; deterministic.

    One point per occupied voxel, with voxels just small enough to give ``n`` of them: nearly the coverage of
    farthest-point sampling at a small fraction of its cost. Fewer than ``n`` points are repeated in turn; none at all
    give zeros.
    """
    m = len(points)
    if m == 0:
        return np.zeros((n, points.shape[1]), np.float32)
    if m <= n:
        return points[np.resize(np.arange(m), n)].astype(np.float32)
    if m < 1.1 * n:  # hardly any choice: drop some evenly along the list
        return points[(np.arange(n) * m) // n].astype(np.float32)
    first = _one_per_voxel(points[:, :3] - points[:, :3].min(axis=0), n)
    if len(first) < n:  # coincident points: no voxel size separates them
        first = np.concatenate([first, np.setdiff1d(np.arange(m), first)[: n - len(first)]])
    # The few too many are dropped evenly along the list, which runs through space voxel by voxel.
    pick = first[(np.arange(n) * len(first)) // n]
    return points[pick].astype(np.float32)


def _one_per_voxel(xyz: np.ndarray, n: int) -> np.ndarray:
    """Index of one point in each occupied voxel, voxels in lexicographic order, about 1.05 ``n`` of them (>= n)."""
    extent = float(xyz.max()) + 1e-6
    size, finest = extent / 30.0, extent / 1e5
    best = None
    for _ in range(4):  # occupied voxels of a surface go as size^-2, so this converges in two or three tries
        first = _occupied(xyz, size)
        if len(first) >= n and (best is None or len(first) < len(best)):
            best = first
            if len(first) < 1.1 * n:
                break
        size *= np.sqrt(len(first) / (1.05 * n))
    while best is None:
        size *= 0.8
        first = _occupied(xyz, size)
        if len(first) >= n or size < finest:
            best = first
    return best


def _occupied(xyz: np.ndarray, size: float) -> np.ndarray:
    """Index of the first point in each occupied voxel of ``size`` metres."""
    cell = (xyz * (1.0 / size)).astype(np.int64)
    key = (cell[:, 0] << 42) | (cell[:, 1] << 21) | cell[:, 2]
    return np.unique(key, return_index=True)[1]
