"""How many threads training takes."""

import time

import pytest
import torch

from data.errors import ConfigError
from launch.threads import fastest, settle_threads
from tests.entry.commands import python, words

OPEN = {"threads": None, "device": "cpu", "compile": False}


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def takes(seconds):
    """Work of a given length for each number of threads."""
    return lambda: time.sleep(seconds[torch.get_num_threads()])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 0.01, 2: 0.03, 4: 0.06}, 1),  # waking costs more than is gained
        ({1: 0.06, 2: 0.03, 4: 0.01}, 4),
        ({1: 0.06, 2: 0.02, 4: 0.0195}, 2),  # two more are worth nothing
    ],
)
def test_the_fewest_that_are_about_as_fast(seconds, expected):
    torch.set_num_threads(1)
    assert fastest(takes(seconds), [1, 2, 4]) == expected
    assert torch.get_num_threads() == 1


def test_slow_work_is_tried_but_once_each(monkeypatch):
    monkeypatch.setattr("launch.threads.PATIENCE", 0.0)
    calls = []
    fastest(lambda: calls.append(torch.get_num_threads()), [1, 2])
    assert calls[1:] == [1, 2]  # the first call sets up


def test_settled_once(monkeypatch):
    torch.set_num_threads(2)
    config = dict(OPEN)
    settle_threads(config, takes({1: 0.03, 2: 0.01}))
    assert (config["threads"], torch.get_num_threads()) == (2, 2)
    settle_threads(config, takes({1: 0.01, 2: 0.03}))  # a resumed run
    assert (config["threads"], torch.get_num_threads()) == (2, 2)
    config = dict(OPEN)
    settle_threads(config, None)  # reinforcement learning
    assert (config["threads"], torch.get_num_threads()) == (1, 1)


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"compile": True}, "OMP_NUM_THREADS"])
def test_left_alone(other, monkeypatch):
    torch.set_num_threads(2)
    if isinstance(other, str):
        monkeypatch.setenv(other, "2")
        other = {}
    config = {**OPEN, **other}
    settle_threads(config, None)
    assert (config["threads"], torch.get_num_threads()) == (None, 2)


@pytest.mark.parametrize("wanted", [0, -1, True, "many", 1.5])
def test_refused(wanted):
    with pytest.raises(ConfigError, match=r"threads=.*at least 1"):
        settle_threads({**OPEN, "threads": wanted}, None)


def test_measuring_changes_nothing(toy, tmp_path):
    """A run that measures, on the data it will train on, is to the bit the run that was told; dropout included."""
    argv = [a for a in toy if not a.startswith("network")]
    argv += words("network=transformer network.size=tiny network.dropout=0.1 algo.train_steps=3 eval.n_episodes=1")
    runs = [tmp_path / "measured", tmp_path / "told"]

    def train(run, *more):
        done = python("train.py", *argv, *more, f"run_dir={run}", OMP_NUM_THREADS=None)
        assert done.status == 0, done.err
        lines = (run / "config.yaml").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith("threads:"))

    threads = train(runs[0])
    assert threads.isdigit()
    assert train(runs[1], f"threads={threads}") == threads
    measured, told = ((run / "checkpoint" / "model.safetensors").read_bytes() for run in runs)
    assert measured == told
