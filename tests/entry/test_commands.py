"""The two commands on Meta-World, as a user types them, cut down to seconds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import psutil
import pytest

from configs.loader import load_config
from policies.checkpoint import load_policy
from tests.entry.commands import EVAL_KEYS, REPO, TINY, assert_refused, lines, python, result, timeless, words

# reward=dense: the mean return then tells any two behaviours apart.
SHORT = ["data.n_demos=2", "task.reward=dense", "task.episode_length=100"]
WINDOW = words("""
    task=metaworld task.name=window-close-v3 obs=state policy=diffusion network=mlp algo=bc data.n_demos=20
    data.root=data_cache algo.train_steps=4000 algo.batch_size=256 algo.save_every=500 policy.n_inference_steps=10
    n_obs_steps=2 horizon=16 n_action_steps=8 seed=1 run_dir=runs/window
""")
DOOR = words("""
    task=metaworld task.name=door-open-v3 obs=pointcloud policy=flow algo=bc data.n_demos=10 seed=0 run_dir=runs/door
""")


@pytest.fixture(scope="module")
def window(root, tmp_path_factory):
    """(run folder, what the command printed): the second example of the README, cut down."""
    run = tmp_path_factory.mktemp("window") / "run"
    cut = "algo.train_steps=24 algo.save_every=12 log.every=6 eval.every=12 eval.every_n_episodes=1 eval.n_episodes=3"
    argv = [*WINDOW, *TINY, *SHORT, *cut.split(), "eval.n_videos=1", f"data.root={root}", f"run_dir={run}"]
    done = python("train.py", *[a for a in argv if a != "log.every=1"])
    assert done.status == 0, done.err
    return run, done


def test_run_folder(window):
    run, done = window
    names = {p.name for p in run.iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoint", "eval.json", "learning_curve.png", "state.pt"}
    records = lines(run)
    steps = [r["step"] for r in records if "loss" in r]
    assert steps == [6, 12, 18, 24]
    assert {"loss", "grad_norm", "lr", "samples_per_s", "time"} <= set(records[0])
    assert [(r["step"], r["n_episodes"]) for r in records if "success_rate" in r] == [(12, 1), (24, 3)]
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    videos = list((run / "videos").glob("*.mp4"))
    assert [v.name.split("-")[0] for v in videos] == ["seed10000"]
    assert videos[0].stat().st_size > 1000
    assert list((run / "tensorboard").iterdir())
    for name in (videos[0], run / "learning_curve.png", run / "checkpoint"):
        assert f": {name}\n" in done.err  # whole, on one line
    assert "Traceback" not in done.err
    assert load_policy(run).n_action_steps == 8


def test_last_line_is_the_evaluation(window):
    run, done = window
    summary = done.summary
    assert summary == json.loads((run / "eval.json").read_text())
    assert set(summary) >= EVAL_KEYS
    assert len(done.out.splitlines()) == 1
    assert summary["seeds"] == [10000, 10001, 10002]
    assert summary["n_episodes"] == 3
    low, high = summary["success_ci95"]
    assert 0 <= low <= summary["success_rate"] <= high <= 1
    assert 0 < summary["chunk_latency_ms_p50"] <= summary["chunk_latency_ms_p99"]
    assert 0 < summary["mean_length"] <= 100
    assert summary["mean_return"] != 0


def test_eval_of_the_checkpoint_equals_the_final_evaluation(window, tmp_path):
    run, trained = window
    done = python("eval.py", f"checkpoint={run}", "n_episodes=3", "n_envs=1", "n_videos=1", f"out={tmp_path}")
    assert done.status == 0, done.err
    assert set(done.summary) >= EVAL_KEYS
    assert done.summary == json.loads((tmp_path / "eval.json").read_text())
    expected = timeless(trained.summary)
    assert expected.pop("step") == 24
    found = timeless(done.summary)
    assert found.pop("execution")["nfe"] == 10
    assert found == expected
    assert len(list(tmp_path.glob("seed10000-*.mp4"))) == 1


def test_result_does_not_depend_on_company_or_order(server, window, straight, tmp_path):
    """Two environments in training, one above; here three, and on the toy each episode alone and last first."""
    run, trained = window
    expected = timeless(trained.summary)
    del expected["step"]
    found = evaluate(server, tmp_path, run, "n_episodes=3", "n_envs=3")
    assert found.pop("execution")["jerk"] > 0
    assert found == expected
    together = [evaluate(server, tmp_path, straight, "n_episodes=3", f"n_envs={n}") for n in (1, 2, 3)]
    assert together[0] == together[1] == together[2]
    alone = [evaluate(server, tmp_path, straight, "n_episodes=1", f"seed={seed}") for seed in (10002, 10001, 10000)]
    for key in ("success_rate", "mean_return", "mean_length"):
        assert sum(one[key] for one in alone) / 3 == pytest.approx(together[0][key], rel=1e-12)
    assert len({one["mean_return"] for one in alone}) == 3


def test_inference_options_change_what_runs(server, straight, tmp_path):
    ten = evaluate(server, tmp_path, straight, "n_episodes=1")
    one = evaluate(server, tmp_path, straight, "n_episodes=1", "policy.n_inference_steps=1")
    assert one["mean_return"] != ten["mean_return"]
    assert evaluate(server, tmp_path, straight, "n_episodes=1", "policy.n_inference_steps=10") == ten
    assert evaluate(server, tmp_path, straight, "n_episodes=1", "n_action_steps=4")["mean_return"] != ten["mean_return"]
    assert evaluate(server, tmp_path, straight, "n_episodes=1", "task.episode_length=11")["mean_length"] == 11
    assert_refused(server.run("eval.py", f"checkpoint={straight}", "policy.sampler=ddim"), "policy.sampler")
    assert_refused(server.run("eval.py", f"checkpoint={straight}", "policy.n_inference_steps=0"), "at least 1")


def evaluate(server, tmp_path, run, *argv):
    done = server.run("eval.py", f"checkpoint={run}", f"out={tmp_path}", *argv)
    assert done.status == 0, done.err
    return timeless(done.summary)


def test_export(server, straight, tmp_path):
    """A file that onnxruntime answers alike from; without episodes."""
    found = server.run("eval.py", f"checkpoint={straight}", "export=onnx", f"out={tmp_path / 'p.onnx'}").summary
    assert (tmp_path / "p.onnx").stat().st_size > 10_000
    assert found["max_difference"] < 1e-4
    assert_refused(server.run("eval.py", f"checkpoint={straight}", "export=onx"), "export=onx")


def test_demonstrations_are_reused(server, window, root, tmp_path):
    """The same demonstrations serve another policy; the cloud's default needs its own."""
    stores = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and "window" in str(p)}
    assert stores
    argv = [*TINY, *SHORT, "task.name=window-close-v3", "seed=1", "obs=state", "policy=flow", "eval.n_episodes=1"]
    done = server.train(*argv, "algo.train_steps=1", f"data.root={root}", f"run_dir={tmp_path / 'run'}")
    assert "demonstrations of" not in done.err
    assert stores == {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and "window" in str(p)}


def test_pointcloud_example(server, root, tmp_path):
    """The first example, with a small U-Net; then ``eval.py`` as in the last one."""
    cut = "network=unet1d network.down_dims=[16,32] network.n_groups=4 algo.train_steps=2 eval.n_episodes=1"
    run = tmp_path / "door"
    done = server.train(*DOOR, *SHORT, *cut.split(), "algo.batch_size=4", f"data.root={root}", f"run_dir={run}")
    assert result(run)["task"] == "metaworld/door-open-v3"
    assert set(load_policy(run).spec.obs) == {"pointcloud", "agent_pos"}
    argv = f"checkpoint={run} n_episodes=2 seed=10000 n_envs=2 policy.n_inference_steps=1".split()
    summary = server.run("eval.py", *argv).summary
    assert summary["seeds"] == [10000, 10001]
    assert (run / "evaluations").is_dir()
    assert done.summary["n_episodes"] == 1


def test_examples_compose():
    for argv in (WINDOW, DOOR, ["experiment=quickstart"]):
        assert load_config("train", argv)["algo"]["name"] == "bc"
    assert load_config("train", WINDOW)["policy"]["n_inference_steps"] == 10
    assert load_config("train", ["resume=runs/door"])["resume"] == "runs/door"
    argv = ["checkpoint=runs/door", "n_episodes=100", "seed=10000", "n_envs=2", "policy.n_inference_steps=1"]
    assert load_config("eval", argv)["policy"]["n_inference_steps"] == 1


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(server, script, flag):
    done = server.run(script, flag)
    assert done.status == 0
    for word in ("python " + script, "n_envs", "n_episodes", "n_inference_steps" if script == "eval.py" else "run_dir"):
        assert word in done.out
    if script == "train.py":
        for word in ("unet1d | mlp", "metaworld", "pointcloud", "diffusion | flow", "quickstart", "train_steps"):
            assert word.split(" | ")[0] in done.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_collection(server, tmp_path, number):
    """Says so, leaves no process and no run; what was collected is used by the next attempt."""
    argv = [*TINY, "obs=state", "data.n_demos=500", f"data.root={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    process = server.start("train.py", *argv)
    workers = []

    def collecting() -> bool:
        workers[:] = psutil.Process(process.pid).children(recursive=True)
        return len(workers) == 2 and any(tmp_path.glob("data/*.zarr/data/action/[0-9]*"))

    done = process.signal_when(number, collecting, "collecting")
    assert done.status == 130
    assert done.out == ""
    assert done.err.strip() == "interrupted"
    psutil.wait_procs(workers, timeout=10)
    assert not any(w.is_running() for w in workers)
    assert not (tmp_path / "run").exists()


def test_interrupted_before_something_is_awaited():
    """zarr makes a coroutine and hands it to its thread: after a Ctrl-C in between nobody awaits it."""
    script = """
from launch.terminal import run_main
async def read(): pass
def main(argv):
    made = read()
    raise KeyboardInterrupt
run_main(main)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("text", "reads", "wanted"),
    [
        ("print('x' * 200_000)", False, (0, "")),
        ("raise BrokenPipeError('a worker')", True, (1, "BrokenPipeError: a worker")),
    ],
)
def test_a_reader_that_leaves_is_no_error_and_a_worker_that_leaves_is(text, reads, wanted):
    """``train.py --help | head``."""
    script = f"from launch.terminal import run_main\ndef main(argv):\n    {text}\n    return 0\nrun_main(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if not reads:
        process.stdout.close()
    said = process.stderr.read().strip()
    assert (process.wait(), said.splitlines()[-1] if said else "") == wanted
    process.stdout.close()
    process.stderr.close()


def test_interrupted_evaluation(server, straight, tmp_path):
    out = tmp_path / "never"
    process = server.start("eval.py", f"checkpoint={straight}", "n_episodes=100000", "n_envs=2", f"out={out}")
    workers = []

    def running() -> bool:
        workers[:] = psutil.Process(process.pid).children(recursive=True)
        return len(workers) == 2 and all(w.cpu_times().user > 0.4 for w in workers)

    done = process.signal_when(signal.SIGINT, running, "evaluating")
    assert done.status == 130
    assert done.err.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.err
    psutil.wait_procs(workers, timeout=10)
    assert not any(w.is_running() for w in workers)
    assert not out.exists()
