"""robosuite's environments from robomimic's ``env_args``, and ``env_args`` of our own tasks in robomimic's form."""

# robosuite has no stubs and is an extra.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from data.errors import ConfigError, nearest
from envs.robosuite_controllers import controller_of

try:
    logging.disable(logging.WARNING)  # macros nobody has set, robots nobody asked for
    import robosuite
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
PANDA = {  # robosuite 1.5's default, which may change
    "type": "BASIC",
    "body_parts": {
        "right": {
            "type": "OSC_POSE", "input_type": "delta", "input_ref_frame": "base", "input_max": 1, "input_min": -1,
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
            "kp": 150, "damping_ratio": 1, "impedance_mode": "fixed", "kp_limits": [0, 300],
            "damping_ratio_limits": [0, 10], "position_limits": None, "orientation_limits": None,
            "uncouple_pos_ori": True, "interpolation": None, "ramp_ratio": 0.2, "gripper": {"type": "GRIP"},
        }
    },
}  # fmt: skip
_FIXED = {
    "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "use_object_obs": True,
    "ignore_done": True,
}  # fmt: skip
_PICTURES = (
    "camera_names", "camera_heights", "camera_widths", "camera_depths", "camera_segmentations", "render_gpu_device_id",
)  # fmt: skip


class Built(NamedTuple):
    """robosuite's environment, our name of the task, robomimic's time-out, and the ``env_args`` it was built from."""

    env: Any
    label: str
    horizon: int
    env_args: dict[str, Any]


def build(name: str | None, env_args: Mapping[str, Any] | None, *, shaped: bool, absolute: bool) -> Built:
    """What ``RobosuiteEnv`` is around.

    Args:
        name: one of ``TASKS``, or None.
        env_args: of a robomimic file, or None; wins over ``name``, which must not contradict it.
        shaped: robosuite's dense reward.
        absolute: actions are poses of the hand in the world: 3 + 3 (rotation vector) + 1 numbers per arm.

    Raises:
        ConfigError: an unknown task, or what robosuite 1.5 cannot build, named.
    """
    if env_args is None:
        if name not in TASKS:
            raise ConfigError(f"robomimic has no task '{name}'. {nearest(str(name), list(TASKS))}")
        env_args = _env_args(*TASKS[name][:2])
    env_name = str(env_args.get("env_name"))
    label = next((ours for ours, (theirs, *_) in TASKS.items() if theirs == env_name), env_name)
    if name not in (None, label):
        raise ConfigError(f"task.name={name}, but env_args are of {label} (env_name {env_name!r}).")
    kwargs = dict(env_args.get("env_kwargs", {}))
    old = str(env_args.get("env_version", "1.4")) < "1.5"
    kwargs["controller_configs"] = controller_of(kwargs.get("controller_configs") or PANDA, absolute)
    if "mount_types" in kwargs:
        kwargs["base_types"] = kwargs.pop("mount_types")
    kwargs = {k: v for k, v in kwargs.items() if k not in _PICTURES}
    kwargs |= {**_FIXED, "reward_shaping": shaped, "hard_reset": False, "renderer": "mujoco", "lite_physics": not old}
    horizon = TASKS[label][2] if label in TASKS else 400
    return Built(_make(env_name, kwargs), label, horizon, dict(env_args))


def _env_args(env_name: str, n_arms: int) -> dict[str, Any]:
    """As robomimic writes it into its files, of robosuite 1.5."""
    kwargs = {"robots": ["Panda"] * n_arms, "controller_configs": [PANDA] * n_arms, "control_freq": 20, **_FIXED}
    kwargs |= {"reward_shaping": False, "camera_depths": False, "camera_heights": 84, "camera_widths": 84}
    return {"env_name": env_name, "env_version": robosuite.__version__, "type": 1, "env_kwargs": kwargs}


def _make(env_name: str, kwargs: dict[str, Any]) -> Any:
    if env_name not in robosuite.environments.REGISTERED_ENVS:
        known = nearest(env_name, list(robosuite.environments.REGISTERED_ENVS))
        raise ConfigError(f"env_args.env_name: robosuite {robosuite.__version__} has no '{env_name}'. {known}")
    try:
        return robosuite.make(env_name, **kwargs)
    except TypeError as e:
        raise ConfigError(f"env_args.env_kwargs do not fit robosuite {robosuite.__version__}'s {env_name}: {e}") from e


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """robosuite 1.5 draws from numpy's global generator, which is lent to it and put back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
