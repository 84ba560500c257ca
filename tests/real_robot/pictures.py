"""Pictures of a board as a camera of known lens and place would take them: exact but for blur and noise."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from real_robot.calibration.board import MARGIN, Board
from real_robot.cameras.geometry import Intrinsics
from real_robot.cameras.simulated import look_at

LENS = Intrinsics(640, 480, 612.0, 608.0, 327.0, 236.0)
BENT = Intrinsics(640, 480, 612.0, 608.0, 327.0, 236.0, (-0.12, 0.05, 0.001, -0.0005, 0.0))


@lru_cache
def _rays(lens: Intrinsics) -> np.ndarray:
    return lens.rays.reshape(-1, 3).astype(np.float32)


@lru_cache
def _drawing(board: Board) -> np.ndarray:
    return cv2.GaussianBlur(board.draw(), (0, 0), 2.5)  # finer than the pictures: no aliasing


def picture(board: Board, pose: np.ndarray, lens: Intrinsics, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) of ``board`` at ``pose`` in the camera's frame."""
    h = np.column_stack([pose[:3, 0], pose[:3, 1], pose[:3, 3]])  # board's plane -> camera
    on_board = _rays(lens) @ np.linalg.inv(h).T.astype(np.float32)
    metres = on_board[:, :2] / on_board[:, 2:]
    at = (metres * board.pixels_per_metre + MARGIN * board.square_m * board.pixels_per_metre - 0.5).astype(np.float32)
    at = at.reshape(lens.height, lens.width, 2)
    seen = cv2.remap(_drawing(board), at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=110)
    noisy = np.clip(0.8 * seen + 20 + rng.normal(0, 2, seen.shape), 0, 255).astype(np.uint8)
    return cv2.cvtColor(noisy, cv2.COLOR_GRAY2RGB)


def random_view(board: Board, rng: np.random.Generator, distance: float = 0.45) -> np.ndarray:
    """Pose of a camera in the board's frame that sees it whole, tilted."""
    middle = np.array([board.columns, board.rows, 0]) * board.square_m / 2
    sideways = rng.uniform(-0.55, 0.55, 2) * distance
    position = middle + np.array([*sideways, -distance * rng.uniform(0.8, 1.1)])
    pose = look_at(position, middle + np.array([*rng.uniform(-0.02, 0.02, 2), 0]))
    roll = np.eye(4)
    roll[:3, :3] = cv2.Rodrigues(np.array([0, 0, rng.uniform(-0.5, 0.5)]))[0]
    return pose @ roll


def random_pose(rng: np.random.Generator, reach: float) -> np.ndarray:
    """Anywhere, turned anyhow."""
    pose = np.eye(4)
    axis = rng.normal(size=3)
    pose[:3, :3] = cv2.Rodrigues(axis / np.linalg.norm(axis) * rng.uniform(0, np.pi))[0]
    pose[:3, 3] = rng.uniform(-reach, reach, 3)
    return pose
