"""A policy that another project's code has trained on episodes recorded here, on the robot they were recorded on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from data.episodes import EpisodeStore
from data.errors import ConfigError, ContractError
from data.normaliser import Normaliser
from data.spec import FieldSpec, TaskSpec
from policies.build import build_policy, normaliser_modes
from policies.checkpoint import save_policy
from policies.foreign.lerobot_write import write_lerobot
from real_robot.env import RobotEnv
from real_robot.remote.serving import load_served

NAMES = {"observation.state": "agent_pos", "observation.environment_state": "cube"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """An exported data set of one episode."""
    env = RobotEnv()
    spec = env.spec
    env.close()
    store = EpisodeStore.create(tmp_path_factory.mktemp("data") / "cube.zarr", spec)
    arrays = {key: np.zeros((4, *field.shape), field.dtype) for key, field in spec.obs.items()}
    store.append({**arrays, "action": np.zeros((4, *spec.action.shape), np.float32)})
    return store.path, spec


@pytest.fixture(scope="module")
def lerobot(recorded, tmp_path_factory):
    """A run of an untrained policy for it, and in lerobot/ the same as LeRobot writes it."""
    _, spec = recorded
    torch.manual_seed(0)
    stats = {}
    for key, field in {**spec.obs, "action": spec.action}.items():
        one = torch.ones(field.shape)
        stats[key] = {"min": -one, "max": one, "mean": 0 * one, "std": one / 2}
    config = {
        "n_obs_steps": 2,
        "horizon": 8,
        "n_action_steps": 4,
        "policy": {"name": "diffusion", "n_inference_steps": 2, "prediction": "sample", "spacing": "leading"},
        "network": {"name": "unet1d", "down_dims": [8, 16], "time_dim": 8},
        "encoder": {"state": {"hidden": []}},
    }
    folder = tmp_path_factory.mktemp("run")
    policy = build_policy(config, spec, Normaliser(normaliser_modes(spec), stats))
    save_policy(folder / "checkpoint", policy, config)
    write_lerobot(policy, {"config": config, "meta": {}}, folder / "lerobot")
    (folder / "lerobot" / "deft.json").unlink()
    return folder


def test_the_data_set_says_what_the_robot_shows_and_how_it_is_led(recorded, lerobot):
    path, spec = recorded
    served = load_served(lerobot / "lerobot", device="cpu", features=NAMES, data=path)
    told = served.metadata
    assert (told["rule"], told["actions"]) == (spec.env_args["rule"], spec.env_args["actions"])
    assert (told["task"], told["control_hz"]) == (spec.name, spec.control_hz)
    assert set(told["observation"]) == set(spec.obs)


def test_what_does_not_fit_is_refused(recorded, lerobot, tmp_path):
    path, _ = recorded
    with pytest.raises(ContractError, match=r"'environment_state' .* is missing .* features="):
        load_served(lerobot / "lerobot", device="cpu", data=path)
    with pytest.raises(ConfigError, match=r"says itself what it is for: leave out data="):
        load_served(lerobot, device="cpu", data=path)
    simulated = TaskSpec(
        "metaworld/x", {"state": FieldSpec((7,), "float32", "state")}, FieldSpec((7,), "float32", "action"),
        env_args={"suite": "metaworld"},
    )  # fmt: skip
    EpisodeStore.create(tmp_path / "x.zarr", simulated)
    with pytest.raises(ConfigError, match=r"x\.zarr does not say how its episodes were recorded"):
        load_served(lerobot / "lerobot", device="cpu", features=NAMES, data=tmp_path / "x.zarr")


def test_deployed(recorded, lerobot, capsys):
    """Untrained, so it succeeds in nothing; but it leads the arm, through the limits."""
    from real_robot.commands.deploy import main

    names = "features={" + ", ".join(f"{k}: {v}" for k, v in NAMES.items()) + "}"
    words = ["robot=mujoco", "mode=rtc", "trials=1", "trial_seconds=2.0", "realtime=false"]
    assert main([f"checkpoint={lerobot / 'lerobot'}", names, f"data={recorded[0]}", *words]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["success_rate"], told["n_trials"]) == (0.0, 1)
    assert told["jerk_rms"] > 0
