"""Small tasks, episodes and stores."""

import shutil

import numpy as np
import pytest

from data.episodes import EpisodeStore
from data.spec import FieldSpec, TaskSpec

TASK = TaskSpec(
    name="test/reach",
    obs={
        "state": FieldSpec((3,), "float32", "state"),
        "image": FieldSpec((4, 5, 3), "uint8", "rgb"),
        "cloud": FieldSpec((6, 3), "float64", "pointcloud"),
    },
    action=FieldSpec((2,), "float32", "action"),
    control_hz=80.0,
)


def make_episode(n_steps: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "state": rng.normal(size=(n_steps, 3)).astype(np.float32),
        "image": rng.integers(0, 256, (n_steps, 4, 5, 3)).astype(np.uint8),
        "cloud": rng.normal(size=(n_steps, 6, 3)),
        "action": rng.uniform(-1, 1, (n_steps, 2)).astype(np.float32),
        "reward": rng.normal(size=n_steps).astype(np.float32),
    }


@pytest.fixture
def task():
    return TASK


@pytest.fixture
def episode():
    """(n_steps, seed) -> episode of ``task``."""
    return make_episode


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 3 rows, so that small episodes cross their borders."""
    monkeypatch.setattr("data.zarr_write.rows_per_chunk", lambda row_bytes: 3)


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setattr("data.zarr_write.rows_per_chunk", lambda row_bytes: 3)
        store = EpisodeStore.create(tmp_path_factory.mktemp("stored") / "store", TASK)
        for i, n_steps in enumerate((7, 4, 12, 5, 9)):
            store.append(make_episode(n_steps, i), {"seed": 100 + i})
    return store.path


@pytest.fixture
def store(tmp_path, stored, small_chunks):
    """Five episodes of 4 to 12 steps, open for appending."""
    shutil.copytree(stored, tmp_path / "store")
    return EpisodeStore.open(tmp_path / "store", "a")
