"""A robot on its table, in physics, stepped up to now: what simulated controllers, cameras and trackers look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from data.errors import ConfigError
from real_robot.core.streams import Session
from real_robot.core.types import SECOND, Joints
from real_robot.simulators.port import Port
from real_robot.simulators.scene import Scene, build, model_path, mujoco

PUBLISH_HZ = 100
MODEL_FILE = ".world.mjb"  # in the session's folder: the model, for those who render it
_MAX_LAG = SECOND // 2  # of physics behind the clock; a longer gap (a frozen process) is left out, not caught up


def world_dtype(nq: int) -> np.dtype:
    """A record of ring ``world``.

    time: s of physics; qpos: MuJoCo's; cube, target: pose (position, quaternion w first) and middle in the robot's
    frame; success: the cube lies on the target, released; episode: resets so far; seed: of the latest.
    """
    return np.dtype([("time", "<f8"), ("qpos", "<f8", (nq,)), ("cube", "<f8", (7,)), ("target", "<f8", (2,)),
                     ("success", "?"), ("episode", "<i8"), ("seed", "<i8")])  # fmt: skip


class World:
    """Physics of one robot and its task.

    Joints are read and driven through the model's actuators, which must bear the joints' names and be position servos
    of gear 1; one named like the last joint may drive a tendon. A gripper's range is mapped to 0 closed .. 1 open.

    Args:
        model: MJCF file, or name of one that comes with Deft.
        joints: in the order of all vectors here.
        gripper: whether the last one is one.
        scene: sizes and places.
        seed: of the first episode.
        start: ns, the clock's now.
    """

    def __init__(
        self, model: str | Path, joints: Sequence[str], *, gripper: bool, scene: Scene, seed: int = 0, start: int = 0
    ):
        path = model_path(model)
        self.joints, self.scene, self.t = tuple(joints), scene, start
        self.model = build(path, scene)
        self.data = mujoco.MjData(self.model)
        self._act = np.array([mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_ACTUATOR, name) for name in joints])
        if (self._act < 0).any():
            missing = [name for name, i in zip(joints, self._act, strict=True) if i < 0]
            raise ConfigError(f"{path} has no actuator named {missing}: each joint needs a position actuator.")
        self._low, self._scale = np.zeros(len(joints)), np.ones(len(joints))
        if gripper:
            low, high = self.model.actuator_ctrlrange[self._act[-1]]
            self._low[-1], self._scale[-1] = low, high - low
        self._cube = self.model.body("cube").id
        self._cube_qpos = int(self.model.joint("cube").qposadr[0])
        self._cube_dof = int(self.model.joint("cube").dofadr[0])
        self.dt = round(self.model.opt.timestep * SECOND)
        self.episode = 0
        self.seed = seed
        self._ring = self._port = None
        self._every = max(1, round(SECOND / PUBLISH_HZ / self.dt))
        self._steps = 0
        self.reset(seed)

    @property
    def q(self) -> Joints:
        """Positions."""
        return (self.data.actuator_length[self._act] - self._low) / self._scale

    @property
    def dq(self) -> Joints:
        """Velocities."""
        return self.data.actuator_velocity[self._act] / self._scale

    @property
    def lag(self) -> Joints:
        """s by which each servo trails a moving target: kv / kp. A controller leads its targets by as much."""
        gain, bias = self.model.actuator_gainprm[self._act, 0], self.model.actuator_biasprm[self._act, 2]
        return -bias / gain

    @property
    def effort(self) -> Joints:
        """Of the actuators, N or Nm."""
        return self.data.actuator_force[self._act]

    @property
    def cube(self) -> Float64[np.ndarray, " 7"]:
        """Its pose."""
        return self.data.qpos[self._cube_qpos : self._cube_qpos + 7].copy()

    @property
    def targets(self) -> Joints:
        """Where the servos go."""
        return (self.data.ctrl[self._act] - self._low) / self._scale

    def set_targets(self, q: Joints) -> None:
        """Where the servos go from here on; a target that is not finite is not taken."""
        ctrl = self._low + self._scale * np.asarray(q, np.float64)
        if np.isfinite(ctrl).all():
            self.data.ctrl[self._act] = ctrl

    def success(self) -> bool:
        """The cube lies still on the disc, and nothing holds it up."""
        x, y, z = self.cube[:3]
        on = np.hypot(x - self.scene.target[0], y - self.scene.target[1]) < self.scene.target_radius
        still = np.abs(self.data.qvel[self._cube_dof : self._cube_dof + 3]).max() < 0.02
        return bool(on and still and abs(z - self.scene.cube / 2) < 0.25 * self.scene.cube and not self._touched())

    def _touched(self) -> bool:
        """Whether anything but the table touches the cube."""
        table, cube = self.model.geom("table").id, self.model.geom("cube").id
        pairs = self.data.contact.geom[: self.data.ncon]
        return bool(((pairs == cube).any(1) & ~(pairs == table).any(1)).any())

    def reset(self, seed: int | None = None, *, robot: bool = True) -> None:
        """The cube goes where episode ``seed`` (by default the next) begins, the robot home.

        Args:
            robot: False leaves the robot where it is, as a person who puts the cube back does.
        """
        self.seed = self.seed + 1 if seed is None else seed
        self.episode += 1
        if robot:
            mujoco.mj_resetData(self.model, self.data)
            if self.model.nkey:
                self.data.ctrl[:] = self.model.key_ctrl[0]
                self._place_robot()
        self.data.qpos[self._cube_qpos : self._cube_qpos + 7] = self.scene.place(self.seed)
        self.data.qvel[self._cube_dof : self._cube_dof + 6] = 0
        mujoco.mj_forward(self.model, self.data)

    def _place_robot(self) -> None:
        """Every joint where its actuator wants it; those on a tendon share its range."""
        m = self.model
        for i in range(m.nu):
            target = m.actuator_trnid[i, 0]
            if m.actuator_trntype[i] == mujoco.mjtTrn.mjTRN_TENDON:
                low, high = m.actuator_ctrlrange[i]
                joints = m.wrap_objid[m.tendon_adr[target] : m.tendon_adr[target] + m.tendon_num[target]]
                part = (self.data.ctrl[i] - low) / (high - low)
                span = m.jnt_range[joints]
                self.data.qpos[m.jnt_qposadr[joints]] = span[:, 0] + part * (span[:, 1] - span[:, 0])
            else:
                self.data.qpos[m.jnt_qposadr[target]] = self.data.ctrl[i]

    def publish(self, session: Session) -> None:
        """Writes ring ``world`` and the model from now on, and takes ``ask(folder, reset=seed)``."""
        self._ring = session.reopen("world", world_dtype(self.model.nq), 10 * PUBLISH_HZ)
        mujoco.mj_saveModel(self.model, str(session.folder / MODEL_FILE), None)
        self._port = Port(session.folder)
        self._put()

    def _put(self) -> None:
        if self._ring is not None:
            record = (self.data.time, self.data.qpos, self.cube, self.scene.target, self.success(), self.episode,
                      self.seed)  # fmt: skip
            self._ring.put(np.array(record, self._ring.dtype), self.t)

    def messages(self) -> list[dict[str, Any]]:
        """What was asked through the port, but for resets, which are done here."""
        others = []
        for message in self._port.messages() if self._port is not None else ():
            if "reset" in message:
                seed = message["reset"]
                self.reset(None if seed is None else int(seed), robot=bool(message.get("robot", False)))
                self._put()
            else:
                others.append(message)
        return others

    def advance(self, now: int, tick: Callable[[], None] | None = None) -> int:
        """Steps physics up to ``now`` (ns), calling ``tick`` before each step; returns how many there were."""
        if now - self.t > _MAX_LAG:
            self.t = now - self.dt
        n = 0
        while self.t + self.dt <= now:
            if tick is not None:
                tick()
            mujoco.mj_step(self.model, self.data)
            self.t += self.dt
            self._steps += 1
            n += 1
            if self._steps % self._every == 0:
                self._put()
        return n
