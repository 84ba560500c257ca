"""Rotations as a policy predicts them, six numbers that change smoothly, and as controllers take them, a vector.

Six numbers are the first two rows of the rotation's matrix (Zhou et al. 2019, "On the continuity of rotation
representations in neural networks"; rows as pytorch3d and Diffusion Policy have them). Any six numbers name a rotation:
Gram-Schmidt makes them orthonormal.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from data.errors import DataError

POSE, POSE_6D = 7, 10  # numbers of one arm: position, rotation vector or six numbers, gripper


def six_of_matrix(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> (..., 6)."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def matrix_of_six(six: np.ndarray) -> np.ndarray:
    """(..., 6), of any length and angle -> (..., 3, 3), orthonormal and right-handed.

    Where the six numbers leave a direction open (zero or parallel vectors) it is an arbitrary one.
    """
    six = np.asarray(six, np.float64)
    x = _unit(six[..., :3], np.zeros_like(six[..., :3]))
    y = _unit(six[..., 3:], x)
    return np.stack([x, y, np.cross(x, y)], -2)


def _unit(vector: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The part of ``vector`` at a right angle to the unit vector (or zero) ``to``, of length one."""
    largest = np.abs(vector).max(-1, keepdims=True)
    vector = vector / np.where(largest > 1e-12, largest, 1.0)
    across = vector - (vector * to).sum(-1, keepdims=True) * to
    axis = np.eye(3)[np.abs(to).argmin(-1)]
    axis = axis - (axis * to).sum(-1, keepdims=True) * to
    clear = np.linalg.norm(across, axis=-1, keepdims=True) > 1e-6
    across = np.where(clear & (largest > 1e-12), across, axis)
    across = across / np.linalg.norm(across, axis=-1, keepdims=True)
    across = across - (across * to).sum(-1, keepdims=True) * to  # what rounding left
    return across / np.linalg.norm(across, axis=-1, keepdims=True)


def matrix_of_vector(vector: np.ndarray) -> np.ndarray:
    """(..., 3) rotation vector, radians -> (..., 3, 3)."""
    vector = np.asarray(vector, np.float64)
    return Rotation.from_rotvec(vector.reshape(-1, 3)).as_matrix().reshape(*vector.shape, 3)


def vector_of_matrix(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> (..., 3) rotation vector of at most pi, radians."""
    return Rotation.from_matrix(matrix.reshape(-1, 3, 3)).as_rotvec().reshape(matrix.shape[:-1])


def poses_6d(actions: np.ndarray) -> np.ndarray:
    """(..., 7 n) position, rotation vector, gripper of n arms -> (..., 10 n) with six numbers for the rotation."""
    arms = _arms(actions, POSE)
    six = six_of_matrix(matrix_of_vector(arms[..., 3:6]))
    return _flat(np.concatenate([arms[..., :3], six, arms[..., 6:]], -1))


def poses_vector(actions: np.ndarray) -> np.ndarray:
    """Inverse of ``poses_6d``: (..., 10 n) -> (..., 7 n)."""
    arms = _arms(actions, POSE_6D)
    vector = vector_of_matrix(matrix_of_six(arms[..., 3:9]))
    return _flat(np.concatenate([arms[..., :3], vector, arms[..., 9:]], -1))


def _arms(actions: np.ndarray, size: int) -> np.ndarray:
    actions = np.asarray(actions, np.float64)
    if actions.shape[-1] == 0 or actions.shape[-1] % size:
        raise DataError(f"Absolute actions are {size} numbers per arm, got {actions.shape[-1]} per step.")
    return actions.reshape(*actions.shape[:-1], actions.shape[-1] // size, size)


def _flat(arms: np.ndarray) -> np.ndarray:
    return arms.reshape(*arms.shape[:-2], arms.shape[-2] * arms.shape[-1])
