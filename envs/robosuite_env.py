"""robosuite's tasks as robomimic uses them: ``task=robomimic task.name=lift``, or any data set's own ``env_args``.

Built on robosuite 1.5 from ``env_args`` alone, without robomimic, whose wrapper needs the retired mujoco-py. Pictures
come from Deft's renderer, so that no GL is needed. What robosuite draws while it builds (lift's cube is 20 to 22 mm) is
drawn once and the same in all episodes; poses are drawn by their seeds.
"""

# MuJoCo and robosuite have no stubs, and robosuite is an extra.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import mujoco
import numpy as np

from data.errors import ConfigError, ContractError, nearest
from data.rotations import POSE_6D, matrix_of_vector, poses_vector, six_of_matrix
from data.spec import FieldSpec, TaskSpec
from envs.base import Frame, StepResult, check_action
from envs.raycast import camera_id, visible_geoms
from envs.raytree import rebuild_mesh_trees
from envs.render import SceneRenderer, backend
from envs.robosuite_build import build, seeded
from envs.robosuite_experts import EXPERTS, FULL_STEP, FULL_TURN

REACH = 2.0  # absolute actions: metres from the world's origin, more than any arm gets to
ROBOT_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")
_POSES = (
    "geom_xpos", "geom_xmat", "xipos", "ximat", "site_xpos", "site_xmat",
    "cam_xpos", "cam_xmat", "light_xpos", "light_xdir",
)  # fmt: skip


class _Moment(NamedTuple):
    step: int
    values: dict[str, np.ndarray]
    poses: dict[str, np.ndarray]


class RobosuiteEnv:
    """A robosuite task as an ``Env``: 20 actions a second, each arm's hand displacement, turn, gripper in [-1, 1]."""

    def __init__(
        self,
        name: str | None = None,
        obs: Sequence[str] = ("state",),
        env_args: Mapping[str, Any] | None = None,
        episode_length: int | None = None,
        reward: str = "sparse",
        terminate_on_success: bool = True,
        cameras: Sequence[str] = ("agentview", "robot0_eye_in_hand"),
        image_size: int = 84,
        actions: str = "delta",
        keys: Mapping[str, str | Sequence[str]] | None = None,
    ):
        """Builds the simulation (1 to 2 s).

        Args:
            name: one of ``TASKS``; or None, with ``env_args``.
            obs: robosuite's names (robot0_eef_pos, ...); "object", all it tells of objects; "state", each robot's
                ``ROBOT_KEYS`` and the objects side by side; rgb_<camera>, or robomimic's <camera>_image; "states", the
                simulator's own state in float64, for demonstrations that can be replayed.
            env_args: of a robomimic file: {"env_name": ..., "env_version": ..., "env_kwargs": {...}}.
            episode_length: control steps until the time-out; None: robomimic's.
            reward: "sparse" is 1 at the first success, else 0; "dense" is robosuite's shaped one.
            terminate_on_success: end the episode at the first success.
            cameras: what "rgb" in obs.keys stands for; looked at by the configuration only.
            image_size: side of the square pictures, pixels.
            actions: "delta", the controller's displacements; "absolute", for each arm the hand's position (m), six
                numbers for its rotation (``data.rotations``), both in the world, and the gripper.
            keys: other names for observations, or several side by side, as ``data.keys`` has them.

        Raises:
            ConfigError: an unknown task, observation or option, or a controller that robosuite 1.5 does not have.
        """
        if reward not in ("sparse", "dense"):
            raise ConfigError(f"reward is 'sparse' or 'dense', not '{reward}'.")
        if actions not in ("delta", "absolute"):
            raise ConfigError(f"actions is 'delta' or 'absolute', not '{actions}'.")
        self._absolute, self._keys = actions == "absolute", dict(keys or {})
        with seeded(0):
            self._sim_env, label, horizon, built_from = build(
                name, env_args, shaped=reward == "dense", absolute=self._absolute
            )
        self._look()
        self._dense, self._terminate = reward == "dense", terminate_on_success
        self._length, self._size = episode_length or horizon, image_size
        self._n_robots = len(self._sim_env.robots)
        self._expert = EXPERTS[label](self._sim_env) if label in EXPERTS else None
        if self._expert is not None:
            self.expert_action = self._expert_action  # ScriptedEnv, where there is one
        with seeded(0):
            self._see(self._sim_env.reset())
        self._steps, self._succeeded = 0, False
        size = POSE_6D * self._n_robots if self._absolute else int(self._sim_env.action_dim)
        bound = REACH if self._absolute else 1.0
        self.spec = TaskSpec(
            name=f"robomimic/{label}",
            obs={key: self._field(key) for key in obs},
            action=FieldSpec((size,), "float32", "action"),
            action_low=-bound,
            action_high=bound,
            control_hz=float(self._sim_env.control_freq),
            env_args={
                "suite": "robomimic", "name": label, "obs": list(obs),
                "env_args": built_from, "episode_length": self._length,
                "reward": reward, "terminate_on_success": terminate_on_success, "cameras": list(cameras),
                "image_size": image_size, "actions": actions, "keys": self._keys,
            },
            versions={"mujoco": mujoco.__version__, "robosuite": version("robosuite")},
        )  # fmt: skip
        self._pictures = any(f.kind == "rgb" for f in self.spec.obs.values())

    def reset(self, seed: int) -> Frame:
        """Begin the episode of ``seed``."""
        with seeded(seed):
            self._see(self._sim_env.reset())
        if self._expert is not None:
            self._expert.reset()
        self._steps, self._succeeded = 0, False
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Execute one (Da,) action."""
        action = check_action(action, self.spec).astype(np.float64)
        seen, dense, _, _ = self._sim_env.step(poses_vector(action) if self._absolute else action)
        self._see(seen)
        self._steps += 1
        success = bool(self._sim_env._check_success())
        first = success and not self._succeeded
        self._succeeded |= success
        terminated = success and self._terminate
        truncated = not terminated and self._steps >= self._length
        return StepResult(float(dense) if self._dense else float(first), success, terminated, truncated)

    def sim_state(self) -> np.ndarray:
        """(1 + nq + nv,) float64: time, positions, velocities, as robomimic's ``states``."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def restore(self, state: np.ndarray, scene: str | None = None) -> Frame:
        """Go on from where a recording began.

        Args:
            state: see ``sim_state``.
            scene: the model's XML, robomimic's ``model_file``; None: the one that is there.

        Raises:
            ContractError: the state is not of this model, or the scene cannot be loaded by this robosuite.
        """
        with seeded(0):
            if scene is None:
                self._sim_env.reset()
            else:
                try:
                    self._sim_env.reset_from_xml_string(self._sim_env.edit_model_xml(scene))
                except Exception as e:  # of MuJoCo, or a name of another robosuite's
                    raise ContractError(
                        f"{self.spec.name}: the recorded scene does not load in robosuite {version('robosuite')} ({e})."
                    ) from e
                self._renderer.close()
                self._look()
        want = 1 + self.model.nq + self.model.nv
        if np.shape(state) != (want,):
            raise ContractError(
                f"{self.spec.name}: the recorded state is {np.shape(state)}, but this simulation's is ({want},): time, "
                f"{self.model.nq} positions, {self.model.nv} velocities."
            )
        self._sim_env.sim.set_state_from_flattened(np.asarray(state, np.float64))
        self._sim_env.sim.forward()
        if scene is None:  # the arm rests towards where its episode began
            for robot in self._sim_env.robots:
                for arm in robot.arms:
                    part = robot.part_controllers[arm]
                    part.update(force=True)
                    part.update_initial_joints(part.joint_pos)
        self._see(self._sim_env._get_observations(force_update=True))
        self._steps, self._succeeded = 0, False
        return self.observe()

    def capture(self) -> _Moment:
        """The vectors of this moment, and the poses where pictures are wanted."""
        poses = {n: getattr(self.data, n).copy() for n in _POSES} if self._pictures else {}
        return _Moment(self._steps, dict(self._seen), poses)

    def observe(self, moment: Any = None) -> Frame:
        """One array per key of ``spec.obs``, of now or of a moment that ``capture`` returned."""
        if moment is None or moment.step == self._steps:
            return self._frame(self._seen)
        now = self.capture()
        self._pose(moment)
        try:
            return self._frame(moment.values)
        finally:
            self._pose(now)

    def render(self, height: int = 240, width: int = 240, camera: str = "agentview") -> np.ndarray:
        """(height, width, 3) uint8 picture."""
        if backend() == "raycast" and not self._rays_ready:
            seen = visible_geoms(self.model) & (self.model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)
            rebuild_mesh_trees(self.model, sorted(set(self.model.geom_dataid[seen].tolist())))
            self._rays_ready = True
        names = [self.model.camera(i).name for i in range(self.model.ncam)]
        return self._renderer.render(camera if camera in names else names[0], height, width, False)

    def close(self) -> None:
        """Frees the rendering context, if there is one, and the simulation."""
        self._renderer.close()
        self._sim_env.close()

    def _expert_action(self) -> np.ndarray:
        """(Da,) float32 of the scripted expert."""
        assert self._expert is not None
        delta = np.clip(self._expert.action(), -1.0, 1.0)
        if not self._absolute:
            return delta.astype(np.float32)
        turned = matrix_of_vector(FULL_TURN * delta[3:6]) @ self._expert.axes
        return np.concatenate(
            [self._expert.hand + FULL_STEP * delta[:3], six_of_matrix(turned), delta[6:]], dtype=np.float32
        )

    def _see(self, values: Mapping[str, np.ndarray]) -> None:
        self._seen = {**values, "states": self.sim_state()}

    def _look(self) -> None:
        """At the model and the data that the simulation has now."""
        self.model, self.data = self._sim_env.sim.model._model, self._sim_env.sim.data._data
        self.model.geom_rgba[self.model.geom_group == 0, 3] = 0.0  # what collides is not what is seen
        self.n_positions = int(self.model.nq)
        self._renderer, self._rays_ready = SceneRenderer(self.model, self.data), False

    def _pose(self, moment: _Moment) -> None:
        for name, value in moment.poses.items():
            getattr(self.data, name)[:] = value

    def _frame(self, values: Mapping[str, np.ndarray]) -> Frame:
        frame = {}
        for key, field in self.spec.obs.items():
            if field.kind == "rgb":
                frame[key] = self.render(self._size, self._size, self._camera(key))
            else:
                frame[key] = np.concatenate([np.ravel(values[n]) for n in self._names(key)]).astype(field.dtype)
        return frame

    def _names(self, key: str) -> list[str]:
        """robosuite's names of what makes up ``key``."""
        if key in self._keys:
            parts = self._keys[key]
            return [n for p in ([parts] if isinstance(parts, str) else parts) for n in self._plain_names(p)]
        return self._plain_names(key)

    def _plain_names(self, key: str) -> list[str]:
        if key != "state":
            return ["object-state" if key == "object" else key]
        return [f"robot{i}_{part}" for i in range(self._n_robots) for part in ROBOT_KEYS] + ["object-state"]

    def _camera(self, key: str) -> str:
        """The camera that ``key`` is a picture of, or ""."""
        wanted = self._keys.get(key, key)
        return _camera_of(wanted) if isinstance(wanted, str) else ""

    def _field(self, key: str) -> FieldSpec:
        if camera := self._camera(key):
            camera_id(self.model, camera)
            return FieldSpec((self._size, self._size, 3), "uint8", "rgb")
        for name in self._names(key):
            if name not in self._seen:
                cameras = [f"rgb_{self.model.camera(i).name}" for i in range(self.model.ncam)]
                known = ["state", "object", *self._seen, *cameras]
                raise ConfigError(f"robosuite has no observation '{name}' here. {nearest(name, known)}")
        dtype = "float64" if self._names(key) == ["states"] else "float32"
        return FieldSpec((sum(np.size(self._seen[n]) for n in self._names(key)),), dtype, "state")


def _camera_of(key: str) -> str:
    return key[4:] if key.startswith("rgb_") else key[:-6] if key.endswith("_image") else ""
