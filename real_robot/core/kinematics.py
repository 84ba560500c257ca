"""Where the tool is, and which joints put it somewhere: MuJoCo's kinematics of the robot's own model."""

from __future__ import annotations

from typing import Any

import mujoco as _mujoco
import numpy as np
from jaxtyping import Float64

from data.errors import ConfigError
from real_robot.core.types import Joints, RobotSpec

mujoco: Any = _mujoco  # its compiled members are unknown to type checkers
Pose = Float64[np.ndarray, "4 4"]


class Kinematics:
    """Forward and inverse kinematics of a robot's arm; a gripper is left as it is.

    Args:
        spec: with ``model`` and ``tcp``; every joint but the gripper must be in the model.
    """

    def __init__(self, spec: RobotSpec):
        if spec.model is None or spec.tcp is None:
            raise ConfigError(f"robot {spec.name} has no model with a tool centre: give robot.model and robot.tcp.")
        self.spec = spec
        self.model = mujoco.MjModel.from_xml_path(str(spec.model))
        self.data = mujoco.MjData(self.model)
        arm = spec.joints[:-1] if spec.gripper else spec.joints
        ids = [mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in arm]
        self.site = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, spec.tcp)
        missing = [name for name, i in zip(arm, ids, strict=True) if i < 0]
        if missing or self.site < 0:
            lacking = f"joints {missing}" if missing else f"site {spec.tcp}"
            raise ConfigError(f"{spec.model} lacks {lacking}.")
        self.n_arm = len(arm)
        self._qpos = self.model.jnt_qposadr[ids]
        self._dof = self.model.jnt_dofadr[ids]
        self._jacobian = np.zeros((6, self.model.nv))

    def _place(self, q: Joints) -> None:
        self.data.qpos[self._qpos] = q[: self.n_arm]
        mujoco.mj_kinematics(self.model, self.data)

    def position(self, q: Joints) -> Float64[np.ndarray, " 3"]:
        """Of the tool's centre in the robot's frame, m."""
        self._place(q)
        return self.data.site_xpos[self.site].copy()

    def forward(self, q: Joints) -> Pose:
        """Of the tool in the robot's frame, homogeneous."""
        self._place(q)
        pose = np.eye(4)
        pose[:3, :3] = self.data.site_xmat[self.site].reshape(3, 3)
        pose[:3, 3] = self.data.site_xpos[self.site]
        return pose

    def inverse(
        self, pose: Pose, start: Joints, *, steps: int = 20, damping: float = 0.05, rotation_weight: float = 1.0
    ) -> Joints:
        """Joints near ``start`` that bring the tool to ``pose``, or as near as they come in ``steps``.

        Damped least squares (Levenberg-Marquardt with fixed damping), clipped to the joints' limits in every step; the
        gripper stays as in ``start``.

        Args:
            rotation_weight: of a radian against a metre; 0 leaves the tool's orientation free.
        """
        q = start.copy()
        low, high = self.spec.lower[: self.n_arm], self.spec.upper[: self.n_arm]
        for _ in range(steps):
            self._place(q)
            error = np.empty(6)
            error[:3] = pose[:3, 3] - self.data.site_xpos[self.site]
            error[3:] = rotation_weight * rotation_error(self.data.site_xmat[self.site].reshape(3, 3), pose[:3, :3])
            if np.abs(error).max() < 1e-5:
                break
            mujoco.mj_comPos(self.model, self.data)
            mujoco.mj_jacSite(self.model, self.data, self._jacobian[:3], self._jacobian[3:], self.site)
            j = self._jacobian[:, self._dof].copy()
            j[3:] *= rotation_weight
            step = j.T @ np.linalg.solve(j @ j.T + damping**2 * np.eye(6), error)
            q[: self.n_arm] = np.clip(q[: self.n_arm] + np.clip(step, -0.2, 0.2), low, high)
        return q


def rotation_error(now: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Rotation vector, in the base frame, that turns ``now`` into ``want``."""
    quat, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quat, (want @ now.T).ravel())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector
