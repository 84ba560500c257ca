"""Everything that can be wrong with data is refused in one paragraph that says where and what was expected."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
import zarr

from data.chunks import ChunkDataset
from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError
from data.normaliser import Normaliser


def refused(match, call, *args, error=DataError, **kwargs):
    with pytest.raises(error, match=match) as info:
        call(*args, **kwargs)
    message = str(info.value)
    assert "\n" not in message
    assert 30 < len(message) < 600


def nan(a, step):
    a = a.copy()
    a.reshape(len(a), -1)[step, -1] = np.nan
    return a


BAD_EPISODES = {
    "missing key": (lambda e: e.pop("cloud"), "Episode 5 for .*store: key 'cloud' is missing.*expected"),
    "missing extra": (lambda e: e.pop("reward"), "key 'reward' is missing"),
    "misspelt key": (lambda e: e.update(imag=e["state"]), "key 'imag' was not expected. Did you mean 'image'"),
    "shape": (lambda e: e.update(state=e["state"][:, :2]), r"'state' has shape \(6, 2\), expected \(T, 3\)"),
    "extra's shape": (lambda e: e.update(reward=e["reward"][:, None]), r"'reward' has shape \(6, 1\), expected \(T\)"),
    "scalar": (lambda e: e.update(reward=np.array(1.0)), "'reward' has shape"),
    "dtype": (lambda e: e.update(state=e["state"].astype("f8")), "'state' has dtype float64, expected float32"),
    "extra's dtype": (lambda e: e.update(reward=e["reward"].astype("f8")), "'reward' has dtype float64"),
    "objects": (
        lambda e: e.update(reward=np.array([None] * 6)),
        "'reward' must be a numpy array of numbers, got object",
    ),
    "length": (lambda e: e.update(action=e["action"][:5]), "same number of steps.*'action': 5"),
    "no steps": (lambda e: e.update({k: v[:0] for k, v in e.items()}), "with T >= 1"),
    "NaN": (lambda e: e.update(cloud=nan(e["cloud"], 4)), "'cloud' holds a value that is not finite .* at step 4"),
    "infinite": (lambda e: e["action"].__setitem__((2, 1), np.inf), "'action' holds .* at step 2"),
}


@pytest.mark.parametrize("case", BAD_EPISODES)
def test_append_refuses(store, episode, case):
    change, match = BAD_EPISODES[case]
    bad = episode(6, 0)
    change(bad)
    refused(match, store.append, bad, {"seed": 1})
    store.append(episode(6, 5), {"seed": 1})  # and nothing was left behind
    again = EpisodeStore.open(store.path).episode(5)
    np.testing.assert_array_equal(again["image"], episode(6, 5)["image"])


def test_append_refuses_meta(store, episode):
    e = episode(6, 0)
    refused(r"meta has \[\], expected \['seed'\]", store.append, e)
    refused("meta has .*'sed'", store.append, e, {"sed": 1})
    refused("meta 'seed' must be a number", store.append, e, {"seed": "one"})
    refused("meta 'seed' is .* expected", store.append, e, {"seed": [1, 2]})
    refused("meta 'seed' is .* expected", store.append, e, {"seed": 1.5})
    refused("open for reading", EpisodeStore.open(store.path).append, e, {"seed": 1})


def test_create_refuses(store, task, tmp_path):
    refused("exists already", EpisodeStore.create, store.path, task)
    refused("'task' cannot be the name", EpisodeStore.create, tmp_path / "x", task, {"task": 1})
    (tmp_path / "empty").mkdir()
    assert EpisodeStore.create(tmp_path / "empty", task).n_episodes == 0


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def write_ends(path, ends):
    shutil.rmtree(path / "meta/episode_ends")
    group = zarr.open_group(str(path), zarr_format=2, mode="a")
    group.create_array("meta/episode_ends", shape=(len(ends),), chunks=(len(ends),), dtype="i8")[:] = ends


BAD_STORES = {
    "no ends": (lambda p: shutil.rmtree(p / "meta/episode_ends"), "no array meta/episode_ends.*half written"),
    "no meta": (lambda p: shutil.rmtree(p / "meta"), "no array meta/episode_ends"),
    "no data": (lambda p: shutil.rmtree(p / "data"), "no arrays under data/"),
    "not zarr": (lambda p: (p / ".zgroup").unlink(), "not a zarr store.*Expected a zarr group"),
    "ends fall": (lambda p: write_ends(p, [7, 5, 30]), "must increase from above 0, but is 5 at episode 1 after 7"),
    "ends from 0": (lambda p: write_ends(p, [0, 5, 30]), "must increase from above 0, but is 0 at episode 0"),
    "ends too far": (lambda p: write_ends(p, [7, 40]), "data/action has 37 rows, but meta/episode_ends goes up to 40"),
    "newer schema": (lambda p: edit_json(p / ".zattrs", lambda d: d.update(schema_version=9)), "schema version 9"),
    "no schema": (lambda p: edit_json(p / ".zattrs", lambda d: d.pop("schema_version")), "schema version None"),
    "broken task": (lambda p: edit_json(p / ".zattrs", lambda d: d["task"].pop("action")), "not a task's metadata"),
    "missing array": (lambda p: shutil.rmtree(p / "data/cloud"), "no data/cloud, which its task 'test/reach' needs"),
    "other shape": (
        lambda p: edit_json(p / ".zattrs", lambda d: d["task"]["obs"]["state"].update(shape=[4])),
        r"data/state is \(T, 3\) float32, but its task 'test/reach' says \(T, 4\) float32",
    ),
    "broken metadata": (lambda p: (p / "data/cloud/.zarray").write_text("{"), "metadata of data .* cannot be read"),
    "cut off attributes": (lambda p: (p / ".zattrs").write_text('{"task": {'), "not a zarr store that can be read"),
    "lost chunk of ends": (lambda p: (p / "meta/episode_ends/0").unlink(), "chunk '0' is missing"),
    "cut off chunk of ends": (lambda p: cut(p / "meta/episode_ends/0"), "meta/episode_ends cannot be decoded"),
}


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("case", BAD_STORES)
def test_open_refuses(store, case):
    damage, match = BAD_STORES[case]
    damage(store.path)
    refused(match, EpisodeStore.open, store.path)
    refused(match, EpisodeStore.open, store.path, "a")


def test_open_refuses_what_is_no_store(tmp_path):
    refused("No data set at", EpisodeStore.open, tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    refused("not a zarr store", EpisodeStore.open, tmp_path / "folder")
    (tmp_path / "a.zarr.zip").write_bytes(b"PK\x03\x04 cut off")
    refused("neither a zarr directory nor a zip file", EpisodeStore.open, tmp_path / "a.zarr.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as z:
        z.writestr("readme", "hello")
    refused("not a zarr store", EpisodeStore.open, tmp_path / "b.zip")


@pytest.mark.parametrize("damage", ["lost", "cut off", "empty", "garbage"])
@pytest.mark.parametrize("budget", [1 << 30, 0])
def test_damaged_chunk(store, tmp_path, damage, budget):
    chunk = store.path / "data/state/4.0"  # rows 12 to 14, in episode 2
    if damage == "lost":
        chunk.unlink()
    elif damage == "cut off":
        cut(chunk)
    else:
        chunk.write_bytes(b"" if damage == "empty" else b"\xff" * chunk.stat().st_size)
    match = (
        "chunk '4.0' is missing" if damage == "lost" else r"data/state cannot be decoded in rows 12 to 14 \(chunk '4"
    )
    reader = EpisodeStore.open(store.path)  # which still opens: nothing is decoded
    assert len(reader.episode(1)["state"]) == 4
    refused(match, reader.episode, 2)
    refused(match, Normaliser.fit, reader, {"state": "minmax"})
    kwargs = {"obs_keys": ["state"], "n_obs_steps": 1, "horizon": 2, "memory_budget_bytes": budget}
    refused(match, ChunkDataset, reader, **kwargs, cache_dir=tmp_path / "cache")
    refused(match, ChunkDataset, reader, **kwargs, cache_dir=tmp_path / "cache")  # no half-built file


def test_append_after_a_damaged_tail(store, episode):
    cut(sorted((store.path / "data/state").glob("12.0"))[0])
    refused("12.0 cannot be decoded, so nothing can be appended", store.append, episode(4, 0), {"seed": 0})


def nan_store(store):
    """NaN that got past ``append``: step 3 of episode 2."""
    array = zarr.open_group(str(store.path), mode="a")["data/cloud"]
    array[14, 2, 1] = np.nan
    return EpisodeStore.open(store.path)


@pytest.mark.parametrize("budget", [1 << 30, 0])
def test_nan_in_a_store(store, tmp_path, budget):
    bad = nan_store(store)
    match = "data/cloud holds a value that is not finite .* in episode 2 at step 3"
    refused(match, Normaliser.fit, bad, {"cloud": "meanstd"})
    kwargs = {"obs_keys": ["cloud"], "n_obs_steps": 1, "horizon": 2, "memory_budget_bytes": budget}
    refused(match, ChunkDataset, bad, **kwargs, cache_dir=tmp_path / "c")
    Normaliser.fit(bad, {"cloud": "meanstd"}, episodes=np.array([0, 1, 3, 4]))


def test_dataset_refuses(store, tmp_path):
    ok = {"obs_keys": ["state"], "n_obs_steps": 2, "horizon": 4}
    refused("no data/stat. Did you mean 'state'", ChunkDataset, store, **ok | {"obs_keys": ["stat"]})
    refused("no data/actoin. Did you mean 'action'", ChunkDataset, store, **ok, action_key="actoin")
    refused(r"data/image has steps of \(4, 5, 3\)", ChunkDataset, store, **ok, action_key="image")
    refused("there is no episode 5", ChunkDataset, store, **ok, episodes=np.array([1, 5]))
    refused("more than once", ChunkDataset, store, **ok, episodes=np.array([1, 1]))
    refused("horizon=4", ChunkDataset, store, **ok | {"n_obs_steps": 5}, error=ConfigError)
    refused("No observation keys", ChunkDataset, store, **ok | {"obs_keys": []}, error=ConfigError)
    file = tmp_path / "file"
    file.write_text("")
    refused("cannot be written to .*cache_dir", ChunkDataset, store, **ok, memory_budget_bytes=0, cache_dir=file)
    with pytest.raises(IndexError):
        ChunkDataset(store, **ok).batch(torch.tensor([37]))
    refused("no episode 9", store.episode, 9)
    refused("no meta/episode_sed. Did you mean 'seed'", store.episode_meta, "sed")


def test_normaliser_refuses(store):
    normaliser = Normaliser.fit(store, {"state": "minmax", "image": "identity"})
    refused("does not know the key 'stat'. Did you mean 'state'", normaliser.normalise, "stat", torch.zeros(1, 3))
    refused("does not know the key 'action'", normaliser.unnormalise, "action", torch.zeros(1, 2))
    refused("no data/stat", Normaliser.fit, store, {"stat": "minmax"})
    refused("Unknown normalisation 'minmx' .*'minmax'", Normaliser.fit, store, {"state": "minmx"}, error=ConfigError)
    refused("no data to normalise", Normaliser.fit, store, {"state": "minmax"}, episodes=np.empty(0, np.int64))
    state = normaliser.state_dict()
    state.pop("state/scale")
    refused("no 'state/scale'", Normaliser.from_state_dict, state, normaliser.modes)
