"""robosuite's tasks behind our door; robomimic's files bring the configurations."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("h5py", reason="pip install 'deft[hdf5]'")
pytest.importorskip("robosuite", reason="pip install 'deft[robosuite]'")

import h5py

from data.convert import convert
from data.errors import ConfigError, ContractError, DataError
from data.opening import open_episodes
from data.rotations import matrix_of_six, matrix_of_vector, poses_vector
from envs.base import RestorableEnv, ScriptedEnv
from envs.collect import collect_demos
from envs.make import make_env
from envs.replay import replay_all
from envs.robosuite_controllers import controller_of
from launch.demos import chosen_part, in_environment
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
        ({"control_delta": False}, r"control_delta=false.*task\.actions=absolute"),
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


KEYS = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(zarr, what ``data.convert`` makes of it, the same as robomimic 0.3 writes it) of two demonstrations of lift."""
    folder = tmp_path_factory.mktemp("lift")
    store = collect_demos({**LIFT, "obs": [*KEYS, "states"]}, folder / "lift.zarr", 2, first_seed=7, n_workers=0)
    convert(store, folder / "lift.hdf5", "robomimic")
    convert(store, folder / "theirs.hdf5", "robomimic")
    env = make_env(LIFT)
    with h5py.File(folder / "theirs.hdf5", "a") as file:
        data = file["data"]
        ours = json.loads(data.attrs["env_args"])
        assert (ours["env_name"], ours["type"], ours["env_kwargs"]["control_freq"]) == ("Lift", 1, 20)
        assert "states" in data["demo_0"]
        assert "states" not in data["demo_0/obs"]
        del data.attrs["deft"]
        data.attrs["env_args"] = json.dumps({k: v for k, v in ENV_ARGS.items() if k != "env_version"})
        for demo in data.values():
            demo.attrs["model_file"] = env._sim_env.sim.model.get_xml()
            demo["actions_abs"] = absolute_of(env, demo["states"][:], demo["actions"][:])
    return [folder / name for name in ("lift.zarr", "lift.hdf5", "theirs.hdf5")]


def absolute_of(env, states, actions):
    """(T, 7) where the controller is sent by (T, 7) displacements."""
    out = []
    for state, action in zip(states, actions, strict=True):
        env.restore(state)
        turned = matrix_of_vector(0.5 * action[3:6].astype(float)) @ env._expert.axes
        six = np.concatenate([env._expert.hand + 0.05 * action[:3], turned[:2].ravel(), action[6:]])
        out.append(poses_vector(six))
    return np.array(out)


def test_demonstrations_are_replayed(recorded, tmp_path):
    _, ours, theirs = recorded
    for path, scene, within in ((ours, False, 1e-4), (theirs, True, 0.1)):
        results = replay_all(open_episodes(path))
        assert [(r.success, r.recorded, r.scene) for r in results] == [(True, True, scene)] * 2
        assert max(r.deviation for r in results) < within
    by_seed = collect_demos({**LIFT, "obs": KEYS}, tmp_path / "seeds.zarr", 1, first_seed=7, n_workers=0)
    (result,) = replay_all(by_seed)
    assert result.success
    assert result.deviation == 0
    with h5py.File(theirs) as file, h5py.File(tmp_path / "bad.hdf5", "w") as bad:
        file.copy("data", bad)
        first = bad["data/demo_0"]
        first["actions"][:] = 0.0
        first.attrs["model_file"] = "<mujoco><worldbody/></mujoco>"
        bad["data/demo_1/states"][0, 1] += 1.0
    wrong = replay_all(open_episodes(tmp_path / "bad.hdf5"))
    assert [r.scene for r in wrong] == [False, False]
    assert not wrong[0].success
    assert wrong[1].deviation > 0.3
    with h5py.File(tmp_path / "bad.hdf5", "a") as bad:
        for demo in bad["data"].values():
            del demo["states"], demo.attrs["seed"]
    with pytest.raises(DataError, match=r"neither simulator states .* nor the seeds"):
        replay_all(open_episodes(tmp_path / "bad.hdf5"))


def test_restores_a_state():
    env = make_env({**LIFT, "obs": ["states", "object"]})
    assert isinstance(env, RestorableEnv)
    first = env.reset(2)
    for _ in range(3):
        env.step(np.ones(7))
    np.testing.assert_allclose(env.restore(first["states"])["object"], first["object"], atol=1e-5)
    with pytest.raises(ContractError, match=r"state is \(31,\), but this simulation's is \(32,\)"):
        env.restore(first["states"][1:])


def test_a_files_environment_must_be_what_was_recorded(recorded):
    theirs = recorded[2]
    task = chosen_part(open_episodes(theirs, keys={"state": KEYS}), ["state"])
    env = make_env(task.env_args)
    fitted = in_environment(theirs, task, env.spec)
    assert fitted.differences(env.spec) == []
    demo = open_episodes(theirs, keys={"state": KEYS}).episode(0)
    env.restore(demo["states"][0])
    np.testing.assert_allclose(env.observe()["state"], demo["state"][0], atol=1e-4)
    swapped = make_env(chosen_part(open_episodes(theirs, keys={"x": ["object", "robot0_eef_pos"]}), ["x"]).env_args)
    frame = swapped.restore(demo["states"][0])["x"]
    np.testing.assert_allclose(frame, np.concatenate([demo["object"][0], demo["robot0_eef_pos"][0]]), atol=1e-4)
    other = make_env({**LIFT, "name": "can"}).spec
    with pytest.raises(ContractError, match=r"theirs.hdf5.*robomimic/can.*'state' is \(23,\).*expected \(19,\)"):
        in_environment(theirs, task, other)
    with pytest.raises(ConfigError, match="no observation 'reward'"):
        make_env(chosen_part(open_episodes(theirs, keys={"state": ["object", "reward"]}), ["state"]).env_args)


def test_absolute_actions(recorded):
    source = open_episodes(recorded[2], actions="absolute")
    assert source.task is not None
    assert source.task.action.shape == (10,)
    (result,) = replay_all(source, n=1)
    assert result.success
    env = make_env({**LIFT, "actions": "absolute"})
    assert succeeds(env, 3)
    env.reset(3)
    action = env.expert_action()
    assert action.shape == env.spec.action.shape == (10,)
    np.testing.assert_allclose(matrix_of_six(action[3:9])[:2].ravel(), action[3:9], atol=1e-5)
    for _ in range(40):  # held, it gets there
        env.step(action)
    np.testing.assert_allclose(env._expert.hand, action[:3], atol=0.01)
    with pytest.raises(DataError, match=r"no actions_abs.*robosuite_add_absolute_actions"):
        open_episodes(recorded[1], actions="absolute")
    with pytest.raises(ConfigError, match="actions=relative"):
        open_episodes(recorded[2], actions="relative")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lift", "can", "square"])
def test_the_expert_nearly_always_succeeds(name):
    env = make_env({**LIFT, "name": name})
    assert sum(succeeds(env, seed) for seed in range(10)) >= 9
