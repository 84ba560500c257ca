"""A writer under ``kill -9`` at random moments loses the episode it was appending and nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from data.episodes import EpisodeStore
from data.spec import FieldSpec, TaskSpec

SERVER = Path(__file__).with_name("kill_server.py")
N_KILLS = 60


def test_kill_9(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("kill_server", SERVER)
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    monkeypatch.setattr("data.zarr_write.rows_per_chunk", lambda row_bytes: 10)
    obs = {"state": FieldSpec((8,), "float32", "state"), "image": FieldSpec((16, 16, 3), "uint8", "rgb")}
    path = tmp_path / "store"
    EpisodeStore.create(path, TaskSpec("kill", obs, FieldSpec((3,), "float32", "action")))
    rng = np.random.default_rng()
    kills, finished, cut_short = 0, 0, 0
    with subprocess.Popen(
        [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killer:
        # At least so many kills; more where a busy machine lets few writers get anywhere.
        while kills < N_KILLS or finished < 10 or cut_short < 3:
            # One in four may die while it still opens (and repairs) the store.
            longest = 60 if finished > kills // 4 else 300
            killer.stdin.write(f"{path} {rng.uniform(0, longest):.3f} {int(kills % 4 == 0)}\n")
            killer.stdin.flush()
            announced, killed = killer.stdout.readline().split()
            assert killed == "True", "the writer failed by itself"
            store = EpisodeStore.open(path)
            at_least = max(finished, int(announced) + 1)
            assert at_least <= store.n_episodes <= at_least + 1, (
                "an announced episode is gone, or more than one came from nowhere"
            )
            for i in range(finished, store.n_episodes):
                check(store, i, server.make_episode(i))
            finished = store.n_episodes
            cut_short += json.loads((path / "data/state/.zarray").read_text())["shape"][0] > store.n_steps
            kills += 1
            assert kills < 20 * N_KILLS, f"{kills} kills, of which only {cut_short} fell into an episode"
        killer.stdin.close()
    store = EpisodeStore.open(path)
    for i in range(finished):
        check(store, i, server.make_episode(i))
    assert store.episode_meta("seed").tolist() == list(range(finished))


def check(store, i, expected):
    got = store.episode(i)
    assert set(got) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(got[key], value)
