"""Statistics against numpy, maps that invert, and a state that is all there is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chunks import ChunkDataset
from data.errors import ConfigError, DataError
from data.normaliser import STATISTICS, Normaliser
from data.zarr_read import LazyArray

MODES = {"state": "minmax", "cloud": "meanstd", "image": "identity", "action": "minmax", "reward": "meanstd"}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of one chunk, so that the one pass has several."""
    blocks = LazyArray.blocks
    monkeypatch.setattr(LazyArray, "blocks", lambda self, a, b: blocks(self, a, b, 1))


@pytest.mark.parametrize("episodes", [None, np.array([4, 0, 2])])
def test_statistics_are_numpys(store, small_blocks, episodes):
    normaliser = Normaliser.fit(store, MODES, episodes)
    chosen = range(5) if episodes is None else episodes
    for key in ("state", "cloud", "action", "reward"):
        data = np.concatenate([store.episode(int(i))[key] for i in chosen]).astype(np.float64)
        flat = data.reshape(-1, data.shape[-1] if data.ndim > 1 else 1)
        expected = {"min": flat.min(0), "max": flat.max(0), "mean": flat.mean(0), "std": flat.std(0)}
        for name in STATISTICS:
            np.testing.assert_allclose(normaliser.statistic(key, name), expected[name], rtol=1e-6, atol=1e-7)
    windows = ChunkDataset(store, obs_keys=["state"], n_obs_steps=1, horizon=1, episodes=episodes)
    for name, value in Normaliser.fit(windows, MODES).state_dict().items():
        assert torch.equal(value, normaliser.state_dict()[name])


def test_ranges(store):
    normaliser = Normaliser.fit(store, MODES)
    rows = {k: torch.from_numpy(store.array(k)[:]).float() for k in ("state", "cloud")}
    state = normaliser.normalise("state", rows["state"])
    torch.testing.assert_close(state.amin(0), -torch.ones(3))
    torch.testing.assert_close(state.amax(0), torch.ones(3))
    cloud = normaliser.normalise("cloud", rows["cloud"]).reshape(-1, 3)
    torch.testing.assert_close(cloud.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(cloud.std(0, unbiased=False), torch.ones(3))
    image = torch.from_numpy(store.array("image")[:])
    assert torch.equal(normaliser.normalise("image", image), image)


@settings(deadline=None)
@given(
    low=st.floats(-1e4, 1e4, width=32),
    width=st.one_of(st.just(0.0), st.floats(0, 1e-5), st.floats(1e-3, 1e4)),
    mode=st.sampled_from(["minmax", "meanstd"]),
)
def test_inverse(low, width, mode):
    low, high = np.float32(low), np.float32(low + width)
    values = {"min": low, "max": high, "mean": low / 2 + high / 2, "std": width / 4}
    statistics = {name: torch.tensor([float(v)]) for name, v in values.items()}
    normaliser = Normaliser({"x": mode}, {"x": statistics})
    x = torch.linspace(float(low), float(high), 7)[:, None]
    y = normaliser.normalise("x", x)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(normaliser.unnormalise("x", y), x, rtol=0, atol=2e-7 * max(abs(low), abs(high), 1))
    if high == low:
        assert (y == 0).all()
        assert torch.equal(normaliser.unnormalise("x", y), x)  # exactly
    elif mode == "minmax":
        assert y.abs().max() < 1.2  # a range of a few float32 steps has its ends rounded


def test_state_and_modes_are_all(store):
    normaliser = Normaliser.fit(store, MODES)
    state = {f"policy.normaliser.{k}": v for k, v in normaliser.state_dict().items()}
    again = Normaliser.from_state_dict(state, normaliser.modes, prefix="policy.normaliser.")
    assert list(again.state_dict()) == list(normaliser.state_dict())
    x = torch.randn(4, 2, 3)
    assert torch.equal(again.normalise("state", x), normaliser.normalise("state", x))
    again.load_state_dict(normaliser.state_dict())
    assert not list(normaliser.parameters())
    assert sorted(n for n in normaliser.state_dict() if n.startswith("state/")) == [
        f"state/{n}" for n in ("centre", "max", "mean", "min", "scale", "std")
    ]


def test_keys_with_dots_keep_apart():
    statistics = {n: torch.ones(1) for n in STATISTICS}
    normaliser = Normaliser({"a.b": "minmax", "a%2Eb": "minmax"}, {"a.b": statistics, "a%2Eb": statistics})
    assert len(normaliser.state_dict()) == 12
    assert normaliser.normalise("a.b", torch.ones(1, 1)).item() == 0


def test_shrunk_dimensions_lie_closer_together_and_come_back(store):
    normaliser, plain = (Normaliser.fit(store, {"action": "minmax"}) for _ in range(2))
    normaliser.shrink("action", [-1], 5.0)
    x = torch.from_numpy(store.array("action")[0:20].copy())
    small, full = normaliser.normalise("action", x), plain.normalise("action", x)
    torch.testing.assert_close(small[:, -1] * 5, full[:, -1])
    assert torch.equal(small[:, :-1], full[:, :-1])
    torch.testing.assert_close(normaliser.unnormalise("action", small), x)
    for dims, factor in [([9], 2.0), ([0], 0.5)]:
        with pytest.raises(ConfigError, match="cannot be shrunk"):
            normaliser.shrink("action", dims, factor)


def test_an_action_that_never_varied_stays_still(tmp_path):
    """A joint that demonstrations held must not tremble with the network's errors."""
    modes = {"action": "minmax", "state": "minmax"}
    low, high = torch.tensor([1.5, -1.0]), torch.tensor([1.5 + 1e-5, 1.0])
    numbers = {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4}
    normaliser = Normaliser(modes, {"action": numbers, "state": numbers})
    out = normaliser.unnormalise("action", torch.tensor([[0.7, 0.7], [-1.0, -1.0]]))
    assert (out[:, 0] - 1.5).abs().max() < 1.01e-4
    torch.testing.assert_close(out[:, 1], torch.tensor([0.7, -1.0]))
    torch.testing.assert_close(normaliser.normalise("action", low), torch.tensor([0.0, -1.0]))
    torch.testing.assert_close(normaliser.normalise("state", torch.tensor([2.5, 0.5])), torch.tensor([1.0, 0.5]))


@settings(deadline=None)
@given(
    scale=st.lists(st.floats(0.01, 100).flatmap(lambda x: st.sampled_from([x, -x])), min_size=3, max_size=3),
    offset=st.lists(st.floats(-10, 10), min_size=3, max_size=3),
    mode=st.sampled_from(["minmax", "meanstd"]),
)
def test_other_units_change_nothing_that_is_normalised(scale, offset, mode):
    """The last dimension never varied; statistics are those of the changed data."""
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 5.0, 0.0] + [0.0, 2.0, 3.0])
    by, plus = torch.tensor(scale).double(), torch.tensor(offset).double()

    def statistics(x):
        return {"min": x.amin(0), "max": x.amax(0), "mean": x.mean(0), "std": x.std(0, correction=0)}

    normaliser = Normaliser({"action": mode}, {"action": statistics(data)})
    before = normaliser.normalise("action", data[:5].float())
    normaliser.change_units("action", by.numpy(), plus.numpy())
    changed = by * data + plus
    size = changed.abs().amax(0) / (by.abs() * torch.tensor([1.0, 5.0, 1e-4])) + 1  # float32 beside the scale
    after = normaliser.normalise("action", changed[:5].float())
    assert torch.all((after - before).abs() <= 1e-6 * size)
    back = normaliser.unnormalise("action", before).double()
    assert torch.all((back - changed[:5]).abs() <= 1e-5 * changed.abs().amax(0) + 1e-6)
    for name, value in statistics(changed).items():
        torch.testing.assert_close(normaliser.statistic("action", name).double(), value, rtol=1e-4, atol=1e-4)


def test_units_of_another_size_are_refused():
    one = torch.ones(2)
    normaliser = Normaliser({"a": "minmax"}, {"a": {"min": -one, "max": one, "mean": 0 * one, "std": one}})
    for scale in (np.ones(3), np.array([1.0, 0.0])):
        with pytest.raises(DataError, match="'a' has 2 dimensions"):
            normaliser.change_units("a", scale, np.zeros(2))
