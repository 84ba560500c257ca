"""A camera's lens from pictures of a board."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from data.errors import DataError
from real_robot.calibration.board import Detection
from real_robot.cameras.geometry import Intrinsics

FEWEST_VIEWS = 5


class LensResult(NamedTuple):
    """``errors``: rms pixels of every view; ``outliers``: views that were left out, by index."""

    intrinsics: Intrinsics
    errors: list[float]
    outliers: list[int]
    focal_std: float  # pixels

    @property
    def rms(self) -> float:
        """Of the views that were kept, pixels."""
        kept = [e for i, e in enumerate(self.errors) if i not in self.outliers]
        return float(np.sqrt(np.mean(np.square(kept))))


def calibrate_intrinsics(views: Sequence[Detection], width: int, height: int) -> LensResult:
    """K and k1, k2, p1, p2 (k3 = 0) by least squares over the views that agree.

    Raises:
        DataError: too few views.
    """
    kept = list(range(len(views)))
    while True:
        if len(kept) < FEWEST_VIEWS:
            raise DataError(
                f"{len(kept)} usable views of the board; intrinsics need {FEWEST_VIEWS}, better 15, tilted."
            )
        fit = _fit([views[i] for i in kept], width, height)
        per_view = np.ravel(fit[-1])
        bad = per_view > max(1.0, 3 * float(np.median(per_view)))
        if not bad.any():
            break
        kept = [i for i, b in zip(kept, bad, strict=True) if not b]
    _, k, distortion, _, _, std, _, _ = fit
    intrinsics = Intrinsics.from_matrix(k, np.ravel(distortion)[:5], width, height)
    errors = [rms(residual(view, intrinsics, locate(view, intrinsics))) for view in views]
    outliers = [i for i in range(len(views)) if i not in kept]
    return LensResult(intrinsics, errors, outliers, float(np.ravel(std)[0]))


def _fit(views: Sequence[Detection], width: int, height: int) -> Any:
    points = [v.points.astype(np.float32) for v in views]
    pixels = [v.pixels.astype(np.float32) for v in views]
    start = np.eye(3), np.zeros(5)
    try:
        return cv2.calibrateCameraExtended(points, pixels, (width, height), *start, flags=cv2.CALIB_FIX_K3)
    except cv2.error as e:
        raise DataError(f"The views do not determine the lens ({e.err}): tilt the board, near and far.") from e


def locate(view: Detection, lens: Intrinsics) -> np.ndarray:
    """(4, 4) pose of the board in the camera's frame."""
    distortion = np.array(lens.distortion)
    _, rotations, shifts, _ = cv2.solvePnPGeneric(
        view.points, view.pixels, lens.matrix, distortion, flags=cv2.SOLVEPNP_IPPE
    )
    best = None
    for r, t in zip(rotations, shifts, strict=True):  # a flat board has two poses that look alike
        r, t = cv2.solvePnPRefineLM(view.points, view.pixels, lens.matrix, distortion, r, t)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(r)[0], t.ravel()
        error = rms(residual(view, lens, pose))
        if best is None or error < best[0]:
            best = (error, pose)
    assert best is not None
    return best[1]


def residual(view: Detection, lens: Intrinsics, pose: np.ndarray) -> np.ndarray:
    """(m, 2) pixels, of a board at ``pose`` in the camera's frame."""
    return lens.project(view.points @ pose[:3, :3].T + pose[:3, 3]) - view.pixels


def rms(residuals: np.ndarray) -> float:
    """Of the lengths of (m, 2) residuals."""
    return float(np.sqrt((residuals**2).sum(axis=1).mean()))
