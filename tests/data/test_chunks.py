"""Windows against brute force, the same batches from memory and from file, and samplers that resume."""

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from data import cache
from data.chunks import ChunkDataset, ChunkSampler, executed_slice, split_episodes
from data.episodes import EpisodeStore
from data.errors import DataError
from data.spec import FieldSpec, TaskSpec


def ramp_store(path, lengths):
    """Observation and action both say which step of which episode they belong to."""
    task = TaskSpec("ramp", {"obs": FieldSpec((2,), "float32", "state")}, FieldSpec((2,), "float32", "action"))
    store = EpisodeStore.create(path, task)
    for e, n in enumerate(lengths):
        ramp = np.stack([np.full(n, e), np.arange(n)], 1).astype(np.float32)
        store.append({"obs": ramp, "action": ramp})
    return store


def brute_force(lengths, episodes, n_obs_steps, horizon):
    """(episode, observed steps, action steps, is_pad) of every window, by loops."""
    out = []
    for e in episodes:
        for t in range(lengths[e]):
            observed = [min(max(i, 0), lengths[e] - 1) for i in range(t - n_obs_steps + 1, t + 1)]
            wanted = range(t - n_obs_steps + 1, t - n_obs_steps + 1 + horizon)
            acted = [min(max(i, 0), lengths[e] - 1) for i in wanted]
            out.append((e, observed, acted, [not 0 <= i < lengths[e] for i in wanted]))
    return out


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_windows_against_brute_force(data, tmp_path_factory):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    n_obs_steps = data.draw(st.integers(1, 4))
    horizon = data.draw(st.integers(n_obs_steps, 12))
    episodes = data.draw(st.permutations(range(len(lengths))))[: data.draw(st.integers(1, len(lengths)))]
    tmp = tmp_path_factory.mktemp("w")
    dataset = ChunkDataset(
        ramp_store(tmp / "s", lengths),
        obs_keys=["obs"],
        n_obs_steps=n_obs_steps,
        horizon=horizon,
        episodes=None if episodes == list(range(len(lengths))) else np.array(episodes),
        memory_budget_bytes=data.draw(st.sampled_from([0, 1 << 20])),
        cache_dir=tmp / "cache",
    )
    subset = data.draw(st.permutations(episodes))[: data.draw(st.integers(1, len(episodes)))]
    for windows, chosen in ((dataset, episodes), (dataset.subset(np.array(subset)), subset)):
        expected = brute_force(lengths, chosen, n_obs_steps, horizon)
        assert len(windows) == len(expected) == sum(lengths[e] for e in chosen)
        order = torch.tensor(data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=30)), dtype=torch.int64)
        obs, action, is_pad = windows.batch(order)
        assert action.shape == (len(order), horizon, 2)
        for i, w in enumerate(order.tolist()):
            e, observed, acted, pad = expected[w]
            assert obs["obs"][i, :, 0].tolist() == [e] * n_obs_steps
            assert obs["obs"][i, :, 1].tolist() == observed
            assert action[i, :, 0].tolist() == [e] * horizon
            assert action[i, :, 1].tolist() == acted
            assert is_pad[i].tolist() == pad


@pytest.mark.parametrize(("n_obs_steps", "horizon", "n_action_steps"), [(2, 16, 8), (1, 4, 4), (3, 8, 6)])
def test_executed_slice_starts_at_the_newest_observation(tmp_path, n_obs_steps, horizon, n_action_steps):
    store = ramp_store(tmp_path / "s", [30])
    dataset = ChunkDataset(store, obs_keys=["obs"], n_obs_steps=n_obs_steps, horizon=horizon)
    batch = dataset.batch(torch.arange(30))
    executed = batch.action[:, executed_slice(n_obs_steps, n_action_steps), 1]
    now = batch.obs["obs"][:, -1, 1]
    assert executed.shape == (30, n_action_steps)
    assert torch.equal(executed, (now[:, None] + torch.arange(n_action_steps)).clamp(max=29))


@pytest.mark.parametrize("episodes", [None, np.array([3, 1, 2])])
def test_memory_and_file_give_the_same(store, tmp_path, episodes):
    kwargs = {"obs_keys": ["state", "image", "cloud"], "n_obs_steps": 2, "horizon": 5, "episodes": episodes}
    memory = ChunkDataset(store, **kwargs)
    file = ChunkDataset(store, **kwargs, memory_budget_bytes=0, cache_dir=tmp_path / "cache")
    mixed = ChunkDataset(store, **kwargs, memory_budget_bytes=1000, cache_dir=tmp_path / "cache")
    kinds = {k: type(r).__name__ for k, r in mixed._rows.items()}
    assert kinds == {"action": "MemoryRows", "state": "MemoryRows", "image": "FileRows", "cloud": "FileRows"}
    windows = torch.randperm(len(memory))
    batches = [d.batch(windows) for d in (memory, file, mixed)]
    for b in batches[1:]:
        for key, value in b.obs.items():
            assert torch.equal(value, batches[0].obs[key])
        assert torch.equal(b.action, batches[0].action)
        assert torch.equal(b.is_pad, batches[0].is_pad)
    assert {k: (v.dtype, tuple(v.shape[1:])) for k, v in batches[1].obs.items()} == {
        "state": (torch.float32, (2, 3)),
        "image": (torch.uint8, (2, 4, 5, 3)),
        "cloud": (torch.float32, (2, 6, 3)),  # stored as float64
    }
    assert batches[1].action.dtype == torch.float32
    assert batches[1].is_pad.dtype == torch.bool
    assert len(file.batch(windows[:0]).action) == 0


def test_cache_is_built_once_and_again_when_the_store_changes(store, episode, tmp_path, monkeypatch):
    built = []
    decode = cache._decode
    monkeypatch.setattr(cache, "_decode", lambda s, key, *a: (built.append(key), decode(s, key, *a)))

    def image(s):
        kwargs = {
            "obs_keys": ["image"],
            "n_obs_steps": 1,
            "horizon": 1,
            "memory_budget_bytes": 400,
        }
        return ChunkDataset(s, **kwargs, cache_dir=tmp_path / "c")

    image(store)
    old = image(EpisodeStore.open(store.path))
    assert built == ["image"]
    store.append(episode(6, 9), {"seed": 0})
    new = image(EpisodeStore.open(store.path))
    assert built == ["image", "image"]
    assert len(list((tmp_path / "c").rglob("*.rows"))) == 1
    last = torch.tensor([len(old) - 1])
    assert torch.equal(old.batch(last).obs["image"], new.batch(last).obs["image"])  # a reader keeps its file
    np.testing.assert_array_equal(
        new.batch(torch.tensor([len(new) - 1])).obs["image"][0, 0], episode(6, 9)["image"][-1]
    )


def test_cache_lies_beside_the_store(store):
    ChunkDataset(store, obs_keys=["image"], n_obs_steps=1, horizon=1, memory_budget_bytes=0)
    assert list(store.path.with_name("store.cache").rglob("*.rows"))


def test_cache_of_a_sparse_store_has_holes(tmp_path):
    group = zarr.open_group(str(tmp_path / "s"), mode="w", zarr_format=2)
    n = 4000
    group.create_array("data/img", shape=(n, 32, 32, 3), chunks=(10, 32, 32, 3), dtype="u1")[1000:1010] = 7
    group.create_array("data/action", shape=(n, 2), chunks=(n, 2), dtype="f4")[:] = 1
    group.create_array("meta/episode_ends", shape=(4,), chunks=(4,), dtype="i8")[:] = [1000, 2000, 3000, n]
    kwargs = {"obs_keys": ["img"], "n_obs_steps": 2, "horizon": 4, "memory_budget_bytes": 100_000}
    dataset = ChunkDataset(EpisodeStore.open(tmp_path / "s"), **kwargs, cache_dir=tmp_path / "c")
    (file,) = (tmp_path / "c").rglob("*.rows")
    assert file.stat().st_size == n * 32 * 32 * 3
    assert file.stat().st_blocks * 512 < 1 << 20
    img = dataset.batch(torch.tensor([999, 1000, 1009, 1010])).obs["img"]
    assert img.amax((2, 3, 4)).tolist() == [[0, 0], [7, 7], [7, 7], [7, 0]]


def test_float16_and_wide_integers_come_out_usable(tmp_path):
    obs = {"half": FieldSpec((2,), "float16", "state"), "mm": FieldSpec((2, 2), "uint16", "depth")}
    store = EpisodeStore.create(tmp_path / "s", TaskSpec("t", obs, FieldSpec((1,), "float64", "action")))
    half, mm = np.array([[0.5, 1]], np.float16), np.array([[[0, 65535], [7, 8]]], np.uint16)
    store.append({"half": half, "mm": mm, "action": np.array([[0.25]])})
    for budget in (0, 1 << 20):
        kwargs = {"n_obs_steps": 1, "horizon": 1, "memory_budget_bytes": budget, "cache_dir": tmp_path / "c"}
        batch = ChunkDataset(store, obs_keys=["half", "mm"], **kwargs).batch(torch.tensor([0]))
        assert batch.obs["half"].dtype == batch.action.dtype == torch.float32
        assert batch.obs["half"].flatten().tolist() == [0.5, 1]
        assert batch.obs["mm"].flatten().tolist() == [0, 65535, 7, 8]


def test_subset_outside(store):
    dataset = ChunkDataset(store, obs_keys=["state"], n_obs_steps=1, horizon=1, episodes=np.array([0, 2]))
    assert len(dataset.subset(np.array([2]))) == 12
    with pytest.raises(DataError, match=r"episodes \[1\] are not in this data set"):
        dataset.subset(np.array([1, 2]))


# --------------------------------------------------------------------------------------------------- split, sampler


@given(n=st.integers(1, 60), fraction=st.floats(0, 0.99), seed=st.integers(0, 9))
def test_split(n, fraction, seed):
    train, val = split_episodes(n, fraction, seed)
    assert sorted([*train, *val]) == list(range(n))
    assert len(train) >= 1
    assert len(val) >= (fraction > 0 and n > 1)
    assert abs(len(val) - n * fraction) <= 1
    again = split_episodes(n, fraction, seed)
    assert np.array_equal(train, again[0])


@settings(deadline=None)
@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 50),
    seed=st.integers(0, 99),
    skip=st.integers(0, 20),
    world=st.integers(1, 4),
)
def test_sampler(n, batch, seed, skip, world):
    sampler = ChunkSampler(n, batch, seed)
    drawn = torch.stack([next(sampler) for _ in range(30)])
    assert drawn.dtype == torch.int64
    assert drawn.shape == (30, batch)
    flat = drawn.flatten()
    for epoch in flat[: len(flat) // n * n].view(-1, n):
        assert sorted(epoch.tolist()) == list(range(n))

    interrupted, resumed = ChunkSampler(n, batch, seed), ChunkSampler(n, batch, seed + 1)
    for _ in range(skip):
        next(interrupted)
    resumed.load_state_dict(interrupted.state_dict())
    assert torch.equal(torch.stack([next(resumed) for _ in range(30 - skip)]), drawn[skip:])

    big = ChunkSampler(n, world * batch, seed)
    ranks = [ChunkSampler(n, batch, seed, rank=r, world_size=world) for r in range(world)]
    for _ in range(5):
        assert torch.equal(torch.cat([next(r) for r in ranks]), next(big))
    assert len({r.state_dict()["drawn"] for r in ranks}) == 1


def test_sampler_orders_differ():
    def first(seed, epoch):
        sampler = ChunkSampler(500, 500, seed)
        return [next(sampler) for _ in range(epoch + 1)][epoch]

    assert not torch.equal(first(0, 0), first(1, 0))
    assert not torch.equal(first(0, 0), first(0, 1))


def test_sampler_refuses():
    with pytest.raises(DataError, match="no windows"):
        ChunkSampler(0, 4, 0)
    state = ChunkSampler(10, 4, 0).state_dict()
    with pytest.raises(DataError, match="from 10 windows, but the data set now has 11"):
        ChunkSampler(11, 4, 0).load_state_dict(state)
