"""From a hand in space to joints: velocities of the tool, or poses of a hand relative to where it took hold.

Twists are (vx, vy, vz, wx, wy, wz) as fractions of the largest speeds, in the tool's own frame.
"""

from __future__ import annotations

from typing import Any

import mujoco as _mujoco
import numpy as np
from jaxtyping import Float64

from data.errors import ConfigError
from real_robot.core.kinematics import Kinematics, Pose
from real_robot.core.types import Joints, RobotSpec

mujoco: Any = _mujoco
# Of the way asked for, the part that must be attained, else nothing is done: at the end of its reach an arm that
# stretches ever more would not come back, since stretched joints hardly move the tool.
_PROGRESS = 0.3
Twist = Float64[np.ndarray, " 6"]


class Cartesian:
    """The tool's wish, and the joints that fulfil it.

    Args:
        spec: with a model.
        linear: m/s, largest speed of the tool.
        angular: rad/s, the same of its turning.
        gripper_speed: openings per second.
        scale: of the tool's path to the hand's.
        rotation_weight: of a radian against a metre where both cannot be had; by default 1, and 0.02 for arms of fewer
            than six joints, which cannot hold an orientation wherever they go.
        reach: m, and rad times five: how far the wish may lead what the joints attain.
    """

    def __init__(
        self,
        spec: RobotSpec,
        *,
        linear: float = 0.15,
        angular: float = 0.8,
        gripper_speed: float = 1.5,
        scale: float = 1.0,
        rotation_weight: float | None = None,
        reach: float = 0.01,
    ):
        positive = {"linear": linear, "angular": angular, "gripper_speed": gripper_speed, "scale": scale}
        for name, value in positive.items():
            if not value > 0:
                raise ConfigError(f"teleop.{name} must be positive, is {value}.")
        self.spec, self.kinematics = spec, Kinematics(spec)
        self.linear, self.angular, self.gripper_speed = linear, angular, gripper_speed
        self.scale, self.reach = scale, reach
        few = self.kinematics.n_arm < 6
        self.rotation_weight = (0.02 if few else 1.0) if rotation_weight is None else rotation_weight
        self.wish: Pose = np.eye(4)
        self._hand0: Pose = np.eye(4)
        self._tool0: Pose = np.eye(4)
        self.gripper = 0.0  # where it is to go

    def begin(self, target: Joints, hand: Pose | None = None) -> None:
        """The robot is at ``target``, and the hand, where it has a pose, at ``hand``."""
        self.wish = self.kinematics.forward(target)
        self._tool0, self._hand0 = self.wish.copy(), np.eye(4) if hand is None else hand.copy()
        self.gripper = float(target[-1]) if self.spec.gripper else 0.0

    def by_twist(self, twist: Twist, last: Joints, dt: float) -> Joints:
        """Joints after the tool has moved for ``dt`` seconds from ``last``."""
        twist = np.clip(np.nan_to_num(twist), -1, 1)
        turned = self.wish[:3, :3]
        self.wish[:3, 3] += turned @ twist[:3] * self.linear * dt
        self.wish[:3, :3] = turned @ rotation(twist[3:] * self.angular * dt)
        return self._joints(last, dt)

    def by_hand(self, hand: Pose, last: Joints, dt: float) -> Joints:
        """Joints that bring the tool as far from where it began as ``hand`` is from where it took hold."""
        if not np.isfinite(hand).all():
            return self._joints(last, dt)
        if not np.isfinite(self._hand0).all():  # it took hold where nobody knows
            self._hand0, self._tool0 = hand.copy(), self.wish.copy()
        want = np.eye(4)
        want[:3, 3] = self._tool0[:3, 3] + self.scale * (hand[:3, 3] - self._hand0[:3, 3])
        want[:3, :3] = hand[:3, :3] @ self._hand0[:3, :3].T @ self._tool0[:3, :3]
        self.wish = nearer(self.wish, want, self.linear * dt, self.angular * dt)
        return self._joints(last, dt)

    def travelling(self, last: Joints | None) -> bool:
        """Whether the gripper is still on its way."""
        return self.spec.gripper and last is not None and abs(self.gripper - last[-1]) > 1e-3

    def _joints(self, last: Joints, dt: float) -> Joints:
        before = self.kinematics.forward(last)
        q = self.kinematics.inverse(self.wish, last, rotation_weight=self.rotation_weight)
        attained = self.kinematics.forward(q)
        way = self.wish[:3, 3] - before[:3, 3]
        if (length := float(way @ way)) > 1e-8 and (attained[:3, 3] - before[:3, 3]) @ way < _PROGRESS * length:
            q, self.wish = last.copy(), before
        else:
            self.wish = nearer(attained, self.wish, self.reach, 5 * self.reach)
        if self.spec.gripper:
            step = self.gripper_speed * dt
            q[-1] = last[-1] + np.clip(np.clip(self.gripper, 0, 1) - last[-1], -step, step)
        return q


def rotation(vector: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, "3 3"]:
    """Of a rotation vector."""
    quat, matrix = np.empty(4), np.empty(9)
    angle = float(np.linalg.norm(vector))
    mujoco.mju_axisAngle2Quat(quat, vector / angle if angle > 0 else np.array([1.0, 0, 0]), angle)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def pose(position: Any, quaternion: Any) -> Pose:
    """Of a position (m) and a quaternion (w, x, y, z), which need not be of length one; raises ValueError for NaN."""
    p, quat, matrix = np.asarray(position, np.float64), np.array(quaternion, np.float64), np.empty(9)
    norm = float(np.linalg.norm(quat)) if quat.shape == (4,) else 0.0
    if p.shape != (3,) or not np.isfinite(p).all() or not 1e-6 < norm < np.inf:
        raise ValueError(f"not a pose: {position}, {quaternion}")
    mujoco.mju_quat2Mat(matrix, quat / norm)
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = matrix.reshape(3, 3), p
    return out


def nearer(start: Pose, end: Pose, metres: float, radians: float) -> Pose:
    """From ``start`` towards ``end``, no further than so much."""
    out = start.copy()
    way = end[:3, 3] - start[:3, 3]
    length = float(np.linalg.norm(way))
    out[:3, 3] += way * min(1.0, metres / length) if length > 0 else 0.0
    quat, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quat, (end[:3, :3] @ start[:3, :3].T).ravel())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    angle = float(np.linalg.norm(vector))
    out[:3, :3] = end[:3, :3] if angle <= radians else rotation(vector * radians / angle) @ start[:3, :3]
    return out
