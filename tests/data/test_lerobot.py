"""LeRobot's data sets: read in place, written, and judged by LeRobot itself."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, assume, given, settings

from data.cache import DecodedRows
from data.chunks import ChunkDataset
from data.convert import convert
from data.convert import main as convert_command
from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError
from data.formats.lerobot_stats import joined, of_numbers
from data.formats.lerobot_write import LeRobotOptions
from data.opening import open_episodes
from data.spec import FieldSpec, TaskSpec
from tests.data.lerobot_files import CAMERAS, FPS, LENGTHS, decoded, lerobot_folder, pictures
from tests.data.test_robomimic import check_same, fill, stores

KEYS = {
    "observation.state": "state", "observation.grid": "grid", "action": "action", "next.reward": "reward",
    "next.done": "done", "timestamp": "timestamp", "task_index": "task_index", CAMERAS[0]: "rgb_top",
    CAMERAS[1]: "rgb_wrist",
}  # fmt: skip
PEERS = Path(os.environ.get("DEFT_PEERS", Path(__file__).parents[2] / ".venv-peers"))
PNG = LeRobotOptions(pictures="png")


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_what_a_data_set_holds(tmp_path, version):
    rows = lerobot_folder(tmp_path / "cubes", version)
    source = open_episodes(tmp_path / "cubes")
    assert (source.format, source.episode_ends.tolist()) == ("lerobot", np.cumsum(LENGTHS).tolist())
    assert sorted(source.keys) == sorted(KEYS.values())
    order = np.random.default_rng(0).integers(0, len(source.array("action")), 40)
    for theirs, key in KEYS.items():
        array = source.array(key)
        assert array.dtype == rows[theirs].dtype
        np.testing.assert_array_equal(array[:], rows[theirs])  # pictures: what another decode of the file gives
        np.testing.assert_array_equal(array[order], rows[theirs][order])
        np.testing.assert_array_equal(array[5:15], rows[theirs][5:15])
    assert source.task is not None
    assert (source.task.name, source.task.control_hz, source.task.env_args) == ("lerobot/cubes", FPS, {})
    kinds = {k: f.kind for k, f in source.task.obs.items()}
    assert kinds == {"rgb_top": "rgb", "rgb_wrist": "rgb", "state": "state", "grid": "depth"}
    assert source.attrs == {"tasks": ["pick", "place"], "robot_type": "so100"}
    assert open_episodes(tmp_path / "cubes", mask="valid").n_steps == LENGTHS[-1]


def test_windows_decoded_in_place_within_the_budget(tmp_path):
    rows = lerobot_folder(tmp_path / "cubes")
    source = open_episodes(tmp_path / "cubes")
    kwargs = {"obs_keys": ["rgb_top", "rgb_wrist", "state"], "n_obs_steps": 2, "horizon": 4}
    inside = ChunkDataset(source, **kwargs, episodes=np.array([2, 0]))
    frame = source.array("rgb_top").row_bytes
    budget = 3000 + 10 * frame
    outside = ChunkDataset(source, **kwargs, episodes=np.array([2, 0]), memory_budget_bytes=budget)
    for _ in range(3):
        index = torch.randint(0, len(inside), (64,))
        a, b = inside.batch(index), outside.batch(index)
        assert all(torch.equal(a.obs[k], b.obs[k]) for k in kwargs["obs_keys"])
        assert torch.equal(a.action, b.action)
    last = inside.batch(torch.tensor([LENGTHS[2] - 1])).obs["rgb_wrist"][0].numpy()
    np.testing.assert_array_equal(last, rows[CAMERAS[1]][-2:])
    held = [outside._rows[k] for k in ("rgb_top", "rgb_wrist")]
    assert all(isinstance(r, DecodedRows) and 4 <= len(r._kept) <= 5 for r in held)
    assert sum(r._kept.nbytes for r in held) <= budget
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cubes"]  # nothing is decoded to disk


def test_frames_that_are_kept_are_not_decoded_again(tmp_path, monkeypatch):
    lerobot_folder(tmp_path / "cubes")
    source = open_episodes(tmp_path / "cubes")
    array, asked = source.array("rgb_top"), []
    monkeypatch.setattr(array, "gather", lambda rows: asked.append(rows.tolist()) or type(array).gather(array, rows))
    rows = DecodedRows(source, "rgb_top", np.arange(24), torch.device("cpu"), 2 * array.row_bytes + 1)
    got = rows.take(torch.tensor([9, 4, 9, 6]))
    assert torch.equal(got[0], got[2])
    rows.take(torch.tensor([6, 4, 9]))
    assert asked == [[9, 4, 9, 6], [9]]


# ------------------------------------------------------------------------------------ there and back


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(stores())
def test_there_and_back_lossless(tmp_path_factory, made):
    task = made[0]
    assume(task.control_hz > 0)
    folder = tmp_path_factory.mktemp("s")
    ours = fill(folder / "ours", *made)
    for version in ("v3.0", "v2.1"):
        convert(ours, folder / version, "lerobot", lerobot=LeRobotOptions(version, "png"))
        check_same(ours, open_episodes(folder / version))
    convert(open_episodes(folder / "v2.1"), folder / "back", "deft")
    check_same(ours, EpisodeStore.open(folder / "back"))


def store_of_pictures(path, lengths=LENGTHS, size=(64, 80), hz=25.0):
    task = TaskSpec("t", {"rgb_a": FieldSpec((*size, 3), "uint8", "rgb"), "state": FieldSpec((2,), "float32", "state")},
                    FieldSpec((3,), "float32", "action"), control_hz=hz)  # fmt: skip
    rng, store = np.random.default_rng(0), EpisodeStore.create(path, task)
    for i, n in enumerate(lengths):
        rows = {"rgb_a": pictures(n, i, size), "state": rng.normal(size=(n, 2)).astype("f4")}
        store.append({**rows, "action": rng.uniform(-1, 1, (n, 3)).astype("f4"), "success": np.arange(n) == n - 1})
    return EpisodeStore.open(path)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize(("version", "codec"), [("v3.0", "h264"), ("v2.1", "h264"), ("v3.0", "av1")])
def test_there_and_back_as_video(tmp_path, version, codec):
    ours = store_of_pictures(tmp_path / "ours")
    words = [f"out={tmp_path / 'x'}", "format=lerobot", f"version={version}", f"pictures={codec}"]
    assert convert_command([str(tmp_path / "ours"), *words]) == 0
    there = open_episodes(tmp_path / "x")
    assert (there.task, there.episode_ends.tolist()) == (ours.task, ours.episode_ends.tolist())
    for key in ("state", "action", "success"):
        np.testing.assert_array_equal(there.array(key)[:], ours.array(key)[:])
    files = sorted((tmp_path / "x/videos").rglob("*.mp4"))
    assert len(files) == (1 if version == "v3.0" else 3)
    got = there.array("rgb_a")[:]
    np.testing.assert_array_equal(got, np.concatenate([decoded(f) for f in files]))
    right = psnr(got, ours.array("rgb_a")[:])
    assert right > 30  # encoders differ by some dB from release to release
    assert right > psnr(got[1:], ours.array("rgb_a")[:-1]) + 10  # and not that of the frame beside it
    info = json.loads((tmp_path / "x/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == (version, 25, sum(LENGTHS))
    assert info["features"]["observation.images.a"]["info"]["video.codec"] == codec
    assert info["features"]["next.success"] == {"dtype": "bool", "shape": [1], "names": None}


def test_statistics(tmp_path):
    ours = store_of_pictures(tmp_path / "ours")
    convert(ours, tmp_path / "x", "lerobot", lerobot=PNG)
    stats = json.loads((tmp_path / "x/meta/stats.json").read_text())
    x = ours.array("action")[:].astype("f8")
    for name, want in (("min", x.min(0)), ("max", x.max(0)), ("mean", x.mean(0)), ("std", x.std(0))):
        np.testing.assert_allclose(stats["action"][name], want, atol=1e-12)
    assert stats["action"]["count"] == [sum(LENGTHS)]
    seen = ours.array("rgb_a")[:].reshape(-1, 3) / 255
    for name, want in (("min", seen.min(0)), ("max", seen.max(0)), ("mean", seen.mean(0)), ("std", seen.std(0))):
        np.testing.assert_allclose(np.array(stats["observation.images.a"][name])[:, 0, 0], want, atol=1e-12)
    halves = joined([of_numbers(x[:12]), of_numbers(x[12:])])
    np.testing.assert_allclose(halves["q50"], (np.median(x[:12], 0) + np.median(x[12:], 0)) / 2)


def test_what_cannot_be_written(tmp_path):
    odd = store_of_pictures(tmp_path / "odd", (3,), (64, 81))
    with pytest.raises(DataError, match=r"images\.a.*no pictures of 81x64; pictures=png keeps any size"):
        convert(odd, tmp_path / "x", "lerobot")
    no_rate = store_of_pictures(tmp_path / "rate", (3,), hz=0.0)
    with pytest.raises(DataError, match="does not say its rate"):
        convert(no_rate, tmp_path / "x", "lerobot")
    with pytest.raises(ConfigError, match=r"Unknown pictures=h265. Did you mean 'h264'"):
        convert_command([str(tmp_path / "odd"), f"out={tmp_path / 'x'}", "format=lerobot", "pictures=h265"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd", "rate"]


# ------------------------------------------------------------------------------------ LeRobot itself

needs_lerobot = pytest.mark.skipif(
    not (PEERS / "lib/ffmpeg").exists(),
    reason=f"LeRobot is not installed in {PEERS} (benchmarks/peers/install_lerobot.sh; DEFT_PEERS names another place)",
)


def peer(*words):
    script = Path(__file__).parents[2] / "benchmarks/peers/lerobot_data.py"
    command = [str(PEERS / "bin/python"), str(script), *map(str, words)]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


def check_theirs(got, source, names):
    for theirs, key in names.items():
        want = source.array(key)[:]
        value = got[theirs]
        if want.ndim == 4:
            value = np.round(value.transpose(0, 2, 3, 1) * 255).astype("u1")
        np.testing.assert_array_equal(value.reshape(want.shape), want)


@needs_lerobot
@pytest.mark.slow
@pytest.mark.parametrize("codec", ["h264", "av1", "png"])
def test_lerobot_reads_what_we_wrote(tmp_path, codec):
    ours = store_of_pictures(tmp_path / "ours")
    convert(ours, tmp_path / "x", "lerobot", lerobot=LeRobotOptions(pictures=codec))
    peer("read", tmp_path / "x", tmp_path / "out.npz")
    got, there = np.load(tmp_path / "out.npz"), open_episodes(tmp_path / "x")
    names = {"observation.state": "state", "action": "action", "next.success": "success"}
    check_theirs(got, ours, names)
    check_theirs(got, there, {"observation.images.a": "rgb_a"})  # their decoder and ours: the same bytes
    assert got["n_episodes"] == 3
    assert set(got["task"]) == {"t"}
    if codec == "png":
        check_theirs(got, ours, {"observation.images.a": "rgb_a"})
    np.testing.assert_allclose(got["stats/action/mean"], ours.array("action")[:].mean(0), atol=1e-6)


@needs_lerobot
@pytest.mark.slow
def test_lerobot_upgrades_our_v21(tmp_path):
    ours = store_of_pictures(tmp_path / "ours")
    convert(ours, tmp_path / "x", "lerobot", lerobot=LeRobotOptions("v2.1"))
    shutil.copytree(tmp_path / "x", tmp_path / "up")
    peer("upgrade", tmp_path / "up")
    peer("read", tmp_path / "up", tmp_path / "out.npz")
    names = {"observation.state": "state", "action": "action", "observation.images.a": "rgb_a"}
    check_theirs(np.load(tmp_path / "out.npz"), open_episodes(tmp_path / "x"), names)
    up = open_episodes(tmp_path / "up")  # what their script has written, ours reads again
    np.testing.assert_array_equal(up.array("rgb_a")[:], open_episodes(tmp_path / "x").array("rgb_a")[:])


@needs_lerobot
@pytest.mark.slow
@pytest.mark.parametrize(("pictures_as", "codec"), [("video", "libsvtav1"), ("video", "h264"), ("image", "h264")])
def test_we_read_what_lerobot_wrote(tmp_path, pictures_as, codec):
    rng, n = np.random.default_rng(0), sum(LENGTHS)
    rows = {
        "observation.images.top": pictures(n, 0, (64, 80)), "observation.state": rng.normal(size=(n, 4)).astype("f4"),
        "observation.grid": rng.normal(size=(n, 2, 3)).astype("f4"),
        "action": rng.uniform(-1, 1, (n, 2)).astype("f4"),
    }  # fmt: skip
    np.savez(tmp_path / "in.npz", **rows)
    options = {"lengths": LENGTHS, "fps": 30, "vcodec": codec, "pictures": pictures_as}
    peer("write", tmp_path / "theirs", tmp_path / "in.npz", json.dumps(options))
    peer("read", tmp_path / "theirs", tmp_path / "out.npz")
    source = open_episodes(tmp_path / "theirs")
    assert source.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    names = {"observation.images.top": "rgb_top", "observation.state": "state", "observation.grid": "grid"}
    check_theirs(np.load(tmp_path / "out.npz"), source, {**names, "action": "action", "timestamp": "timestamp"})
    for theirs in ("observation.state", "observation.grid", "action"):
        np.testing.assert_array_equal(source.array(theirs.removeprefix("observation."))[:], rows[theirs])
    assert psnr(source.array("rgb_top")[:], rows["observation.images.top"]) > 30
    assert source.attrs["tasks"] == ["task 0", "task 1"]
