"""A run that is killed or stopped, and resumed, computes what an undisturbed run computes, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.entry.commands import assert_refused, assert_same_run, lines, result, timeless, weights

LONG = ["algo.train_steps=400", "algo.save_every=40", "log.every=10", "eval.every=160", "eval.every_n_episodes=2"]


@pytest.fixture(scope="module")
def long_run(server, toy, tmp_path_factory):
    """Undisturbed, with evaluations on the way."""
    run = tmp_path_factory.mktemp("long") / "run"
    server.train(*toy, *LONG, f"run_dir={run}")
    return run


def step_of(run: Path) -> int:
    done = [json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines() if x.endswith("}")]
    return max(done, default=0)


def test_repeating_a_run_gives_the_same(server, toy, straight, tmp_path):
    server.train(*toy, "eval.every=20", "eval.every_n_episodes=2", f"run_dir={tmp_path / 'again'}")
    assert_same_run(tmp_path / "again", straight)


def test_resume_after_kills_is_bit_exact(server, toy, long_run, tmp_path):
    run, rng = tmp_path / "run", random.Random(3)
    argv = [*toy, *LONG, f"run_dir={run}"]
    for _ in range(5):
        process = server.start("train.py", *argv)
        moment = time.monotonic() + 60
        started = None
        while started is None or time.monotonic() < started + moment:
            assert process.poll() is None, process.err
            if started is None and (run / "state.pt").exists() and (run / "metrics.jsonl").exists():
                started, moment = time.monotonic(), rng.uniform(0, 0.8)
            time.sleep(0.003)
        psutil.Process(process.pid).kill()
        assert process.wait().status == -signal.SIGKILL
        argv = [f"resume={run}"]
    assert step_of(run) < 400, "the kills came too late to show anything"
    server.train(*argv)
    assert_same_run(run, long_run)


def test_kill_before_the_first_save(server, toy, straight, tmp_path):
    run = tmp_path / "run"
    argv = [*toy, "algo.save_every=30", "eval.every=20", "eval.every_n_episodes=2", f"run_dir={run}"]
    begun = lambda: (run / "metrics.jsonl").exists()  # noqa: E731
    killed = server.start("train.py", *argv).signal_when(signal.SIGKILL, begun, "training")
    assert killed.status == -signal.SIGKILL
    assert not (run / "state.pt").exists()
    server.train(f"resume={run}")
    assert_same_run(run, straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_and_resume(server, toy, long_run, tmp_path, number):
    run = tmp_path / "run"
    process = server.start("train.py", *toy, *LONG, f"run_dir={run}")
    done = process.signal_when(number, lambda: (run / "metrics.jsonl").exists() and step_of(run) > 0, "a step")
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    message = done.err.strip().splitlines()[-1]
    assert number.name in message
    assert f"python train.py resume={run}" in message
    step = int(message.split("saved at update ")[1].split(";")[0])
    assert 0 < step < 400
    assert step_of(run) <= step < step_of(run) + 10  # where it stopped, not the last regular save
    assert json.loads((run / "checkpoint" / "config.json").read_text())["meta"]["step"] == step
    server.train(f"resume={run}")
    assert_same_run(run, long_run)


def test_stop_during_the_final_evaluation(server, toy, straight, tmp_path):
    run = tmp_path / "run"
    argv = [*toy, "eval.n_episodes=2000", "eval.every=20", "eval.every_n_episodes=2", f"run_dir={run}"]
    process = server.start("train.py", *argv)
    trained = lambda: (run / "state.pt").exists() and "30/30" in process.err  # noqa: E731
    done = process.signal_when(signal.SIGTERM, trained, "trained")
    assert done.status == 0, done.err
    assert "saved at update 30" in done.err
    assert not (run / "eval.json").exists()
    assert weights(run) == weights(straight)
    assert not psutil.pid_exists(process.pid)


def test_stop_during_an_evaluation_on_the_way(server, toy, tmp_path):
    """The evaluation is made again, and its line is there once."""
    run = tmp_path / "run"
    argv = [*toy, "eval.every=17", "eval.every_n_episodes=60", "algo.save_every=30", f"run_dir={run}"]
    process = server.start("train.py", *argv)
    evaluating = lambda: (run / "state.pt").exists()  # noqa: E731 - saved for the evaluation
    done = process.signal_when(signal.SIGINT, evaluating, "evaluating")
    assert done.status == 0, done.err
    assert "saved at update 17" in done.err
    server.train(f"resume={run}")
    evaluations = [r for r in lines(run) if "success_rate" in r]
    assert [(r["step"], r["n_episodes"]) for r in evaluations] == [(17, 60), (30, 2)]


def test_resume_of_a_finished_run_only_evaluates(server, toy, straight, tmp_path):
    before = {p: p.read_bytes() for p in straight.rglob("*") if p.suffix in (".pt", ".safetensors", ".yaml")}
    records, summary = [timeless(r) for r in lines(straight)], result(straight)
    done = server.train(f"resume={straight}")
    assert timeless(done.summary) == summary == result(straight)
    assert [timeless(r) for r in lines(straight)] == records
    assert before == {p: p.read_bytes() for p in before}


def test_half_a_line_of_metrics_is_dropped(server, toy, straight, tmp_path):
    run = tmp_path / "run"
    argv = [*toy, "eval.every=20", "eval.every_n_episodes=2", f"run_dir={run}"]
    process = server.start("train.py", *argv)
    process.signal_when(signal.SIGKILL, lambda: (run / "state.pt").exists(), "saved")
    with open(run / "metrics.jsonl", "a") as f:
        f.write('{"step": 29, "lo')
    server.train(f"resume={run}")
    assert_same_run(run, straight)


def test_folder_in_use(server, toy, straight, tmp_path):
    """A second run refuses a folder with a run, and one where a run is going on, and harms neither."""
    before = weights(straight)
    assert_refused(server.run("train.py", *toy, f"run_dir={straight}"), "already holds a run", f"resume={straight}")
    assert weights(straight) == before
    run = tmp_path / "run"
    first = server.start("train.py", *toy, "algo.train_steps=100000", f"run_dir={run}")

    def others_refuse() -> bool:
        if not (run / "state.pt").exists():
            return False
        for argv in ([*toy, f"run_dir={run}"], [f"resume={run}"]):
            assert_refused(server.run("train.py", *argv), "Another process is training", str(run))
        return True

    assert first.signal_when(signal.SIGINT, others_refuse, "training").status == 0


def test_resume_takes_nothing_else(server, straight):
    assert_refused(server.run("train.py", f"resume={straight}", "algo.lr=1e-3"), "resume=", "algo.lr=1e-3")
    assert_refused(server.run("train.py", "resume=/nowhere"), "no run to resume", "/nowhere")


def test_damaged_state(server, toy, straight, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((straight / "config.yaml").read_text())
    (run / "state.pt").write_bytes((straight / "state.pt").read_bytes()[:1000])
    assert_refused(server.run("train.py", f"resume={run}"), "state.pt", "cannot be read")
    state = torch.load(straight / "state.pt", weights_only=False)
    del state["sampler"]
    torch.save(state, run / "state.pt")
    assert_refused(server.run("train.py", f"resume={run}"), "state.pt", "'sampler'", "another version")
