"""How a simulated UR controller moves: a reference for the joints, advanced at 500 Hz by one motion at a time."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from real_robot.core.kinematics import Kinematics, Pose
from real_robot.core.types import Joints

MAX_SPEED = np.pi  # rad/s, of every joint of a UR5e
MAX_ACCELERATION = 40.0  # rad/s^2


class Motion(Protocol):
    """One of the ways to move on."""

    def step(self, q: Joints, v: Joints, dt: float) -> tuple[Joints, Joints, bool]:
        """Position and velocity after ``dt`` s, and whether that was all."""
        ...


class Brake:
    """stopj, stopl, and what follows a stop: all joints slow down alike, so that the path is kept."""

    def __init__(self, deceleration: float):
        self.deceleration = max(deceleration, 0.1)

    def step(self, q: Joints, v: Joints, dt: float) -> tuple[Joints, Joints, bool]:
        """See ``Motion``."""
        speed = np.abs(v).max()
        v = v * (max(0.0, speed - self.deceleration * dt) / speed) if speed > 0 else v
        return q + v * dt, v, bool(speed == 0)


class ServoJ:
    """servoj: a = gain (target - q - lookahead v), a spring of that stiffness that trails a ramp by the lookahead.

    Universal Robots does not publish theirs; this has the two documented properties (the lookahead smooths and delays,
    the gain stiffens) and is stable for all values that are taken (lookahead 0.03-0.2 s, gain 100-2000).
    """

    def __init__(self, target: Joints, lookahead: float, gain: float):
        self.target, self.lookahead, self.gain = target, lookahead, gain

    def step(self, q: Joints, v: Joints, dt: float) -> tuple[Joints, Joints, bool]:
        """See ``Motion``."""
        a = self.gain * (self.target - q - self.lookahead * v)
        v = v + np.clip(a, -MAX_ACCELERATION, MAX_ACCELERATION) * dt
        return q + v * dt, v, False


class SpeedJ:
    """speedj: towards a velocity; ends after ``duration`` s where that is positive."""

    def __init__(self, velocity: Joints, acceleration: float, duration: float):
        self.velocity, self.acceleration = velocity, acceleration
        self.left = duration if duration > 0 else np.inf

    def step(self, q: Joints, v: Joints, dt: float) -> tuple[Joints, Joints, bool]:
        """See ``Motion``."""
        self.left -= dt
        change = self.acceleration * dt
        v = v + np.clip(self.velocity - v, -change, change)
        return q + v * dt, v, self.left <= 0


class Trapezoid:
    """Distance along a path over time: accelerate, cruise, decelerate."""

    def __init__(self, length: float, speed: float, acceleration: float):
        self.length, self.acceleration = length, acceleration
        self.speed = min(speed, np.sqrt(length * acceleration))
        self.ramp = self.speed / acceleration
        self.duration = length / self.speed + self.ramp if length > 0 else 0.0

    def at(self, t: float) -> float:
        """Distance at ``t`` s."""
        if t >= self.duration:
            return self.length
        end = self.duration - t
        if t < self.ramp:
            return 0.5 * self.acceleration * t**2
        if end < self.ramp:
            return self.length - 0.5 * self.acceleration * end**2
        return self.speed * (t - 0.5 * self.ramp)


class MoveJ:
    """movej: straight in joint space, the joint with the longest way at ``speed`` and ``acceleration``."""

    def __init__(self, start: Joints, end: Joints, speed: float, acceleration: float):
        self.start, self.way, self.t = start, end - start, 0.0
        self.length = float(np.abs(self.way).max())
        self.profile = Trapezoid(self.length, min(speed, MAX_SPEED), acceleration)

    def step(self, q: Joints, v: Joints, dt: float) -> tuple[Joints, Joints, bool]:
        """See ``Motion``."""
        self.t += dt
        part = self.profile.at(self.t) / self.length if self.length > 0 else 1.0
        new = self.start + part * self.way
        done = self.t >= self.profile.duration
        return new, np.zeros_like(v) if done else (new - q) / dt, done


class MoveL:
    """movel: the tool on a straight line, its orientation turned evenly meanwhile."""

    def __init__(self, kinematics: Kinematics, start: Joints, end: Pose, speed: float, acceleration: float):
        self.kinematics, self.end, self.t = kinematics, end, 0.0
        self.begin = kinematics.forward(start)
        way = float(np.linalg.norm(end[:3, 3] - self.begin[:3, 3]))
        self.turn = rotation_vector(self.begin[:3, :3].T @ end[:3, :3])
        self.length = max(way, 0.25 * float(np.linalg.norm(self.turn)))  # m; a turn on the spot takes its time too
        self.profile = Trapezoid(self.length, speed, acceleration)

    def step(self, q: Joints, v: Joints, dt: float) -> tuple[Joints, Joints, bool]:
        """See ``Motion``."""
        self.t += dt
        part = self.profile.at(self.t) / self.length if self.length > 0 else 1.0
        pose = np.eye(4)
        pose[:3, :3] = self.begin[:3, :3] @ rotation_matrix(part * self.turn)
        pose[:3, 3] = self.begin[:3, 3] + part * (self.end[:3, 3] - self.begin[:3, 3])
        new = self.kinematics.inverse(pose, q)
        done = self.t >= self.profile.duration
        return new, np.zeros_like(v) if done else (new - q) / dt, done


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rodrigues: (3,) axis times angle -> (3, 3)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Inverse of ``rotation_matrix``, angle in [0, pi]."""
    cos = np.clip((np.trace(matrix) - 1) / 2, -1, 1)
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    norm = float(np.linalg.norm(axis))
    if norm > 1e-6:
        return axis / norm * np.arctan2(norm / 2, cos)
    if cos > 0:
        return axis / 2
    i = int(np.argmax(np.diag(matrix)))  # half a turn: the axis is a column of (R + 1) / 2
    column = (matrix + np.eye(3))[:, i]
    return np.pi * column / np.linalg.norm(column)


def pose_from_ur(p: np.ndarray) -> Pose:
    """URScript's p[x, y, z, rx, ry, rz] -> homogeneous."""
    pose = np.eye(4)
    pose[:3, :3] = rotation_matrix(p[3:])
    pose[:3, 3] = p[:3]
    return pose


def pose_to_ur(pose: Pose) -> np.ndarray:
    """Inverse of ``pose_from_ur``."""
    return np.concatenate([pose[:3, 3], rotation_vector(pose[:3, :3])])
