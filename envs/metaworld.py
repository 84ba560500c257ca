"""The 50 Meta-World v3 tasks, with initial conditions drawn fresh for each seed.

``gym.make`` resets among 50 stored variations, which would show a policy its training conditions again at evaluation;
here the task's whole range is drawn from, by the seed alone. Goals are hidden from every observation but ``state``
and ``goal``; as in published point-cloud work, ``agent_pos`` is the 9-D robot state.
"""

# MuJoCo is a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import warnings
from functools import cached_property
from typing import Any, NamedTuple

import metaworld
import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from data.errors import ConfigError, nearest
from data.spec import FieldSpec, TaskSpec
from envs.base import Frame, StepResult, check_action
from envs.raycast import PointCloudSensor, camera_id, depth_image, make_workspace, scene_camera, visible_geoms
from envs.raytree import rebuild_mesh_trees
from envs.render import SceneRenderer, backend

# The box holds all that the 50 tasks move, and of the arm the hand and the wrist; table, rim and floor are fixtures.
WORKSPACE_LOW = (-0.66, 0.33, -0.06)
WORKSPACE_HIGH = (0.66, 1.1, 0.4)
FIXTURES = ("basic_floor", "table_wood", "wall_metal")
DEFAULT_CAMERAS = ("corner", "corner4")  # opposite sides, so that the hand hides an object from one of them at most
OBS_KEYS = ("state", "agent_pos", "goal", "pointcloud")

# The experts warn at nearly every step that the environment clips their actions, as it is meant to.
warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")


def task_names() -> list[str]:
    """The 50 names, such as "door-open-v3"."""
    return sorted(ALL_V3_ENVIRONMENTS)


def metaworld_expert(name: str) -> Any:
    """The scripted policy of task ``name``; ``get_action`` maps the (39,) state to an unclipped (4,) action."""
    return ENV_POLICY_MAP[_known_task(name)]()


def _known_task(name: str) -> str:
    if name not in ALL_V3_ENVIRONMENTS:
        raise ConfigError(f"There is no Meta-World v3 task '{name}'. {nearest(name, task_names())}")
    return name


# What cameras and rays read of the simulator (rays also ask the bodies' inertial frames for their bounds).
_POSES = (
    "geom_xpos", "geom_xmat", "xipos", "ximat", "site_xpos", "site_xmat",
    "cam_xpos", "cam_xmat", "light_xpos", "light_xdir",
)  # fmt: skip


class _Moment(NamedTuple):
    """What an observation needs of one control step."""

    step: int
    poses: dict[str, np.ndarray]
    state: np.ndarray  # (39,)
    hand: np.ndarray  # (3,)


class MetaWorldEnv:
    """One Meta-World v3 task as an ``Env`` (80 control steps a second, 4-D actions in [-1, 1])."""

    def __init__(
        self,
        name: str,
        obs: list[str] | tuple[str, ...] = ("pointcloud", "agent_pos"),
        n_points: int = 512,
        cameras: list[str] | tuple[str, ...] = DEFAULT_CAMERAS,
        cloud_source: str = "rays",
        image_size: int = 84,
        episode_length: int = 200,
        reward: str = "sparse",
        terminate_on_success: bool = True,
        goal: bool = False,
    ):
        """Build the simulator (0.2 s).

        Args:
            name: one of ``task_names()``.
            obs: any of state, agent_pos, goal, pointcloud, rgb_<camera>, depth_<camera>.
            n_points: P of the point cloud.
            cameras: what the point cloud is seen from.
            cloud_source: "rays" casts only the rays it needs; "depth" goes through whole 128 x 128 depth images, as a
                robot with depth cameras would.
            image_size: side of the square rgb and depth images, pixels.
            episode_length: control steps until the time-out.
            reward: "sparse" is 1 at the first step with success, else 0; "dense" is Meta-World's (0 to 10 a step).
            terminate_on_success: end the episode at the first success.
            goal: add the key ``goal`` (3,), metres, world.

        Raises:
            ConfigError: an unknown task, key, camera or option value.
        """
        keys = list(obs) + (["goal"] if goal and "goal" not in obs else [])
        if reward not in ("sparse", "dense"):
            raise ConfigError(f"reward is 'sparse' or 'dense', not '{reward}'.")
        if cloud_source not in ("rays", "depth"):
            raise ConfigError(f"cloud_source is 'rays' or 'depth', not '{cloud_source}'.")
        self._sim = _build(_known_task(name), episode_length)
        self._expert = metaworld_expert(name)
        self.model, self.data = self._sim.model, self._sim.data
        self._reward, self._terminate = reward, terminate_on_success
        self._episode_length, self._image_size = episode_length, image_size
        self._depth_cloud = cloud_source == "depth"
        self._rays_ready = False
        self._renderer = SceneRenderer(self.model, self.data)
        self._cameras, self._n_points = list(cameras), n_points
        self.spec = TaskSpec(
            name=f"metaworld/{name}",
            obs={key: self._field(key, n_points, image_size) for key in keys},
            action=FieldSpec((4,), "float32", "action"),
            control_hz=1.0 / self._sim.dt,
            env_args={
                "suite": "metaworld", "name": name, "obs": keys, "n_points": n_points, "cameras": list(cameras),
                "cloud_source": cloud_source, "image_size": image_size, "episode_length": episode_length,
                "reward": reward, "terminate_on_success": terminate_on_success,
            },
            versions=_versions(keys),
        )  # fmt: skip
        if "pointcloud" in keys:
            _ = self.sensor  # its errors belong here
        self._snapshot = _Snapshot(self._sim)
        self._state = np.zeros(39)
        self._steps, self._succeeded = 0, False

    def reset(self, seed: int) -> Frame:
        """Begin the episode of ``seed``; bitwise the same whatever ran before."""
        sim = self._sim
        self._snapshot.restore(sim)
        sim.np_random = np.random.default_rng(seed)
        mujoco.mj_resetData(self.model, self.data)
        sim.reset_model()
        # Seven tasks move bodies last thing in a reset and tell where they were before: bring the poses up to date.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        state = sim._get_obs().astype(np.float64)
        sim._prev_obs = state[:18].copy()
        state[18:36] = state[:18]
        space = sim.sawyer_observation_space  # step() clips to it, so the first state is clipped too
        self._state = np.clip(state, space.low, space.high)
        self._steps, self._succeeded = 0, False
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Execute one (4,) action: hand displacement (cm, per axis) and gripper effort, clipped to [-1, 1]."""
        self._state, dense, _, _, info = self._sim.step(check_action(action, self.spec))
        self._steps += 1
        success = bool(info["success"])
        first = success and not self._succeeded
        self._succeeded |= success
        terminated = success and self._terminate
        truncated = not terminated and self._steps >= self._episode_length
        return StepResult(float(dense) if self._reward == "dense" else float(first), success, terminated, truncated)

    def capture(self) -> _Moment:
        """Copies of the poses and of the state (10 microseconds)."""
        d = self.data
        poses = {name: getattr(d, name).copy() for name in _POSES}
        return _Moment(self._steps, poses, self._state.copy(), self._sim.get_endeff_pos().copy())

    def observe(self, moment: Any = None) -> Frame:
        """One array per key of ``spec.obs``, of now or of a moment that ``capture`` returned."""
        if moment is None or moment.step == self._steps:
            return {key: self._observe(key, self._state, self._sim.get_endeff_pos()) for key in self.spec.obs}
        now = self.capture()
        self._pose(moment)
        try:
            return {key: self._observe(key, moment.state, moment.hand) for key in self.spec.obs}
        finally:
            self._pose(now)

    def _pose(self, moment: _Moment) -> None:
        for name, value in moment.poses.items():
            getattr(self.data, name)[:] = value

    def expert_action(self) -> np.ndarray:
        """(4,) float32: the scripted expert's action now, clipped to [-1, 1]."""
        return np.clip(self._expert.get_action(self._state), -1.0, 1.0).astype(np.float32)

    def render(self, height: int = 240, width: int = 240, camera: str = "corner4") -> np.ndarray:
        """(height, width, 3) uint8 picture, goal marker included."""
        return self._picture(camera, height, width, markers=True)

    def close(self) -> None:
        """Free the rendering context, if there is one."""
        self._renderer.close()

    def _observe(self, key: str, state: np.ndarray, hand: np.ndarray) -> np.ndarray:
        if key == "state":
            return state.astype(np.float32)
        if key == "goal":
            return state[36:39].astype(np.float32)
        if key == "agent_pos":
            sites = [self.data.site(s).xpos for s in ("rightEndEffector", "leftEndEffector")]
            return np.concatenate([hand, *sites]).astype(np.float32)
        if key == "pointcloud":
            return self.sensor.points_through_depth(128) if self._depth_cloud else self.sensor.points()
        kind, camera = key.split("_", 1)
        size = self._image_size
        if kind == "rgb":
            return self._picture(camera, size, size, markers=False)
        self._prepare_rays()
        return depth_image(self.model, self.data, scene_camera(self.model, self.data, camera), size, size)[0]

    def _field(self, key: str, n_points: int, size: int) -> FieldSpec:
        """Shape metadata of observation ``key``."""
        fixed = {
            "state": FieldSpec((39,), "float32", "state"),
            "agent_pos": FieldSpec((9,), "float32", "state"),
            "goal": FieldSpec((3,), "float32", "state"),
            "pointcloud": FieldSpec((n_points, 3), "float32", "pointcloud"),
        }
        if key in fixed:
            return fixed[key]
        kind, _, camera = key.partition("_")
        if kind not in ("rgb", "depth") or not camera:
            known = [
                *OBS_KEYS,
                *(f"{k}_{self.model.camera(i).name}" for k in ("rgb", "depth") for i in range(self.model.ncam)),
            ]
            raise ConfigError(f"Meta-World has no observation '{key}'. {nearest(key, known)}")
        camera_id(self.model, camera)
        return (
            FieldSpec((size, size, 3), "uint8", "rgb") if kind == "rgb" else FieldSpec((size, size), "float32", "depth")
        )

    @cached_property
    def sensor(self) -> PointCloudSensor:
        """The point-cloud sensor; made when first needed, because it takes a second."""
        self._prepare_rays()
        workspace, fixtures = make_workspace(self.model, self.data, WORKSPACE_LOW, WORKSPACE_HIGH, FIXTURES)
        return PointCloudSensor(self.model, self.data, self._cameras, self._n_points, workspace, fixtures)

    def _prepare_rays(self) -> None:
        if not self._rays_ready:
            seen = visible_geoms(self.model) & (self.model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)
            rebuild_mesh_trees(self.model, sorted(set(self.model.geom_dataid[seen].tolist())))
            self._rays_ready = True

    def _picture(self, camera: str, height: int, width: int, markers: bool) -> np.ndarray:
        if backend() == "raycast":
            self._prepare_rays()
        return self._renderer.render(camera, height, width, markers)


def _versions(keys: list[str]) -> dict[str, str]:
    versions = {"mujoco": mujoco.__version__, "metaworld": getattr(metaworld, "__version__", "")}
    if not versions["metaworld"]:
        from importlib.metadata import version

        versions["metaworld"] = version("metaworld")
    if any(key.startswith("rgb") for key in keys):
        versions["renderer"] = backend()
    return versions


def _build(name: str, episode_length: int) -> Any:
    """Meta-World's environment, free to draw new initial conditions and to show its goal, cameras upright."""
    sim = ALL_V3_ENVIRONMENTS[name]()
    sim._partially_observable = False
    sim._set_task_called = True
    sim._freeze_rand_vec = False
    sim.seeded_rand_vec = True
    sim.__dict__.pop("sawyer_observation_space", None)  # cached while the goal was still hidden: bounds of zero
    sim.max_path_length = episode_length + 1
    for i in range(sim.model.ncam):
        up = sim.data.cam_xmat[i].reshape(3, 3)[:, 1]
        if sim.model.cam_bodyid[i] == 0 and up[2] < -0.1:  # the corner cameras hang upside down: roll them
            roll = np.array([0.0, 0.0, 0.0, 1.0])
            quat = np.empty(4)
            mujoco.mju_mulQuat(quat, sim.model.cam_quat[i], roll)
            sim.model.cam_quat[i] = quat
    # Meta-World resets a task twice, the first time to settle quantities that the second reads (object heights). One
    # such reset is made here, always the same, and every episode starts from what it leaves.
    sim.np_random = np.random.default_rng(0)
    sim.reset()
    return sim


class _Snapshot:
    """All that one episode could leave behind for the next: the model's small arrays and the object's attributes."""

    _KEEP = ("model", "data", "mujoco_renderer", "np_random", "_np_random")

    def __init__(self, sim: Any):
        names = [n for n in dir(sim.model) if not n.startswith("_")]
        arrays = {n: getattr(sim.model, n) for n in names if isinstance(getattr(sim.model, n, None), np.ndarray)}
        # Meshes, textures and the like are large and nobody writes them.
        self._arrays = [(a, a.copy()) for a in arrays.values() if 0 < a.size < 4096 and a.flags.writeable]
        self._attributes = {k: v for k, v in sim.__dict__.items() if k not in self._KEEP and not _is_live(v)}
        self._attributes = copy.deepcopy(self._attributes)
        self._live = {k: v for k, v in sim.__dict__.items() if k not in self._KEEP and _is_live(v)}

    def restore(self, sim: Any) -> None:
        """Put everything back."""
        for array, value in self._arrays:
            np.copyto(array, value)
        for key in [k for k in sim.__dict__ if k not in self._KEEP and k not in self._attributes]:
            del sim.__dict__[key]
        sim.__dict__.update(copy.deepcopy(self._attributes))
        sim.__dict__.update(self._live)


def _is_live(value: Any) -> bool:
    """Whether an attribute is a view into the simulator's memory; a copy would no longer follow the simulation."""
    while isinstance(value, np.ndarray):
        if value.base is None:
            return False
        if not isinstance(value.base, np.ndarray):
            return True
        value = value.base
    return False
