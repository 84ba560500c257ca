"""Episode stores: what goes in comes out, whoever else is reading or writing, and whoever made the store."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.episodes import EpisodeStore
from data.errors import DataError
from data.spec import FieldSpec, TaskSpec


def same(a, b):
    assert set(a) == set(b)
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip(data, tmp_path_factory, monkeypatch):
    chunk_rows = data.draw(st.integers(1, 6))
    monkeypatch.setattr("data.zarr_write.rows_per_chunk", lambda row_bytes: chunk_rows)
    dtypes = st.sampled_from(["float32", "float64", "float16", "uint8", "int64", "bool"])
    shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
    obs = {
        k: FieldSpec(data.draw(shapes), data.draw(dtypes), "state")
        for k in data.draw(st.sets(st.sampled_from("abcd"), min_size=1))
    }
    task = TaskSpec(
        "t", obs, FieldSpec((data.draw(st.integers(1, 3)),), "float32", "action"), env_args={"x": [1, {"y": None}]}
    )
    lengths = data.draw(st.lists(st.integers(1, 11), max_size=6))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    path = tmp_path_factory.mktemp("store") / "s"
    store = EpisodeStore.create(path, task, {"note": "hello"})
    episodes = []
    for i, n in enumerate(lengths):
        episode = {k: rng.normal(size=(n, *f.shape)).astype(f.dtype) for k, f in {**obs, "action": task.action}.items()}
        episode["success"] = rng.random(n) < 0.5
        assert store.append(episode, {"seed": i, "gain": 0.5 * i}) == i
        episodes.append(episode)
        if data.draw(st.booleans()):
            store = EpisodeStore.open(path, mode="a")
    for reader in (store, EpisodeStore.open(path)):
        assert reader.task == task
        assert reader.attrs == {"schema_version": 1, "note": "hello"}
        assert reader.n_episodes == len(lengths)
        assert reader.n_steps == sum(lengths)
        assert reader.episode_ends.dtype == np.int64
        assert reader.episode_ends.tolist() == np.cumsum(lengths).tolist()
        for i, episode in enumerate(episodes):
            same(reader.episode(i), episode)
        if episodes:
            assert reader.episode_meta("seed").tolist() == list(range(len(lengths)))
            assert reader.episode_meta("gain").dtype == np.float64
            whole = np.concatenate([e["action"] for e in episodes])
            np.testing.assert_array_equal(reader.array("action")[:], whole)
            rows = rng.integers(-len(whole), len(whole), 5)
            np.testing.assert_array_equal(reader.array("action")[rows], whole[rows])
            np.testing.assert_array_equal(reader.array("action")[-1], whole[-1])


def test_plain_zarr_reads_it(store, episode):
    group = zarr.open_group(str(store.path), mode="r")
    assert group["data/image"].metadata.zarr_format == 2
    assert group["meta/episode_ends"][:].tolist() == [7, 11, 23, 28, 37]
    np.testing.assert_array_equal(group["data/state"][7:11], episode(4, 1)["state"])
    assert group.attrs["task"]["name"] == "test/reach"


def test_frames_are_stored_once(store):
    assert store.array("image").shape == (37, 4, 5, 3)
    assert store.shape("image") == (4, 5, 3)
    assert store.dtype("image") == np.uint8


def test_importing_data_needs_no_torch():
    code = "import sys, data, data.episodes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Crash(BaseException):
    pass


def test_crash_at_every_write(tmp_path, task, episode, small_chunks, monkeypatch):
    """Stop the writer before its k-th file is replaced, for every k: the episode is there, or it is not."""
    base = tmp_path / "base"
    store = EpisodeStore.create(base, task)
    store.append(episode(4, 0), {"seed": 0})
    replace, outcomes = os.replace, []
    for k in range(1000):
        path = tmp_path / "crash"
        shutil.copytree(base, path)
        left = k

        def stop(a, b):
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash
            replace(a, b)

        writer = EpisodeStore.open(path, "a")
        monkeypatch.setattr(os, "replace", stop)
        with contextlib.suppress(Crash):
            writer.append(episode(7, 1), {"seed": 1})
        monkeypatch.setattr(os, "replace", replace)
        survived = EpisodeStore.open(path).n_episodes
        outcomes.append(survived)
        writer = EpisodeStore.open(path, "a")
        writer.append(episode(5, 2), {"seed": 2})
        reader = EpisodeStore.open(path)
        same(reader.episode(0), episode(4, 0))
        same(reader.episode(-1), episode(5, 2))
        assert reader.episode_meta("seed").tolist() == ([0, 1, 2] if survived == 2 else [0, 2])
        if survived == 2:
            same(reader.episode(1), episode(7, 1))
        shutil.rmtree(path)
        if left >= 0:
            break
    assert outcomes == [1] * (len(outcomes) - 1) + [2]
    assert len(outcomes) > 15


def test_crash_in_the_first_episode_leaves_its_extras_undecided(tmp_path, task, episode, monkeypatch):
    store = EpisodeStore.create(tmp_path / "s", task)
    first = episode(4, 0)
    with monkeypatch.context() as m:
        m.setattr("data.zarr_write.GrowingArray.extend", lambda *_: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            store.append({**first, "extra": np.zeros(4)}, {"a": 1})
    store = EpisodeStore.open(tmp_path / "s", "a")
    store.append(first, {"b": 2})
    assert "extra" not in store.keys
    assert store.episode_meta_names == ["b"]


def test_a_crash_in_create_leaves_nothing(tmp_path, task, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr("os.rename", lambda *_: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            EpisodeStore.create(tmp_path / "s", task)
    assert list(tmp_path.iterdir()) == []


def test_readers_see_finished_episodes_only(tmp_path, task, episode, small_chunks):
    path = tmp_path / "s"
    writer = EpisodeStore.create(path, task)
    before = EpisodeStore.open(path)
    episodes = [episode(3 + i % 7, i) for i in range(30)]

    def write():
        for i, e in enumerate(episodes):
            writer.append(e, {"seed": i})

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while True:
        running = thread.is_alive()
        reader = EpisodeStore.open(path)
        n = reader.n_episodes
        seen.add(n)
        if n:
            same(reader.episode(n - 1), episodes[n - 1])
            assert reader.episode_meta("seed").tolist() == list(range(n))
        if not running:
            break
    thread.join()
    assert max(seen) == 30
    assert before.n_episodes == 0
    before.refresh()
    assert before.n_episodes == 30


def test_two_writers_take_turns(tmp_path, task, episode, small_chunks):
    a = EpisodeStore.create(tmp_path / "s", task)
    b = EpisodeStore.open(tmp_path / "s", "a")
    lengths = {}

    def write(store, seeds):
        for seed in seeds:
            lengths[seed] = 2 + seed % 5
            store.append(episode(lengths[seed], seed), {"seed": seed})

    threads = [
        threading.Thread(target=write, args=(a, range(10))),
        threading.Thread(target=write, args=(b, range(10, 20))),
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    reader = EpisodeStore.open(tmp_path / "s")
    seeds = reader.episode_meta("seed").tolist()
    assert sorted(seeds) == list(range(20))
    for i, seed in enumerate(seeds):
        same(reader.episode(i), episode(lengths[seed], seed))


# ------------------------------------------------------------------------------------ Diffusion Policy's own stores


@pytest.fixture
def published(tmp_path):
    """A store as Diffusion Policy's ReplayBuffer writes it: zarr v2, Blosc, no attributes of ours."""
    rng = np.random.default_rng(0)
    n, ends = 60, np.array([20, 25, 60])
    arrays = {
        "img": rng.integers(0, 255, (n, 8, 8, 3)).astype(np.float32),
        "state": rng.normal(size=(n, 5)).astype(np.float32),
        "keypoint": rng.normal(size=(n, 9, 2)),
        "action": rng.normal(size=(n, 2)).astype(np.float32),
    }
    path = tmp_path / "pusht_cchi_v7_replay.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for key, value in arrays.items():
        blosc = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=2)
        chunks = (7, *(value.shape[1:]))
        group.create_array(f"data/{key}", shape=value.shape, chunks=chunks, dtype=value.dtype, compressors=blosc)[:] = (
            value
        )
    group.create_array("meta/episode_ends", shape=ends.shape, chunks=ends.shape, dtype="<i8", compressors=None)[:] = (
        ends
    )
    return path, arrays, ends


def zip_of(path, where, prefix=""):
    with zipfile.ZipFile(where, "w", zipfile.ZIP_STORED) as z:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                z.write(file, prefix + file.relative_to(path).as_posix())
    return where


@pytest.mark.parametrize("layout", ["directory", "zip", "zip with folders", "inside a zip", "consolidated"])
def test_published_stores(published, tmp_path, layout):
    path, arrays, ends = published
    if layout == "zip":
        path = zip_of(path, tmp_path / "pusht.zarr.zip")
    elif layout == "zip with folders":
        path = zip_of(path, tmp_path / "pusht.zip", "pusht/replay.zarr/")
    elif layout == "inside a zip":
        archive = zip_of(path, tmp_path / "both.zip", "a/one.zarr/")
        with zipfile.ZipFile(archive, "a") as z:
            for file in path.rglob("*"):
                if file.is_file():
                    z.write(file, f"a/two.zarr/{file.relative_to(path)}")
        with pytest.raises(DataError, match=r"both.zip holds 2 stores; name one of them: .*a/one.zarr"):
            EpisodeStore.open(archive)
        path = archive / "a" / "two.zarr"
    elif layout == "consolidated":
        zarr.consolidate_metadata(str(path), zarr_format=2)
    store = EpisodeStore.open(path)
    assert store.task is None
    assert store.episode_ends.tolist() == ends.tolist()
    assert store.keys == ["action", "img", "keypoint", "state"]
    same(store.episode(1), {k: v[20:25] for k, v in arrays.items()})
    assert store.fields["action"] == FieldSpec((2,), "float32", "action")
    assert store.fields["state"].kind == "state"
    with pytest.raises(DataError, match="not written by Deft"):
        EpisodeStore.open(path, "a")
