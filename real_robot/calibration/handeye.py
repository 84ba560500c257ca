"""Where a camera sits: on the tool, watching a board on the table, or on the table, watching a board on the tool.

For each view i with the tool at T_i, the board is seen at B_i = X^-1 M_i^-1 Z, where X is the camera in the frame it is
mounted to, Z the board in the other one, and M_i = T_i for a camera on the tool, T_i^-1 for one on the table.

A start is found in closed form (Park & Martin 1994) on three views at a time, taking the three that suit most of the
others (least median), so that a wrong pose or a misread board does no harm; X and Z are then refined together by
Gauss-Newton on what the pictures show, the distance in pixels. (OpenCV 5's Python has no calibrateHandEye.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np

from data.errors import DataError
from real_robot.calibration.board import Detection
from real_robot.calibration.intrinsics import locate, residual, rms
from real_robot.cameras.geometry import Intrinsics, Mount, Pose

FEWEST_VIEWS = 5
WORST = 5.0  # pixels, of the typical view
TURN = np.deg2rad(5)  # of the second axis, below which the views do not tell


class HandEye(NamedTuple):
    """Where things are.

    Attributes:
        pose: of the camera in the frame it is mounted to.
        board: of the board in the other frame.
        errors: rms pixels of every view.
        outliers: views that were left out, by index.
        position_std: m, rotation_std: rad; of ``pose``, from the scatter of the pixels alone.
    """

    pose: Pose
    board: Pose
    errors: list[float]
    outliers: list[int]
    position_std: float
    rotation_std: float

    @property
    def rms(self) -> float:
        """Of the views that were kept, pixels."""
        kept = [e for i, e in enumerate(self.errors) if i not in self.outliers]
        return float(np.sqrt(np.mean(np.square(kept))))


def calibrate_extrinsics(
    views: Sequence[Detection], tools: Sequence[Pose], lens: Intrinsics, mount: Mount, seed: int = 0
) -> HandEye:
    """The camera's place from views of one board that does not move in its frame.

    Args:
        views: of the board.
        tools: pose of the tool in the robot's frame, at each.
        lens: of the camera.
        mount: where the camera sits.
        seed: of the choice of threes, where there are many views.

    Raises:
        DataError: too few views, or such that do not tell.
    """
    if len(views) < FEWEST_VIEWS:
        raise DataError(f"{len(views)} views with the board and a pose; extrinsics need {FEWEST_VIEWS}, better 15.")
    moves = [np.asarray(t, np.float64) if mount == "tool" else np.linalg.inv(t) for t in tools]
    seen = [locate(view, lens) for view in views]
    _check_turns(moves)
    x, z = _start(views, moves, seen, lens, seed)
    errors = view_errors(views, moves, lens, x, z)
    kept = _agree(errors, factor=4.0, floor=3.0)
    for _ in range(3):
        x, z, deviation = _refine([views[i] for i in kept], [moves[i] for i in kept], lens, x, z)
        errors = view_errors(views, moves, lens, x, z)
        before, kept = kept, _agree(errors, factor=3.0, floor=1.0)
        if kept == before:
            break
    typical = float(np.median([errors[i] for i in kept]))
    if len(kept) < FEWEST_VIEWS or typical > WORST:
        raise DataError(
            f"{len(kept)} of {len(views)} views agree with one place of the camera, to {typical:.1f} pixels: did the "
            f"board slip, is mount ({mount}) right, and do the poses belong to the pictures?"
        )
    outliers = [i for i in range(len(views)) if i not in kept]
    return HandEye(x, z, [float(e) for e in errors], outliers, deviation[1], deviation[0])


def view_errors(views: Sequence[Detection], moves: Sequence[Pose], lens: Intrinsics, x: Pose, z: Pose) -> list[float]:
    """Rms pixels of each view; infinite where the board would be behind the camera."""
    errors = []
    for view, move in zip(views, moves, strict=True):
        pose = np.linalg.inv(move @ x) @ z
        ahead = (view.points @ pose[2, :3] + pose[2, 3]).min() > 0
        errors.append(rms(residual(view, lens, pose)) if ahead else np.inf)
    return errors


def _agree(errors: Sequence[float], factor: float, floor: float) -> list[int]:
    limit = max(floor, factor * float(np.median(errors)))
    return [i for i, e in enumerate(errors) if e <= limit]


def _check_turns(moves: Sequence[Pose]) -> None:
    """One axis of rotation leaves the camera's place along it open."""
    turns = np.array([_log((np.linalg.inv(a) @ b)[:3, :3]) for a, b in combinations(moves, 2)])
    spread = np.linalg.svd(turns / np.sqrt(len(turns)), compute_uv=False)
    if spread[1] < TURN:
        raise DataError(
            f"The tool turned by {np.rad2deg(spread[1]):.1f} degrees (rms) about a second axis; the camera's place "
            "shows only where it turns about two, by 20 degrees and more: tilt the tool, do not only move it."
        )


def _start(
    views: Sequence[Detection], moves: Sequence[Pose], seen: Sequence[Pose], lens: Intrinsics, seed: int
) -> tuple[Pose, Pose]:
    """The best of closed forms on three views each, by its median error over all views."""
    threes = list(combinations(range(len(views)), 3))
    rng = np.random.default_rng(seed)
    chosen = threes if len(threes) <= 120 else [threes[i] for i in rng.choice(len(threes), 120, replace=False)]
    best, found = np.inf, None
    for three in chosen:
        try:
            x, z = closed_form([moves[i] for i in three], [seen[i] for i in three])
        except np.linalg.LinAlgError:  # three views that turn about one axis
            continue
        error = float(np.median(view_errors(views, moves, lens, x, z)))
        if found is None or error < best:
            best, found = error, (x, z)
    if found is None:
        raise DataError("No three views determine the camera's place: tilt the tool about two axes between pictures.")
    return found


def closed_form(moves: Sequence[Pose], seen: Sequence[Pose]) -> tuple[Pose, Pose]:
    """X and Z of M_i X B_i = Z: R_X = (N^T N)^-1/2 N^T with N = sum log(R_B) log(R_A)^T; then t_X linearly.

    Raises:
        LinAlgError: rotations about one axis only.
    """
    n, rows, right = np.zeros((3, 3)), [], []
    pairs = [(np.linalg.inv(moves[j]) @ moves[i], seen[j] @ np.linalg.inv(seen[i]))
             for i, j in combinations(range(len(moves)), 2)]  # fmt: skip
    for a, b in pairs:  # A X = X B
        n += np.outer(_log(b[:3, :3]), _log(a[:3, :3]))
    u, sizes, vt = np.linalg.svd(n.T)  # the nearest rotation: (N^T N)^-1/2 N^T where N has full rank, and else as well
    if sizes[1] < 1e-4:
        raise np.linalg.LinAlgError("one axis")
    x = np.eye(4)
    x[:3, :3] = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    for a, b in pairs:
        rows.append(a[:3, :3] - np.eye(3))
        right.append(x[:3, :3] @ b[:3, 3] - a[:3, 3])
    x[:3, 3] = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0]
    boards = [m @ x @ b for m, b in zip(moves, seen, strict=True)]
    z = np.eye(4)
    u, _, vt = np.linalg.svd(sum(b[:3, :3] for b in boards))
    z[:3, :3] = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    z[:3, 3] = np.mean([b[:3, 3] for b in boards], axis=0)
    return x, z


def _refine(
    views: Sequence[Detection], moves: Sequence[Pose], lens: Intrinsics, x: Pose, z: Pose
) -> tuple[Pose, Pose, tuple[float, float]]:
    """Levenberg-Marquardt on all pixels; also the standard deviations of X (rad, m)."""

    def residuals(step: np.ndarray) -> np.ndarray:
        x2, z2 = x @ _exp(step[:6]), z @ _exp(step[6:])
        poses = [np.linalg.inv(m @ x2) @ z2 for m in moves]
        return np.concatenate([residual(v, lens, p).ravel() for v, p in zip(views, poses, strict=True)])

    damping, r = 1e-3, residuals(np.zeros(12))
    for _ in range(30):
        j = np.column_stack([(residuals(1e-6 * e) - residuals(-1e-6 * e)) / 2e-6 for e in np.eye(12)])
        h = j.T @ j
        step = -np.linalg.solve(h + damping * np.diag(np.diag(h)), j.T @ r)
        new = residuals(step)
        if new @ new < r @ r:
            x, z, damping = x @ _exp(step[:6]), z @ _exp(step[6:]), damping / 10
            done = r @ r - new @ new < 1e-9 * (r @ r)
            r = new
            if done:
                break
        elif (damping := damping * 10) > 1e6:
            break
    variance = np.diag(np.linalg.pinv(h)) * (r @ r) / max(1, len(r) - 12)
    return x, z, (float(np.sqrt(variance[:3].sum())), float(np.sqrt(variance[3:6].sum())))


def _log(r: np.ndarray) -> np.ndarray:
    return cv2.Rodrigues(r)[0].ravel()


def _exp(v: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(v[:3])[0], v[3:]
    return pose
