"""robosuite's tasks behind our door; robomimic's files bring the configurations."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="pip install 'deft[robosuite]'")

from data.errors import ConfigError
from envs.base import ScriptedEnv
from envs.make import make_env
from envs.robosuite_controllers import controller_of
from tests.envs.env_contract import EnvContract

LIFT = {"suite": "robomimic", "name": "lift", "obs": ["state"]}
# As robosuite 1.2 to 1.4 wrote it into robomimic's files
OLD = json.loads("""{
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150, "damping": 1, "impedance_mode": "fixed",
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp_limits": [0, 300], "damping_limits": [0, 10], "position_limits": null, "orientation_limits": null,
    "uncouple_pos_ori": true, "control_delta": true, "interpolation": null, "ramp_ratio": 0.2
}""")
ENV_ARGS = {
    "env_name": "Lift",
    "env_version": "1.4.1",
    "type": 1,
    "env_kwargs": {
        "robots": ["Panda"], "controller_configs": OLD, "control_freq": 20, "has_renderer": False, "ignore_done": True,
        "has_offscreen_renderer": False, "use_object_obs": True, "use_camera_obs": False, "reward_shaping": False,
        "camera_depths": False, "camera_heights": 84, "camera_widths": 84, "render_gpu_device_id": 0,
    },
}  # fmt: skip


class TestLift(EnvContract):
    env_args = {**LIFT, "obs": ["state", "object", "rgb_agentview"], "image_size": 24, "episode_length": 15}  # noqa: RUF012
    steps = 4


def succeeds(env, seed):
    env.reset(seed)
    result = env.step(env.expert_action())
    while not (result.terminated or result.truncated):
        result = env.step(env.expert_action())
    return result.success


def test_a_files_env_args_make_the_same_task():
    env, theirs = make_env(LIFT), make_env({**LIFT, "name": None, "env_args": ENV_ARGS})
    assert theirs.spec.name == env.spec.name == "robomimic/lift"
    assert theirs.spec.env_args["episode_length"] == 400
    np.testing.assert_array_equal(env.reset(3)["state"], theirs.reset(3)["state"])
    assert isinstance(theirs, ScriptedEnv)
    assert succeeds(theirs, 3)
    with pytest.raises(ConfigError, match=r"task\.name=can, but env_args are of lift"):
        make_env({**LIFT, "name": "can", "env_args": ENV_ARGS})


def test_numpys_global_generator_is_given_back():
    env = make_env(LIFT)
    np.random.seed(5)  # noqa: NPY002
    first, drawn = env.reset(1)["state"], np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    assert np.random.rand() == drawn  # noqa: NPY002
    np.testing.assert_array_equal(env.reset(1)["state"], first)


def test_controllers_are_translated_or_refused_by_name():
    arm = controller_of(OLD)["body_parts"]["right"]
    assert arm["damping_ratio"] == 1
    assert arm["damping_ratio_limits"] == [0, 10]
    assert (arm["input_type"], arm["input_ref_frame"]) == ("delta", "world")
    assert arm["gripper"] == {"type": "GRIP"}
    assert controller_of(controller_of(OLD)) == controller_of(OLD)
    assert controller_of([OLD, OLD]) == [controller_of(OLD)] * 2
    for change, named in (
        ({"type": "JOINT_VELOCITY"}, "type='JOINT_VELOCITY'"),
        ({"control_delta": False}, "control_delta"),
        ({"position_limits": [[0], [1]]}, "position_limits"),
        ({"stiffness": 3}, "stiffness"),
    ):
        with pytest.raises(ConfigError, match=named):
            controller_of({**OLD, **change})


def test_what_it_does_not_have_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'square'"):
        make_env({**LIFT, "name": "squar"})
    with pytest.raises(ConfigError, match="'robot0_eef_pos'"):
        make_env({**LIFT, "obs": ["robot0_eef_po"]})
    with pytest.raises(ConfigError, match=r"env_kwargs do not fit.*wings"):
        make_env(
            {**LIFT, "name": None, "env_args": {"env_name": "Lift", "env_kwargs": {"robots": "Panda", "wings": 2}}}
        )
    with pytest.raises(ConfigError, match="no 'Lif'"):
        make_env({**LIFT, "name": None, "env_args": {"env_name": "Lif"}})


def test_no_expert_no_demonstrations():
    assert not isinstance(make_env({**LIFT, "name": "tool_hang"}), ScriptedEnv)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lift", "can", "square"])
def test_the_expert_nearly_always_succeeds(name):
    env = make_env({**LIFT, "name": name})
    assert sum(succeeds(env, seed) for seed in range(10)) >= 9
