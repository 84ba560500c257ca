"""robomimic's files: read in place, written, and refused when they are broken."""

import importlib.util
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chunks import ChunkDataset
from data.convert import convert
from data.episodes import EpisodeStore
from data.errors import DataError
from data.normaliser import Normaliser
from data.opening import open_episodes
from data.spec import FieldSpec, TaskSpec
from tests.data.others import ENV_ARGS, LENGTHS, robomimic_file


def test_what_the_file_holds(tmp_path):
    path = tmp_path / "lift.data"  # the content tells the format, not the name
    rows = robomimic_file(path, lengths=(3,) * 9 + LENGTHS)  # demo_10 comes after demo_9
    source = open_episodes(path)
    assert source.format == "robomimic"
    assert set(source.keys) == set(rows)
    for key, value in rows.items():
        np.testing.assert_array_equal(source.array(key)[:], value)
        assert source.dtype(key) == value.dtype
        np.testing.assert_array_equal(source.array(key)[np.array([30, 2, -1])], value[[30, 2, -1]])
    np.testing.assert_array_equal(source.episode(10)["object"], rows["object"][34:46])
    task = source.task
    assert task is not None
    assert (task.name, task.control_hz, task.action_low, task.action_high) == ("robomimic/Lift", 20.0, -1.0, 1.0)
    assert {k: f.kind for k, f in task.obs.items()} == {
        "agentview_image": "rgb", "object": "state", "robot0_eef_pos": "state",
    }  # fmt: skip
    assert task.env_args == {"suite": "robomimic", "env_args": ENV_ARGS}
    assert task.versions == {"robosuite": "1.4.1"}
    assert source.episode_meta("mask_train").tolist() == [True] * 11 + [False]


def test_what_it_does_not_say(tmp_path):
    robomimic_file(tmp_path / "a.hdf5", env_args=None, action_scale=3.0)
    task = open_episodes(tmp_path / "a.hdf5", hz=12.0).task
    actions = open_episodes(tmp_path / "a.hdf5").array("action")[:]
    assert task is not None
    assert (task.action_low, task.action_high) == (actions.min(), actions.max())
    assert (task.control_hz, task.env_args, task.name) == (12.0, {}, "robomimic/a")


def test_keys_and_masks(tmp_path):
    rows = robomimic_file(tmp_path / "a.hdf5")
    keys = {"state": ["robot0_eef_pos", "object", "done"], "image": "agentview_image"}
    source = open_episodes(tmp_path / "a.hdf5", keys=keys, mask="valid")
    assert (source.n_episodes, source.n_steps) == (1, LENGTHS[2])
    want = np.concatenate([rows["robot0_eef_pos"], rows["object"], rows["done"][:, None]], 1)[19:]
    np.testing.assert_array_equal(source.array("state")[:], want)
    np.testing.assert_array_equal(source.array("state")[np.array([3, 0])], want[[3, 0]])
    np.testing.assert_array_equal(source.episode(0)["image"], rows["agentview_image"][19:])
    assert source.task is not None
    assert source.task.obs["state"].shape == (14,)
    assert source.task.obs["image"].kind == "rgb"
    for wrong, match in (
        ({"keys": {"state": "robot0_eef_pso"}}, "no data/robot0_eef_pso. Did you mean 'robot0_eef_pos'"),
        ({"mask": "trian"}, "no mask/trian. Did you mean 'train'"),
        ({"hz": 10.0}, "says 20 actions per second; hz=10 does not fit"),
        ({"keys": {"state": ["object", "agentview_image"]}}, "only vectors"),
    ):
        with pytest.raises(DataError, match=match):
            open_episodes(tmp_path / "a.hdf5", **wrong)


@pytest.mark.parametrize("userblock", [0, 1024])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_windows_in_memory_from_the_file_and_from_a_cache(tmp_path, compression, userblock):
    rows = robomimic_file(tmp_path / "a.hdf5", compression=compression, userblock=userblock)
    source = open_episodes(tmp_path / "a.hdf5")
    kwargs = {"obs_keys": ["agentview_image", "object", "robot0_eef_pos"], "n_obs_steps": 2, "horizon": 4}
    some = np.array([2, 0])
    inside = ChunkDataset(source, **kwargs, episodes=some)
    outside = ChunkDataset(source, **kwargs, episodes=some, memory_budget_bytes=0)
    cached = {p.parent.name for p in tmp_path.rglob("*.rows")}
    # float64 is decoded to float32; everything else is read where it lies, unless it is compressed
    assert cached == {"robot0_eef_pos", "action"} | ({"agentview_image", "object"} if compression else set())
    index = torch.randperm(len(inside))
    a, b = inside.batch(index), outside.batch(index)
    for key in kwargs["obs_keys"]:
        assert torch.equal(a.obs[key], b.obs[key])
    assert torch.equal(a.action, b.action)
    last = inside.batch(torch.tensor([3])).obs["object"][0].numpy()  # episode 2's last frame, with the one before
    np.testing.assert_array_equal(last, rows["object"][-2:])
    assert Normaliser.fit(source, {"object": "minmax"}).statistic("object", "max").shape == (10,)


# ------------------------------------------------------------------------------------ there and back


@st.composite
def stores(draw):
    dtypes = st.sampled_from(["float32", "float64", "uint8", "int64", "bool", "float16", "uint16"])
    names = st.sampled_from(["state", "a.b", "K-1", "cam", "goal"])
    shapes = st.sampled_from([(), (1,), (3,), (2, 3), (4, 5, 3), (40, 40, 3)])
    obs = {n: FieldSpec(draw(shapes), draw(dtypes), "state") for n in draw(st.sets(names, min_size=1, max_size=3))}
    action = FieldSpec((draw(st.integers(1, 3)),), draw(st.sampled_from(["float32", "float64"])), "action")
    env_args = draw(st.sampled_from([{}, {"suite": "toy", "obs": ["state"]}]))
    task = TaskSpec("t/x", obs, action, -2.0, 3.0, draw(st.sampled_from([0.0, 12.5])), env_args, {"sim": "1"})
    extras = draw(st.sets(st.sampled_from(["reward", "success", "done", "timestamp"])))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    return task, sorted(extras), lengths, draw(st.booleans()), draw(st.integers(0, 2**31))


def fill(path, task, extras, lengths, meta, seed):
    rng = np.random.default_rng(seed)
    store = EpisodeStore.create(path, task, {"note": "n", "rule": {"a": [1, 2]}})
    for i, n in enumerate(lengths):
        fields = {**task.obs, "action": task.action, **{k: FieldSpec((), "float32", "state") for k in extras}}
        rows = {k: (rng.random((n, *f.shape)) * 200).astype(f.dtype) for k, f in fields.items()}
        store.append(rows, {"seed": i, "mask_odd": bool(i % 2), "pose": np.ones(3) * i} if meta else {})
    return EpisodeStore.open(path)


def check_same(a, b):
    assert (a.task, a.attrs) == (b.task, b.attrs)
    np.testing.assert_array_equal(a.episode_ends, b.episode_ends)
    assert sorted(a.keys) == sorted(b.keys)
    for key in a.keys:
        assert a.dtype(key) == b.dtype(key)
        np.testing.assert_array_equal(a.array(key)[:], b.array(key)[:])
    assert sorted(a.episode_meta_names) == sorted(b.episode_meta_names)
    for name in a.episode_meta_names:
        np.testing.assert_array_equal(a.episode_meta(name), b.episode_meta(name))


@settings(max_examples=6, deadline=None)
@given(stores(), st.sampled_from(["x.hdf5", "x.zarr.zip"]))
def test_there_and_back(tmp_path_factory, made, name):
    folder = tmp_path_factory.mktemp("s")
    ours = fill(folder / "ours", *made)
    convert(ours, folder / name, "robomimic" if name.endswith("hdf5") else "dp")
    there = open_episodes(folder / name)
    check_same(ours, there)
    convert(there, folder / "back", "deft")
    check_same(ours, EpisodeStore.open(folder / "back"))


def test_their_file_through_ours(tmp_path):
    rows = robomimic_file(tmp_path / "a.hdf5")
    convert(open_episodes(tmp_path / "a.hdf5"), tmp_path / "a.zarr", "deft")
    convert(open_episodes(tmp_path / "a.zarr"), tmp_path / "b.hdf5", "robomimic")
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert json.loads(file["data"].attrs["env_args"]) == ENV_ARGS
        assert file["data"].attrs["total"] == sum(LENGTHS)
        assert [n.decode() for n in file["mask/train"][()]] == ["demo_0", "demo_1"]
        demo = file["data/demo_1"]
        assert demo.attrs["num_samples"] == 12
        for key, theirs in (("object", "obs/object"), ("action", "actions"), ("reward", "rewards"), ("done", "dones")):
            np.testing.assert_array_equal(demo[theirs][()], rows[key][7:19])
        np.testing.assert_array_equal(demo["next_obs/object"][()], rows["object"][[*range(8, 19), 18]])


def test_what_robomimic_wants_is_derived(tmp_path):
    task = TaskSpec("t", {"s": FieldSpec((2,), "float32", "state")}, FieldSpec((1,), "float32", "action"))
    ours = fill(tmp_path / "ours", task, ["success"], [3, 1], False, 0)
    convert(ours, tmp_path / "x.hdf5", "robomimic")
    with h5py.File(tmp_path / "x.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_0/rewards"][()], ours.episode(0)["success"])
        assert file["data/demo_0/dones"][()].tolist() == [0, 0, 1]
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "t"
    assert set(open_episodes(tmp_path / "x.hdf5").keys) == {"s", "action", "success"}


READER = """
import sys
import torch
if not hasattr(torch.ops.torchvision, "nms"):  # a torchvision for another torch; robomimic's data sets need none of it
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import numpy as np
import robomimic.utils.obs_utils as utils
from robomimic.utils.dataset import SequenceDataset
specs = {"low_dim": ["object", "robot0_eef_pos"], "rgb": ["agentview_image"]}
utils.initialize_obs_utils_with_obs_specs({"obs": specs})
data = SequenceDataset(sys.argv[1], ("object", "agentview_image"), ("actions", "rewards", "dones"), seq_length=3,
                       frame_stack=2, filter_by_attribute="train")
item = data[9]
np.savez(sys.argv[2], n=len(data), actions=item["actions"], object=item["obs"]["object"],
         image=item["obs"]["agentview_image"], after=item["next_obs"]["object"])
"""


@pytest.mark.skipif(importlib.util.find_spec("robomimic") is None, reason="robomimic is not installed")
def test_robomimic_itself_reads_what_we_wrote(tmp_path):
    rows = robomimic_file(tmp_path / "a.hdf5")
    convert(open_episodes(tmp_path / "a.hdf5"), tmp_path / "a.zarr", "deft")
    convert(open_episodes(tmp_path / "a.zarr"), tmp_path / "b.hdf5", "robomimic")
    command = [sys.executable, "-c", READER, str(tmp_path / "b.hdf5"), str(tmp_path / "out.npz")]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got = np.load(tmp_path / "out.npz")
    assert got["n"] == 19
    # window 9: step 2 of demo_1, with one frame before it and two after
    np.testing.assert_array_equal(got["actions"], rows["action"][8:12])
    np.testing.assert_array_equal(got["object"], rows["object"][8:12])
    np.testing.assert_array_equal(got["after"], rows["object"][9:13])
    np.testing.assert_array_equal(got["image"], rows["agentview_image"][8:12])
