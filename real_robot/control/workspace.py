"""Where the tool may be: a box, planes and forbidden spheres, in the robot's frame, by forward kinematics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.errors import ConfigError
from real_robot.core.kinematics import Kinematics
from real_robot.core.types import Joints


class Workspace:
    """How far outside the tool's centre is.

    Args:
        kinematics: of the robot.
        box: ((x, y, z) lower, (x, y, z) upper) corners, m; null entries do not limit.
        planes: ((nx, ny, nz), d): n . x >= d must hold, n of length 1, m; a table at height h is ((0, 0, 1), h).
        spheres: ((x, y, z), radius), m, that the tool must keep out of.
        margin: m by which all of these are drawn in, for what happens between the points that are looked at.
    """

    def __init__(
        self,
        kinematics: Kinematics,
        *,
        box: Sequence[Sequence[float | None]] | None = None,
        planes: Sequence[Any] = (),
        spheres: Sequence[Any] = (),
        margin: float = 0.005,
    ):
        self.kinematics, self.margin = kinematics, margin
        low, high = box if box is not None else ([None] * 3, [None] * 3)
        self.low = np.array([-np.inf if x is None else x for x in low], np.float64)
        self.high = np.array([np.inf if x is None else x for x in high], np.float64)
        self.planes = [(np.asarray(n, np.float64), float(d)) for n, d in planes]
        self.spheres = [(np.asarray(c, np.float64), float(r)) for c, r in spheres]
        if self.low.shape != (3,) or self.high.shape != (3,) or not (self.low < self.high).all():
            raise ConfigError(f"safety.box must be two corners of three numbers, lower below upper, not {box}.")
        for n, _ in self.planes:
            if n.shape != (3,) or abs(np.linalg.norm(n) - 1) > 1e-3:
                raise ConfigError(f"safety.planes: the normal {n.tolist()} must be three numbers of length 1.")

    def outside(self, q: Joints) -> float:
        """m, 0 or less inside (margin included)."""
        x = self.kinematics.position(q)
        return self.margin + self.depth(x)

    def depth(self, x: np.ndarray) -> float:
        """m by which a point (3,) lies outside, without margin; negative inside."""
        depths = [float(np.max(self.low - x)), float(np.max(x - self.high))]
        depths += [d - float(n @ x) for n, d in self.planes]
        depths += [r - float(np.linalg.norm(x - c)) for c, r in self.spheres]
        return max(depths)
