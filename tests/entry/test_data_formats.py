"""train.py on a file of another project."""

from pathlib import Path

import numpy as np
import pytest

from data.errors import ConfigError
from data.opening import open_episodes
from launch.demos import chosen_part
from policies.checkpoint import load_policy
from tests.data.lerobot_files import lerobot_folder
from tests.data.others import robomimic_file
from tests.entry.commands import TINY, python


def test_train_on_a_robomimic_file(tmp_path: Path):
    robomimic_file(tmp_path / "lift.hdf5")
    common = [*TINY, f"data.path={tmp_path / 'lift.hdf5'}", "obs=state", f"run_dir={tmp_path / 'run'}"]
    common += ["algo.train_steps=3", "algo.save_every=3", "data.mask=train"]
    keys = "data.keys={state:[robot0_eef_pos,object]}"
    done = python("train.py", *common, keys, "eval.n_episodes=0")
    assert done.status == 0, done.err
    assert done.summary["task"] == "robomimic/Lift"
    policy = load_policy(tmp_path / "run")
    assert (policy.spec.obs["state"].shape, policy.spec.obs["state"].dtype) == ((13,), "float32")
    assert policy.spec.action.shape == (7,)
    assert policy.spec.control_hz == 20
    assert np.isfinite(policy.spec.action_high)
    with pytest.raises(
        ConfigError, match="no observation 'state', only agentview_image, object, robot0_eef_pos; choose"
    ):
        chosen_part(open_episodes(tmp_path / "lift.hdf5"), ["state"])
    assert list(chosen_part(open_episodes(tmp_path / "lift.hdf5"), ["rgb"]).obs) == ["agentview_image"]


@pytest.mark.slow
def test_train_on_a_lerobot_folder(tmp_path: Path):
    lerobot_folder(tmp_path / "cubes")
    words = [*TINY, f"data.path={tmp_path / 'cubes'}", "obs=rgb", "obs.keys=[rgb,state]", "data.memory_gb=0.0001"]
    words += ["algo.train_steps=2", "algo.save_every=2", "algo.batch_size=4"]
    done = python("train.py", *words, f"run_dir={tmp_path / 'run'}", "eval.n_episodes=0")
    assert done.status == 0, done.err
    assert done.summary["task"] == "lerobot/cubes"
    spec = load_policy(tmp_path / "run").spec
    assert {k: f.shape for k, f in spec.obs.items()} == {
        "rgb_top": (48, 64, 3), "rgb_wrist": (48, 64, 3), "state": (3,),
    }  # fmt: skip
    assert spec.control_hz == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cubes", "run"]  # no decoded copy beside it
