"""robosuite's tasks as robomimic uses them: ``task=robomimic task.name=lift``, or any data set's own ``env_args``.

Built on robosuite 1.5 from ``env_args`` alone, without robomimic, whose wrapper needs the retired mujoco-py. Pictures
come from Deft's renderer, so that no GL is needed. What robosuite draws while it builds (lift's cube is 20 to 22 mm) is
drawn once and the same in all episodes; poses are drawn by their seeds.
"""

# MuJoCo and robosuite have no stubs, and robosuite is an extra.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import mujoco
import numpy as np

from data.errors import ConfigError, nearest
from data.spec import FieldSpec, TaskSpec
from envs.base import Frame, StepResult, check_action
from envs.raycast import camera_id, visible_geoms
from envs.raytree import rebuild_mesh_trees
from envs.render import SceneRenderer, backend
from envs.robosuite_controllers import controller_of

try:
    logging.disable(logging.WARNING)  # macros nobody has set, robots nobody asked for
    import robosuite

    from envs.robosuite_experts import EXPERTS
except ImportError as e:
    told = f"task=robomimic needs robosuite, which cannot be imported ({e}): pip install 'deft[robosuite]'."
    raise ConfigError(told) from e
finally:
    logging.disable(logging.NOTSET)
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it tells of every controller file it opens

TASKS = {  # robomimic's: robosuite's name, number of arms, time-out
    "lift": ("Lift", 1, 400),
    "can": ("PickPlaceCan", 1, 400),
    "square": ("NutAssemblySquare", 1, 400),
    "transport": ("TwoArmTransport", 2, 700),
    "tool_hang": ("ToolHang", 1, 700),
}
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
    ):
        """Builds the simulation (1 to 2 s).

        Args:
            name: one of ``TASKS``; or None, with ``env_args``.
            obs: robosuite's names (robot0_eef_pos, ...); "object", all it tells of objects; "state", each robot's
                ``ROBOT_KEYS`` and the objects side by side; rgb_<camera>, or robomimic's <camera>_image.
            env_args: of a robomimic file: {"env_name": ..., "env_version": ..., "env_kwargs": {...}}.
            episode_length: control steps until the time-out; None: robomimic's.
            reward: "sparse" is 1 at the first success, else 0; "dense" is robosuite's shaped one.
            terminate_on_success: end the episode at the first success.
            cameras: what "rgb" in obs.keys stands for; looked at by the configuration only.
            image_size: side of the square pictures, pixels.

        Raises:
            ConfigError: an unknown task, observation or option, or a controller that robosuite 1.5 does not have.
        """
        if reward not in ("sparse", "dense"):
            raise ConfigError(f"reward is 'sparse' or 'dense', not '{reward}'.")
        with _seeded(0):
            self._sim_env, label, horizon = _build(name, env_args, reward == "dense")
        self.model, self.data = self._sim_env.sim.model._model, self._sim_env.sim.data._data
        self.model.geom_rgba[self.model.geom_group == 0, 3] = 0.0  # what collides is not what is seen
        self._dense, self._terminate = reward == "dense", terminate_on_success
        self._length, self._size = episode_length or horizon, image_size
        self._n_robots = len(self._sim_env.robots)
        self._renderer, self._rays_ready = SceneRenderer(self.model, self.data), False
        self._expert = EXPERTS[label](self._sim_env) if label in EXPERTS else None
        if self._expert is not None:
            self.expert_action = self._expert_action  # ScriptedEnv, where there is one
        with _seeded(0):
            self._seen = self._sim_env.reset()
        self._steps, self._succeeded = 0, False
        self.spec = TaskSpec(
            name=f"robomimic/{label}",
            obs={key: self._field(key) for key in obs},
            action=FieldSpec((int(self._sim_env.action_dim),), "float32", "action"),
            control_hz=float(self._sim_env.control_freq),
            env_args={
                "suite": "robomimic", "name": name, "obs": list(obs),
                "env_args": None if env_args is None else dict(env_args), "episode_length": self._length,
                "reward": reward, "terminate_on_success": terminate_on_success, "cameras": list(cameras),
                "image_size": image_size,
            },
            versions={"mujoco": mujoco.__version__, "robosuite": version("robosuite")},
        )  # fmt: skip
        self._pictures = any(f.kind == "rgb" for f in self.spec.obs.values())

    def reset(self, seed: int) -> Frame:
        """Begin the episode of ``seed``."""
        with _seeded(seed):
            self._seen = self._sim_env.reset()
        if self._expert is not None:
            self._expert.reset()
        self._steps, self._succeeded = 0, False
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Execute one (Da,) action."""
        self._seen, dense, _, _ = self._sim_env.step(check_action(action, self.spec).astype(np.float64))
        self._steps += 1
        success = bool(self._sim_env._check_success())
        first = success and not self._succeeded
        self._succeeded |= success
        terminated = success and self._terminate
        truncated = not terminated and self._steps >= self._length
        return StepResult(float(dense) if self._dense else float(first), success, terminated, truncated)

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
        return np.clip(self._expert.action(), -1.0, 1.0).astype(np.float32)

    def _pose(self, moment: _Moment) -> None:
        for name, value in moment.poses.items():
            getattr(self.data, name)[:] = value

    def _frame(self, values: Mapping[str, np.ndarray]) -> Frame:
        frame = {}
        for key, field in self.spec.obs.items():
            if field.kind == "rgb":
                frame[key] = self.render(self._size, self._size, _camera_of(key))
            else:
                frame[key] = np.concatenate([np.ravel(values[n]) for n in self._names(key)]).astype(np.float32)
        return frame

    def _names(self, key: str) -> list[str]:
        """robosuite's names of what makes up ``key``."""
        if key != "state":
            return ["object-state" if key == "object" else key]
        return [f"robot{i}_{part}" for i in range(self._n_robots) for part in ROBOT_KEYS] + ["object-state"]

    def _field(self, key: str) -> FieldSpec:
        if _camera_of(key):
            camera_id(self.model, _camera_of(key))
            return FieldSpec((self._size, self._size, 3), "uint8", "rgb")
        for name in self._names(key):
            if name not in self._seen:
                cameras = [f"rgb_{self.model.camera(i).name}" for i in range(self.model.ncam)]
                known = ["state", "object", *self._seen, *cameras]
                raise ConfigError(f"robosuite has no observation '{key}' here. {nearest(key, known)}")
        return FieldSpec((sum(np.size(self._seen[n]) for n in self._names(key)),), "float32", "state")


def _camera_of(key: str) -> str:
    """The camera that ``key`` is a picture of, or ""."""
    return key[4:] if key.startswith("rgb_") else key[:-6] if key.endswith("_image") else ""


def _build(name: str | None, env_args: Mapping[str, Any] | None, shaped: bool) -> tuple[Any, str, int]:
    """(robosuite's environment, our name of the task, robomimic's time-out)."""
    if env_args is None:
        if name not in TASKS:
            raise ConfigError(f"robomimic has no task '{name}'. {nearest(str(name), list(TASKS))}")
        env_name, arms, horizon = TASKS[name]
        return _make(env_name, {"robots": ["Panda"] * arms, "control_freq": 20}, shaped, False), name, horizon
    env_name = str(env_args.get("env_name"))
    label = next((ours for ours, (theirs, *_) in TASKS.items() if theirs == env_name), env_name)
    if name not in (None, label):
        raise ConfigError(f"task.name={name}, but env_args are of {label} (env_name {env_name!r}).")
    kwargs = dict(env_args.get("env_kwargs", {}))
    old = str(env_args.get("env_version", "1.4")) < "1.5"
    if "controller_configs" in kwargs:
        kwargs["controller_configs"] = controller_of(kwargs["controller_configs"])
    if "mount_types" in kwargs:
        kwargs["base_types"] = kwargs.pop("mount_types")
    horizon = TASKS[label][2] if label in TASKS else 400
    return _make(env_name, kwargs, shaped, old), label, horizon


def _make(env_name: str, kwargs: dict[str, Any], shaped: bool, old: bool) -> Any:
    fixed = {
        "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "use_object_obs": True,
        "ignore_done": True, "reward_shaping": shaped, "hard_reset": False, "renderer": "mujoco",
        "lite_physics": not old,
    }  # fmt: skip
    dropped = (
        "camera_names",
        "camera_heights",
        "camera_widths",
        "camera_depths",
        "camera_segmentations",
        "render_gpu_device_id",
    )
    kwargs = {k: v for k, v in kwargs.items() if k not in dropped} | fixed
    if env_name not in robosuite.environments.REGISTERED_ENVS:
        known = nearest(env_name, list(robosuite.environments.REGISTERED_ENVS))
        raise ConfigError(f"env_args.env_name: robosuite {robosuite.__version__} has no '{env_name}'. {known}")
    try:
        return robosuite.make(env_name, **kwargs)
    except TypeError as e:
        raise ConfigError(f"env_args.env_kwargs do not fit robosuite {robosuite.__version__}'s {env_name}: {e}") from e


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """robosuite 1.5 draws from numpy's global generator, which is lent to it and put back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
