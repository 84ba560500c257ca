"""What a user can do wrong: one paragraph on stderr, exit status 2, nothing left behind."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import zarr

from data.episodes import EpisodeStore
from policies.checkpoint import load_policy
from tests.entry.commands import assert_refused, lines, python
from tests.entry.toys import make

WRONG = {
    "policy=flw": ("Unknown policy 'flw'", "flow"),
    "obs=pointclod": ("Unknown obs 'pointclod'", "pointcloud"),
    "experiment=quikstart": ("Unknown experiment", "quickstart"),
    "algo=ppo": ("Unknown algo 'ppo'", "dppo"),
    "algo.train_stps=3": ("'algo.train_stps'", "algo.train_steps"),
    "sed=1": ("'sed'", "seed"),
    "policy.n_infrence_steps=1": ("policy.n_infrence_steps", "policy.n_inference_steps"),
    "policy.prediction=sample": ("policy.prediction",),  # an option of another policy
    "+policy.foo=1": ("policy.foo",),
    "algo.lr=fast": ("algo.lr=fast", "float"),
    "algo.batch_size=many": ("algo.batch_size=many",),
    "eval.n_envs=1.5": ("eval.n_envs=1.5", "int"),
    "algo.train_steps=0": ("algo.train_steps=0", "at least 1"),
    "algo.save_every=0": ("algo.save_every=0", "at least 1"),
    "eval.every=-1": ("eval.every=-1", "at least 0"),
    "policy.noise_per_obs=0": ("policy.noise_per_obs=0",),
    "n_action_steps=16": ("n_action_steps=16", "horizon=16"),
    "algo.lr=-1": ("algo", "Invalid learning rate"),
    "algo.betas=[0.9,2]": ("algo", "beta"),
    "task.suite=metawrld": ("metawrld", "metaworld"),
    "task.reward=densest": ("reward", "densest"),
    "device=tpu": ("device", "tpu"),
    "device=cuda": ("device=cuda",),
    "precision=fp8": ("precision", "fp8"),
    "seed": ("seed", "key=value"),
    "data.path=/nowhere": ("/nowhere",),
    "data.labels=expert": ("data.labels=expert", "expert_action", "data.noise"),  # nobody disturbed it
    "data.labels=meant": ("data.labels", "meant"),
    "run_dir=/proc/run": ("/proc/run",),
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_option(server, toy, tmp_path, override):
    run = tmp_path / "run[1]"  # brackets must not be taken for markup
    argv = [*toy, f"run_dir='{run}'"]
    if override == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if override.startswith("task."):
        argv += ["task=metaworld", "task.name=door-open-v3"]
        argv = [a for a in argv if not a.startswith(("task.suite", "task.name=toy"))]
    argv = [a for a in argv if a.split("=")[0] != override.split("=")[0]]
    assert_refused(server.run("train.py", *argv, override), *WRONG[override])
    assert not run.exists()


def test_chunk_is_checked_before_demonstrations_are_collected(server, toy, tmp_path):
    argv = [a for a in toy if not a.startswith("data.root=")]
    refused = server.run("train.py", *argv, f"data.root={tmp_path / 'data'}", "n_action_steps=16", "horizon=16")
    assert_refused(refused, "n_action_steps=16", "horizon=16")
    assert not (tmp_path / "data").exists()


def test_unknown_task_and_checkpoint(server, tmp_path):
    """The first is the real command."""
    done = python("train.py", "task.name=door-opn-v3", f"run_dir={tmp_path / 'run'}")
    assert_refused(done, "door-opn-v3", "door-open-v3")
    assert not (tmp_path / "run").exists()
    assert_refused(server.run("eval.py", "checkpoint=/nowhere"), "No checkpoint", "/nowhere")


def test_corrected_command_works_in_the_same_folder(server, toy, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert_refused(server.run("train.py", *toy, "policy.t_distribution=normal", f"run_dir={run}"), "t_distribution")
    assert [p.name for p in run.iterdir()] == ["notes.txt"]
    server.train(*toy, "algo.train_steps=1", f"run_dir={run}")
    assert (run / "notes.txt").exists()


@pytest.fixture
def store(tmp_path):
    """A data set of two episodes of the toy, and its path."""
    env = make(["state", "agent_pos"])
    path = tmp_path / "demos.zarr"
    store = EpisodeStore.create(path, env.spec)
    rng = np.random.default_rng(0)
    for seed in (5, 6):
        episode = {
            "state": rng.uniform(-1, 1, (20, 4)).astype(np.float32),
            "agent_pos": rng.uniform(-1, 1, (20, 2)).astype(np.float32),
            "action": rng.uniform(-1, 1, (20, 2)).astype(np.float32),
        }
        store.append(episode, meta={"seed": seed})
    return path


def test_data_path(server, toy, store, tmp_path):
    """Trains on all its episodes and on the observations asked for."""
    done = server.train(*toy, f"data.path={store}", "algo.train_steps=3", f"run_dir={tmp_path / 'run'}")
    assert done.summary["task"] == "toy"
    assert list(load_policy(tmp_path / "run").spec.obs) == ["state"]
    meta = json.loads((tmp_path / "run/checkpoint/config.json").read_text())["meta"]
    assert meta["demo_seeds"] == [5, 6]


def test_observation_that_the_data_lacks(server, toy, store, tmp_path):
    argv = [*toy, f"data.path={store}", "obs=rgb", f"run_dir={tmp_path / 'run'}"]
    assert_refused(server.run("train.py", *[a for a in argv if a != "obs=state"]), "'rgb'", "state, agent_pos")


def test_nan_in_data(server, toy, store, tmp_path):
    zarr.open_group(store, mode="r+")["data/action"][27, 1] = np.nan
    argv = [*toy, f"data.path={store}", f"run_dir={tmp_path / 'run'}"]
    assert_refused(server.run("train.py", *argv), str(store), "action", "episode 1", "not finite")
    assert not (tmp_path / "run").exists()


def test_wrong_shape_in_data(server, toy, store, tmp_path):
    file = store / ".zattrs"
    attrs = json.loads(file.read_text())
    attrs["task"]["obs"]["state"]["shape"] = [7]
    file.write_text(json.dumps(attrs))
    argv = [*toy, f"data.path={store}", f"run_dir={tmp_path / 'run'}"]
    assert_refused(server.run("train.py", *argv), str(store), "state", "(T, 4)", "(T, 7)")


def test_half_written_store(server, toy, store, tmp_path):
    shutil.rmtree(store / "meta" / "episode_ends")
    argv = [*toy, f"data.path={store}", f"run_dir={tmp_path / 'run'}"]
    assert_refused(server.run("train.py", *argv), str(store), "episode_ends")


def test_truncated_chunk(server, toy, store, tmp_path):
    chunk = max((store / "data" / "action").glob("[0-9]*"))
    chunk.write_bytes(chunk.read_bytes()[:-9])
    argv = [*toy, f"data.path={store}", f"run_dir={tmp_path / 'run'}"]
    assert_refused(server.run("train.py", *argv), str(store))


def test_training_on_the_evaluation_seeds(server, toy, store, tmp_path):
    argv = [*toy, f"data.path={store}", "eval.seed=4", "eval.n_episodes=2", f"run_dir={tmp_path / 'run'}"]
    assert_refused(server.run("train.py", *argv), "1 of the evaluation's seeds (5)", "demonstrations")


def test_evaluating_on_demonstrations(server, straight):
    seeds = json.loads((straight / "checkpoint" / "config.json").read_text())["meta"]["demo_seeds"]
    assert len(seeds) == 3
    argv = [f"checkpoint={straight}", f"seed={seeds[0]}", "n_episodes=1"]
    assert_refused(server.run("eval.py", *argv), str(seeds[0]), "demonstrations")


@pytest.fixture
def checkpoint(straight, tmp_path):
    return shutil.copytree(straight / "checkpoint", tmp_path / "checkpoint")


def test_corrupt_weights(server, checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_refused(server.run("eval.py", f"checkpoint={checkpoint}"), str(file), "corrupt")


def test_corrupt_config(server, checkpoint):
    (checkpoint / "config.json").write_text("{")
    assert_refused(server.run("eval.py", f"checkpoint={checkpoint}"), "config.json", "corrupt")


def test_newer_schema(server, checkpoint):
    document = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**document, "schema_version": 99}))
    assert_refused(server.run("eval.py", f"checkpoint={checkpoint}"), "schema_version 99")


def test_checkpoint_that_does_not_fit_the_environment(server, checkpoint):
    document = json.loads((checkpoint / "config.json").read_text())
    document["task"]["obs"]["state"]["dtype"] = "float64"
    (checkpoint / "config.json").write_text(json.dumps(document))
    refused = server.run("eval.py", f"checkpoint={checkpoint}")
    assert_refused(refused, "does not fit", "state", "float32", "expected (4,) float64")


def test_wrong_eval_option(server, straight):
    for override, word in {
        "n_episodes=0": "at least 1",
        "n_envs=0": "at least 1",
        "n_epsodes=3": "n_episodes",
        "policy.n_inference_steps=abc": "policy.n_inference_steps=abc",
        "n_action_steps=40": "n_action_steps=40",
    }.items():
        assert_refused(server.run("eval.py", f"checkpoint={straight}", override), word)
    assert_refused(server.run("eval.py"), "checkpoint")


def test_loss_that_is_not_finite(server, toy, tmp_path):
    """Training stops, the last good checkpoint stays, loads and acts."""
    run = tmp_path / "run"
    done = server.run("train.py", *toy, "algo.lr=1e30", "algo.save_every=1", f"run_dir={run}")
    assert_refused(done, "became", "of update 1,", str(run / "checkpoint"), "algo.lr")
    assert load_policy(run).horizon == 16
    assert [r["step"] for r in lines(run)] == [1]
    again = server.run("train.py", f"resume={run}")
    assert_refused(again, "of update 1,")
