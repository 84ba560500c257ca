"""From a hand to a policy that leads, each step by its own command: record, look, export, train, deploy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.episodes import EpisodeStore
from real_robot.recorder.episode import Episode

ROOT = Path(__file__).parents[2]
NEEDS = {"ur_sim": "rtde_control", "so101_sim": "scservo_sdk"}


def command(*words: str, seconds: float = 240) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("robot", ["mujoco", "ur_sim", "so101_sim"])
def test_record_export_train_deploy(tmp_path, robot):
    if robot in NEEDS:
        pytest.importorskip(NEEDS[robot])
    recording, data, run = (str(tmp_path / name) for name in ("recording", "data.zarr", "run"))
    common = [
        f"robot={robot}",
        "priority=null",
        "safety.watch.robot=2.0",
        "safety.watch.late=5.0",
        "safety.watch.overruns=400",
    ]
    if robot == "so101_sim":
        common.append(f"robot.port={tmp_path / 'arm'}")
    command("-m", "real_robot.record", *common, "teleop=hand", "episodes=2", f"out={recording}")
    listed = command("-m", "real_robot.episodes", "list", recording)
    assert listed.count("success") >= 1, listed
    command("-m", "real_robot.episodes", "export", recording, f"out={data}", "max_gap=1.0")
    store = EpisodeStore.open(data)
    assert store.task is not None
    assert set(store.task.obs) == {"agent_pos", "cube"}
    assert store.task.env_args["suite"] == "real"
    training = ["algo.train_steps=20", "eval.n_episodes=0", "network.hidden_dim=32", "policy.n_inference_steps=2"]
    command("train.py", f"data.path={data}", "obs.keys=[agent_pos,cube]", "obs=state", *training, f"run_dir={run}")
    out = str(tmp_path / "deployed")
    told = command("-m", "real_robot.deploy", *common, f"checkpoint={run}", "trials=1", "trial_seconds=3", f"out={out}")
    summary = json.loads(told.splitlines()[-1])
    assert summary["n_trials"] == 1
    assert summary["led"]["policy"] > 20  # ticks, of 3 s at 50 to 125 Hz
    episode = Episode(tmp_path / "deployed" / "episode_0000")
    t, rows = episode.table("command")
    assert np.isfinite(rows["sent"]).all()
    spec = episode.meta["info"]["robot"]
    assert (rows["sent"] >= np.array(spec["lower"]) - 1e-9).all()
    assert (rows["sent"] <= np.array(spec["upper"]) + 1e-9).all()
    chunks = episode.table("chunk")[1]
    assert len(chunks) >= 2
    assert (np.diff(chunks["id"]) > 0).all()
    assert (np.diff(t) >= 0).all()
