"""python -m data.info, data.check, data.convert."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from data import check, info
from data import convert as tool
from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError
from data.opening import open_episodes
from data.survey import survey
from tests.data.others import LENGTHS, robomimic_file

REPO = Path(__file__).parents[2]


def test_info(tmp_path, capsys):
    rows = robomimic_file(tmp_path / "a.hdf5")
    assert info.main([str(tmp_path / "a.hdf5"), "json=true"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["episodes"], told["steps"]) == ("robomimic", 3, sum(LENGTHS))
    assert told["lengths"] == [4, 7, 12]
    assert told["control_hz"] == 20
    assert told["bytes"] == (tmp_path / "a.hdf5").stat().st_size
    assert told["masks"] == {"train": 2, "valid": 1}
    for key, value in rows.items():
        assert told["keys"][key]["shape"] == list(value.shape[1:])
        assert (told["keys"][key]["low"], told["keys"][key]["high"]) == (value.min(), value.max())
    roles = {k: v["role"] for k, v in told["keys"].items()}
    assert (roles["action"], roles["object"], roles["states"]) == ("action", "observation", "extra")
    info.main([str(tmp_path / "a.hdf5")])
    assert "(8, 9, 3)" in capsys.readouterr().out


def test_check_finds_each_problem_and_no_other(tmp_path, task, episode, capsys):
    store = EpisodeStore.create(tmp_path / "s", dataclasses.replace(task, control_hz=10.0))
    rng = np.random.default_rng(0)
    for i in range(8):
        rows = episode(40, i)
        del rows["reward"]
        rows["state"] = np.cumsum(rng.uniform(-1, 1, (40, 3)), 0).astype("f4")
        rows["timestamp"] = np.arange(40) / 10
        if i == 1:
            rows["state"][20:, 2] += 1000
        if i == 2:
            rows["image"][5:30] = rows["image"][5]
        if i == 3:
            rows["action"][:, 1] = np.where(np.arange(40) % 4, 1.0, rows["action"][:, 1])
        if i == 4:
            rows["action"][:] = rows["action"][0]
        if i == 5:
            rows["timestamp"][10:] += 3
        if i == 6:
            rows["timestamp"][10] = rows["timestamp"][9]
        store.append(rows)
    found = [(p.kind, p.episode) for p in survey(store).problems]
    assert found == [("jump", 1), ("frozen", 2), ("saturated", 3), ("constant", 4), ("gap", 5), ("gap", 6)]
    assert check.main([str(tmp_path / "s")]) == 1
    out = capsys.readouterr().out
    assert "state[2] jumps by" in out
    assert "image does not change for 24 steps (2.4 s) from step 5 on" in out
    assert "6 problems in 6 of 8 episodes" in out


def test_check_of_nan_and_of_what_cannot_be_read(tmp_path):
    robomimic_file(tmp_path / "a.hdf5", compression="gzip")
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        file["data/demo_1/obs/robot0_eef_pos"][5, 1] = np.nan
        chunk = file["data/demo_2/obs/agentview_image"].id.get_chunk_info(0)
    with open(tmp_path / "a.hdf5", "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    problems = survey(open_episodes(tmp_path / "a.hdf5")).problems
    assert [(p.kind, p.episode) for p in problems] == [("NaN", 1), ("unreadable", 2)]
    assert "robot0_eef_pos is not finite at step 5" in str(problems[0])
    assert "data/demo_2/obs/agentview_image cannot be decoded" in str(problems[1])


def test_filter_merge_split(tmp_path):
    rows = robomimic_file(tmp_path / "a.hdf5")
    a, b = str(tmp_path / "a.hdf5"), str(tmp_path / "b.zarr")
    assert tool.main([a, f"out={b}", "episodes=2,0-1"]) == 0
    order = np.r_[19:23, 0:19]
    np.testing.assert_array_equal(open_episodes(b).array("object")[:], rows["object"][order])
    assert tool.main([a, b, f"out={tmp_path / 'c.h5'}", "mask=train"]) == 0
    both = open_episodes(tmp_path / "c.h5")
    np.testing.assert_array_equal(both.array("object")[:], np.tile(rows["object"][:19], (2, 1)))
    assert tool.main([a, f"out={tmp_path / 'd.zarr'}", "split=0.4"]) == 0
    train, valid = open_episodes(tmp_path / "d-train.zarr"), open_episodes(tmp_path / "d-valid.zarr")
    assert (train.n_episodes, valid.n_episodes) == (2, 1)
    assert train.n_steps + valid.n_steps == sum(LENGTHS)
    with pytest.raises(DataError, match=r"b.zarr exists already"):
        tool.main([a, f"out={b}"])
    with pytest.raises(ConfigError, match="Unknown format 'lerobt'"):
        tool.main([a, f"out={tmp_path / 'e'}", "format=lerobt"])
    robomimic_file(tmp_path / "fast.hdf5", env_args={"env_name": "Lift", "env_kwargs": {"control_freq": 40}})
    with pytest.raises(DataError, match=r"cannot be joined.*40 actions per second, expected 20"):
        tool.main([a, str(tmp_path / "fast.hdf5"), f"out={tmp_path / 'f'}"])


@pytest.mark.parametrize("name", ["x.zarr", "x.hdf5", "x.zarr.zip"])
def test_a_killed_conversion_leaves_nothing_under_its_name_and_is_completed(tmp_path, name):
    robomimic_file(tmp_path / "a.hdf5")
    script = (
        "import os, sys; from pathlib import Path\n"
        "from data import convert as c; from data.opening import open_episodes\n"
        "c.convert(open_episodes(sys.argv[1]), Path(sys.argv[2]), c.format_of(Path(sys.argv[2]), None),\n"
        "          lambda done: os._exit(9) if done == 2 else None)"
    )
    out = tmp_path / name
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.hdf5", out], cwd=REPO, timeout=60, check=False)
    assert done.returncode == 9
    assert not out.exists()
    assert tool.main([str(tmp_path / "a.hdf5"), f"out={out}"]) == 0
    assert open_episodes(out).n_episodes == 3
    assert sorted(os.listdir(tmp_path)) == sorted(["a.hdf5", name])


def test_the_commands_say_what_is_wrong(tmp_path):
    def run(*words):
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60, check=False)

    assert "PATH is a data set of any format" in run("data.check", "--help").stdout
    done = run("data.info", str(tmp_path / "nothing"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: No data set at")
