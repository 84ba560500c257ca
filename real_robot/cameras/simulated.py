"""A camera in a simulated world: pictures of what a simulator says is so, as late as one likes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mujoco as _mujoco
import numpy as np

from data.errors import ConfigError, DataError
from real_robot.cameras.geometry import Intrinsics, Pose
from real_robot.core.clock import MonotonicClock
from real_robot.core.ring import Ring
from real_robot.core.types import SECOND, Clock, DeviceError, Frame

mujoco: Any = _mujoco  # its compiled members are unknown to type checkers

MODEL_FILE = ".world.mjb"  # beside the world's ring: the model, as simulators leave it


class SimulatedCamera:
    """Renders a MuJoCo model at the joint positions that a simulator's process writes to its world ring.

    A picture that comes in at t shows the world at t - delay_ms, and is stamped t - latency_ms: a delay that
    calibration has to find.

    Args:
        name: of the camera.
        world: path of the simulator's ring; its records hold qpos (nq,).
        model: MJCF or MJB file, the one that the simulator runs; by default .world.mjb beside the ring.
        camera: name of a camera of the model; or None, and ``position`` and ``target``.
        position, target: (3,) m in the world, where a camera of its own is and looks at, the picture's up along z.
        fovy: vertical field of view of that one, degrees.
        width, height: pixels.
        fps: pictures per second.
        depth: whether it sees depth as well.
        delay_ms: how late pictures are.
        latency_ms: how late they are thought to be, calibrated.
        timeout_s: without a change of the world, after which the device is given up.
    """

    def __init__(
        self,
        name: str,
        world: str | Path,
        *,
        model: str | Path | None = None,
        camera: str | None = None,
        position: Sequence[float] | None = None,
        target: Sequence[float] | None = None,
        fovy: float = 45.0,
        width: int = 640,
        height: int = 480,
        fps: float = 30.0,
        depth: bool = False,
        delay_ms: float = 0.0,
        latency_ms: float = 0.0,
        timeout_s: float = 2.0,
        clock: Clock | None = None,
    ):
        if (camera is None) == (position is None) or (position is None) != (target is None):
            raise ConfigError(f"camera {name}: give either camera, a name in the model, or position and target.")
        self.name, self.width, self.height, self.fps, self.has_depth = name, width, height, fps, depth
        self._world, self._camera, self._fovy = Path(world), camera, fovy
        self._path = self._world.with_name(MODEL_FILE) if model is None else Path(model)
        self._look = None
        if position is not None and target is not None:
            self._look = look_at(np.asarray(position, np.float64), np.asarray(target, np.float64))
        self._delay, self._latency = round(delay_ms * 1e6), round(latency_ms * 1e6)
        self._timeout_s, self._clock = timeout_s, clock or MonotonicClock()
        self.intrinsics: Intrinsics | None = None
        self._screen: _Screen | None = None

    def start(self) -> None:
        """Attaches to the world and loads its model."""
        self.close()
        try:
            self._ring = Ring.attach(self._world)
        except DataError as e:
            raise DeviceError(f"camera {self.name}: {e}") from e
        if not self._path.exists():
            raise DeviceError(f"camera {self.name}: there is no model {self._path}: has the simulator been started?")
        self._load()
        if (shape := self._ring.dtype["qpos"].shape) != (self.model.nq,):
            raise DeviceError(
                f"camera {self.name}: {self._world} holds qpos {shape}, {self._path} has ({self.model.nq},): "
                "another model than the simulator's?"
            )
        self._base, self._shown, self._seq, self._next = 0, -1, 0, self._clock.now()

    def _load(self) -> None:
        kind = mujoco.MjModel
        try:
            load = kind.from_binary_path if self._path.suffix == ".mjb" else kind.from_xml_path
            self.model = load(str(self._path))
        except ValueError as e:
            raise ConfigError(f"camera {self.name}: {self._path} does not load: {e}") from e
        self.data, self._view = mujoco.MjData(self.model), mujoco.MjvCamera()
        self.place(self.data.qpos.copy())
        fovy = self._fovy
        if self._look is not None:
            forward, up = self._look[:3, 2], -self._look[:3, 1]
            self._view.type = mujoco.mjtCamera.mjCAMERA_FREE
            self._view.lookat, self._view.distance = self._look[:3, 3] + forward, 1.0
            level = up if abs(forward[2]) > 1 - 1e-9 else forward
            self._view.azimuth = np.rad2deg(np.arctan2(level[1], level[0]))
            self._view.elevation = np.rad2deg(np.arcsin(np.clip(forward[2], -1, 1)))
            self.model.vis.global_.fovy = fovy
        else:
            i = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, self._camera)
            if i < 0:
                known = [self.model.camera(k).name for k in range(self.model.ncam)]
                raise ConfigError(f"camera {self.name}: {self._path} has no camera '{self._camera}', only {known}.")
            self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, i
            fovy = float(self.model.cam_fovy[i])
        f = 0.5 * self.height / np.tan(0.5 * np.deg2rad(fovy))
        self.intrinsics = Intrinsics(self.width, self.height, f, f, 0.5 * (self.width - 1), 0.5 * (self.height - 1))
        self._screen = _Screen(self.model, self.width, self.height)

    def read(self) -> Frame:
        """Waits for the next picture's time, and for the world to have moved on since the last one."""
        if self._screen is None:
            raise DeviceError(f"camera {self.name} is not started.")
        self._clock.sleep_until(self._next)
        now = self._clock.now()
        self._next = max(self._next + round(SECOND / self.fps), now)
        give_up = now + round(self._timeout_s * SECOND)
        while (qpos := self._at(now - self._delay)) is None:
            if now > give_up:
                raise DeviceError(f"camera {self.name}: {self._world} stands still: does the simulator run?")
            self._clock.sleep_until(now + SECOND // 1000)
            now = self._clock.now()
        self._seq += 1
        self.place(qpos)
        return Frame(now - self._latency, self._seq, *self.picture())

    def _at(self, t: int) -> np.ndarray | None:
        """Joint positions at ``t``, between records by straight lines; None where they are no newer than the last."""
        ring, before, after = self._ring, None, None
        for n in range(max(self._base, ring.newest - ring.slots + 2, 1), ring.newest + 1):
            record = ring.get(n)
            if record is not None and record.t > t:
                after = record
                break
            before = record or before
        if before is None:
            return None
        self._base, when, qpos = before.n, before.t, before.data["qpos"]
        if after is not None:
            share = (t - before.t) / (after.t - before.t)
            when, qpos = t, (1 - share) * qpos + share * after.data["qpos"]
            mujoco.mj_normalizeQuat(self.model, qpos)
        if when <= self._shown:
            return None
        self._shown = when
        return qpos

    def place(self, qpos: np.ndarray) -> None:
        """The world is at ``qpos``."""
        self.data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def picture(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(H, W, 3) uint8 and (H, W) m or None, of the world as it is placed."""
        if self._screen is None:
            raise DeviceError(f"camera {self.name} is not started.")
        return self._screen.picture(self.data, self._view, self.has_depth)

    @property
    def pose(self) -> Pose | None:
        """In the world at the last picture, which calibration should find; None for one that moves with the robot."""
        if self._look is not None:
            return self._look
        if self._screen is None or self.model.body_weldid[self.model.cam_bodyid[self._view.fixedcamid]] != 0:
            return None
        return self.pose_now()

    def pose_now(self) -> Pose:
        """In the world, as it is placed."""
        if self._look is not None:
            return self._look
        pose, i = np.eye(4), self._view.fixedcamid
        pose[:3, :3] = self.data.cam_xmat[i].reshape(3, 3) * [1, -1, -1]  # MuJoCo's looks along -z
        pose[:3, 3] = self.data.cam_xpos[i]
        return pose

    def close(self) -> None:
        """Frees the renderer."""
        if self._screen is not None:
            self._screen.close()
            self._screen = None


def look_at(position: np.ndarray, target: np.ndarray) -> Pose:
    """Pose of a camera at ``position`` that looks at ``target`` with the world's z upwards, OpenCV's axes."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    if np.linalg.norm(right) < 1e-6:  # straight up or down: the picture's up is y then
        right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.column_stack([right, np.cross(forward, right), forward, position])
    return pose


class _Screen:
    """MuJoCo's GL at one size, without shadows or multisampling: 20 times faster where a CPU does the drawing."""

    def __init__(self, model: Any, width: int, height: int):
        name = os.environ.get("MUJOCO_GL") or "egl"
        os.environ.setdefault("PYOPENGL_PLATFORM", name)
        try:
            if name == "osmesa":
                from mujoco.osmesa import GLContext
            else:
                from mujoco.egl import GLContext
            self._gl: Any = GLContext(width, height)
            self._gl.make_current()
        except (ImportError, AttributeError, RuntimeError) as e:
            raise ConfigError(f"Simulated cameras need GL, and {name} does not work here ({e}): "
                              "install libegl1 and libgl1-mesa-dri, or set MUJOCO_GL=osmesa.") from e  # fmt: skip
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._model, self._size = model, (height, width)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene, self._option = mujoco.MjvScene(model, maxgeom=2000), mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, width, height)

    def picture(self, data: Any, view: Any, with_depth: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """(H, W, 3) uint8, (H, W) m or None; 0 where nothing is met."""
        self._gl.make_current()
        mujoco.mjv_updateScene(self._model, data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        mujoco.mjr_render(self._rect, self._scene, self._context)
        rgb = np.empty((*self._size, 3), np.uint8)
        z = np.empty(self._size, np.float32) if with_depth else None
        mujoco.mjr_readPixels(rgb, z, self._rect, self._context)
        if z is None:
            return np.ascontiguousarray(rgb[::-1]), None
        near, far = (v * self._model.stat.extent for v in (self._model.vis.map.znear, self._model.vis.map.zfar))
        metres = np.where(z < 1, near / (1 - z * (1 - near / far)), 0).astype(np.float32)
        return np.ascontiguousarray(rgb[::-1]), np.ascontiguousarray(metres[::-1])

    def close(self) -> None:
        self._gl.make_current()
        self._context.free()
        self._gl.free()
