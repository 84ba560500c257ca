"""Other projects' checkpoints on the command line: measured, exported, improved."""

import json

import pytest
import torch

from data.normaliser import Normaliser
from envs.make import make_env
from policies.build import build_policy, normaliser_modes
from policies.checkpoint import load_policy, save_policy
from tests.entry.test_errors import assert_refused

TOY = {"suite": "toy", "obs": ["agent_pos", "state"], "episode_length": 6}
NAMES = "features={observation.state: agent_pos, observation.environment_state: state}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A diffusion policy of ours that LeRobot has a counterpart for, untrained."""
    torch.manual_seed(0)
    task = make_env(TOY).spec
    ones = {k: torch.ones(n) for k, n in (("agent_pos", 2), ("state", 4), ("action", 2))}
    stats = {k: {"min": -x, "max": x, "mean": 0 * x, "std": x / 2} for k, x in ones.items()}
    config = {
        "n_obs_steps": 2,
        "horizon": 8,
        "n_action_steps": 4,
        "policy": {"name": "diffusion", "n_inference_steps": 2, "prediction": "sample", "noise_per_obs": 1},
        "network": {"name": "unet1d", "down_dims": [8, 16], "time_dim": 8},
        "encoder": {"state": {"hidden": []}},
    }
    policy = build_policy(config, task, Normaliser(normaliser_modes(task), stats))
    folder = tmp_path_factory.mktemp("run")
    save_policy(folder / "checkpoint", policy, config)
    return folder


@pytest.fixture(scope="module")
def lerobot(server, run):
    """The same as a LeRobot folder, without what only we write there."""
    refused = server.run("eval.py", f"checkpoint={run}", "export=lerobot")
    assert_refused(refused, "policy.spacing=trailing (leading)")
    path = run / "export" / "lerobot"
    done = server.run("eval.py", f"checkpoint={run}", "export=lerobot", "policy.spacing=leading")
    assert done.summary["path"] == str(path), done.err
    ours = server.run("eval.py", f"checkpoint={path}", "n_episodes=1", "n_envs=1", "device=cpu")
    assert ours.summary["task"] == "toy", ours.err  # deft.json says which environment
    (path / "deft.json").unlink()
    return path


def test_measured(server, lerobot, tmp_path):
    common = [f"checkpoint={lerobot}", "n_episodes=1", "n_envs=1", "device=cpu", f"out={tmp_path}"]
    assert_refused(server.run("eval.py", *common), "does not say which environment", "task=", "features=")
    assert_refused(server.run("eval.py", *common, "task=toy"), "no observation 'environment_state'", "features=")
    done = server.run("eval.py", *common, "task=toy", "task.episode_length=6", NAMES, "execution.name=rtc")
    assert done.status == 0, done.err
    assert done.summary["task"] == "toy"
    assert json.loads((tmp_path / "eval.json").read_text())["execution"]["name"] == "rtc"


@pytest.mark.slow
def test_improved(server, lerobot, tmp_path):
    """The result needs LeRobot's folder no longer."""
    assert_refused(server.run("train.py", f"base={lerobot}", "algo=residual", NAMES), "does not say which environment")
    argv = f"""task=toy task.episode_length=6 algo=residual algo.hold=4 algo.env_steps=24 algo.learning_starts=8
        algo.batch_size=8 algo.n_envs=1 eval.n_episodes=1 eval.n_envs=1 eval.n_videos=0 device=cpu
        run_dir={tmp_path / "r"}""".split()
    done = server.run("train.py", f"base={lerobot}", NAMES, *argv)
    assert done.status == 0, done.err
    better = load_policy(tmp_path / "r")
    assert list(better.spec.obs) == ["agent_pos", "state"]
    assert better.spec.env_args["suite"] == "toy"
