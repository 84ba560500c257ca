"""Several processes train what one trains with their batches put together, and share the evaluation."""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.entry.commands import assert_refused, assert_same_run, lines, result, run_command, timeless, weights

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
SMALL = ["algo.batch_size=8", "eval.every=20", "eval.every_n_episodes=2", "eval.n_episodes=3"]


class Pair:
    """Two processes as torchrun starts them."""

    def __init__(self, server, *argv: str):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        self.processes = [server.start("train.py", *argv, **group, RANK=r, LOCAL_RANK=r) for r in "01"]

    def wait(self):
        return [p.wait() for p in self.processes]


@pytest.fixture(scope="module")
def pair(server, toy, tmp_path_factory):
    run = tmp_path_factory.mktemp("pair") / "run"
    done = Pair(server, *toy, *SMALL, f"run_dir={run}").wait()
    assert [d.status for d in done] == [0, 0], done
    assert done[1].out == ""
    return run


@pytest.fixture(scope="module")
def single(server, toy, tmp_path_factory):
    run = tmp_path_factory.mktemp("single") / "run"
    server.train(*toy, *SMALL, "algo.batch_size=16", f"run_dir={run}")
    return run


def assert_same_training(two: Path, one: Path) -> None:
    for a, b in zip(lines(two), lines(one), strict=True):
        a, b = timeless(a), timeless(b)
        for key in ("success_ci95", "task"):
            assert a.pop(key, None) == b.pop(key, None)
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)
    a, b = (load_file(run / "checkpoint" / "model.safetensors") for run in (two, one))
    assert max(float((a[k] - b[k]).abs().max()) for k in b) < 1e-4
    assert result(two)["seeds"] == result(one)["seeds"]


def test_two_processes_equal_one_with_the_double_batch(pair, single):
    assert_same_training(pair, single)


def test_shared_evaluation_is_that_of_one_process(server, pair, tmp_path):
    done = server.run("eval.py", f"checkpoint={pair}", "n_episodes=3", f"out={tmp_path}")
    summary = {k: v for k, v in timeless(done.summary).items() if k != "execution"}
    assert summary == {k: v for k, v in result(pair).items() if k != "step"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs accelerate starts the processes itself")
def test_accelerate_launch(toy, pair, tmp_path):
    """As a user types it: on a machine without GPUs too, N processes are N processes."""
    run = tmp_path / "run"
    done = run_command(*LAUNCH, "train.py", *toy, *SMALL, "device=auto", f"run_dir={run}")
    assert done.status == 0, done.err
    assert_same_run(run, pair)
    assert done.err.count("final evaluation: 3/3") == 1
    assert timeless(done.summary) == result(run)
    assert not processes_of(run)


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_stop_and_resume(server, toy, pair, tmp_path, number, rank):
    """A signal to any process stops all; together they resume bit-exactly."""
    run = tmp_path / "run"
    argv = [*toy, *SMALL, "eval.every_n_episodes=300", f"run_dir={run}"]
    both = Pair(server, *argv)
    evaluating = lambda: (run / "state.pt").exists() and step(run) == 20  # noqa: E731
    both.processes[rank].signal_when(number, evaluating, "evaluating")
    done = both.wait()
    assert [d.status for d in done] == [0, 0], done
    assert "saved at update 20" in done[0].err
    assert done[1].out == ""
    assert "Traceback" not in done[1].err
    config = (run / "config.yaml").read_text().replace("every_n_episodes: 300", "every_n_episodes: 2")
    (run / "config.yaml").write_text(config)
    done = Pair(server, f"resume={run}").wait()
    assert [d.status for d in done] == [0, 0], done
    assert_same_run(run, pair)


def step(run: Path) -> int:
    return json.loads((run / "checkpoint" / "config.json").read_text())["meta"]["step"]


def test_resume_with_another_number(server, pair):
    before = weights(pair)
    assert_refused(server.run("train.py", f"resume={pair}"), "2 process", "by 1")
    assert weights(pair) == before


def test_all_end_when_one_is_killed(server, toy, tmp_path):
    run = tmp_path / "run"
    both = Pair(server, *toy, "algo.train_steps=1000000", f"run_dir={run}")
    both.processes[1].signal_when(signal.SIGKILL, lambda: (run / "state.pt").exists(), "training")
    first = both.processes[0].wait()
    assert first.status == 1
    assert "Another process of this run has ended" in first.err
    assert "Traceback" not in first.err


def test_errors_end_all(toy, pair):
    """Also where only the first process can see what is wrong."""
    done = run_command(*LAUNCH, "train.py", *toy, f"run_dir={pair}")
    assert done.status != 0
    assert "already holds a run" in done.err
    assert not processes_of(pair)


def processes_of(run: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if str(run) in " ".join(p.info["cmdline"] or [])]
