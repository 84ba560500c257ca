"""Fine-tuning from the command line: every algorithm runs, resumes to the bit and evaluates."""

from __future__ import annotations

import json
import signal
from statistics import mean

import pytest

from data.errors import ConfigError
from launch.start import check_value_range
from tests.entry.commands import EVAL_KEYS, assert_refused, assert_same_run, lines, result, words

BASE = words("""
    task=toy task.episode_length=15 task.speed=0.2 obs=state network.hidden_dim=32 network.n_blocks=1 data.n_demos=4
    data.n_workers=0 algo.train_steps=60 algo.save_every=60 algo.batch_size=32 horizon=6 n_action_steps=4
    policy.n_inference_steps=2 eval.n_episodes=2 eval.n_envs=1 eval.n_videos=0 device=cpu precision=fp32
""")
LOOP = words("""
    algo.env_steps=300 algo.save_every=50 eval.every=100 eval.every_n_episodes=6 eval.n_episodes=3 eval.n_envs=1
    eval.n_videos=0 log.every=10 device=cpu precision=fp32
""")
NETS = words("algo.hidden=[16] algo.critic_hidden=[16] algo.batch_size=16 algo.learning_starts=40")
OPTIONS = {
    "residual": [*NETS, "algo.warmup_steps=80", "algo.hold=2"],
    "dsrl": [*NETS, "algo.warmup_steps=80", "algo.n_candidates=2", "algo.critic_obs=[state]"],
    "residual_ppo": words(
        "algo.hold=2 algo.n_envs=2 algo.rollout_steps=12 algo.batch_size=8 algo.epochs=2 algo.hidden=[16]"
    ),
    "dppo": words(
        "algo.hold=2 algo.n_envs=2 algo.rollout_steps=6 algo.batch_size=8 algo.epochs=2 algo.critic_hidden=[16]"
    ),
}
FROM_NOTHING = words("""
    task=toy task.episode_length=15 task.speed=0.2 obs=state data.n_demos=4 data.n_workers=0 n_obs_steps=1
""")


@pytest.fixture(scope="module")
def base(server, root, tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "run"
    server.train(*BASE, f"data.root={root}", f"run_dir={run}")
    return run


@pytest.fixture(scope="module")
def diffusion_base(server, root, tmp_path_factory):
    run = tmp_path_factory.mktemp("diffusion") / "run"
    server.train(*BASE, "policy=diffusion", f"data.root={root}", f"run_dir={run}")
    return run


def test_a_dense_reward_is_not_clamped(server, root, tmp_path):
    dense = ["algo=rlpd", *FROM_NOTHING, "task.reward=dense", f"data.root={root}", f"run_dir={tmp_path / 'run'}"]
    assert_refused(server.run("train.py", *dense), "values to [0.0, 1.0]", "algo.value_low=null algo.value_high=null")
    with pytest.raises(ConfigError, match="dense"):
        check_value_range({"name": "dsrl", "value_low": 0.0, "value_high": 1.0}, {"reward": "dense"})
    check_value_range({"name": "dsrl", "value_low": None, "value_high": None}, {"reward": "dense"})
    check_value_range({"name": "dsrl", "value_low": 0.0, "value_high": 1.0}, {"reward": "sparse"})


@pytest.mark.parametrize("algo", OPTIONS)
def test_runs_resumes_and_evaluates(server, request, tmp_path, algo):
    base = request.getfixturevalue("diffusion_base" if algo == "dppo" else "base")
    argv = [f"algo={algo}", f"base={base}", *LOOP, *OPTIONS[algo]]
    straight = tmp_path / "straight"
    done = server.train(*argv, f"run_dir={straight}")
    assert EVAL_KEYS | {"base_success_rate", "dip", "env_steps_to_95", "train_seconds"} <= set(done.summary)
    records = lines(straight)
    assert "base_success_rate" in records[0]
    assert next(r["step"] for r in records if "success_rate" in r) == 0
    assert len([r for r in records if "success_rate" in r]) >= 4
    assert (straight / "learning_curve.png").exists()
    run = tmp_path / "run"
    begun = lambda: (run / "state.pt").exists()  # noqa: E731
    in_files = [f"algo.replay_dir={tmp_path / 'replay'}"] if algo == "dsrl" else []  # it may go on being written
    process = server.start("train.py", *argv, *in_files, f"run_dir={run}")
    stopped = process.signal_when(signal.SIGKILL, begun, "saved")
    assert stopped.status == -signal.SIGKILL
    assert not in_files or (tmp_path / "replay" / "action.bin").exists()
    server.train(f"resume={run}")
    assert_same_run(run, straight)
    evaluated = server.run("eval.py", f"checkpoint={straight}", "n_episodes=3", "n_envs=2")
    assert evaluated.status == 0, evaluated.err
    assert evaluated.summary["success_rate"] == result(straight)["success_rate"]
    assert evaluated.summary["mean_length"] == result(straight)["mean_length"]


STUDENT = words("""
    algo=distill algo.train_steps=60 algo.save_every=10 algo.batch_size=16 eval.every=20 eval.every_n_episodes=2
    eval.n_episodes=3 eval.n_envs=1 eval.n_videos=0 log.every=5 device=cpu precision=fp32
""")


@pytest.mark.parametrize("form", ["consistency", "ctm"])
def test_distillation(server, base, diffusion_base, tmp_path, form):
    """The student is an ordinary policy; a killed run goes on to the same bits."""
    teacher = base if form == "consistency" else diffusion_base
    argv = [*STUDENT, f"policy={form}", f"base={teacher}", "policy.n_levels=10"]
    straight, run = tmp_path / "straight", tmp_path / "run"
    done = server.train(*argv, f"run_dir={straight}")
    assert EVAL_KEYS | {"teacher_success_rate", "teacher_success_ci95", "kept"} <= set(done.summary)
    assert done.summary == json.loads((straight / "eval.json").read_text())
    assert "teacher: success" in done.err
    evaluated = server.run("eval.py", f"checkpoint={straight}", "n_episodes=3")
    assert evaluated.summary["success_rate"] == done.summary["success_rate"]
    if form == "consistency":
        measured = server.run("eval.py", f"checkpoint={teacher}", "n_episodes=3", f"out={tmp_path / 'out'}")
        assert measured.summary["success_rate"] == done.summary["teacher_success_rate"]
        process = server.start("train.py", *argv, f"run_dir={run}")
        killed = process.signal_when(signal.SIGKILL, lambda: (run / "state.pt").exists(), "saved")
        assert killed.status == -signal.SIGKILL
        server.train(f"resume={run}")
        assert_same_run(run, straight)


def test_distillation_refuses(server, base, diffusion_base, tmp_path):
    argv = [*STUDENT, f"run_dir={tmp_path / 'run'}"]
    assert_refused(server.run("train.py", *argv), "base=RUN_DIR")
    argv.append(f"base={base}")
    assert_refused(server.run("train.py", *argv, "horizon=8"), "'horizon=8' is fixed by the base")
    assert_refused(server.run("train.py", *argv, "policy=flow"), "policy=consistency or policy=ctm")
    assert_refused(server.run("train.py", *argv, "algo.solver=euler"), "solver must be ddim or heun")


@pytest.mark.parametrize("algo", ["sac", "rlpd"])
def test_from_nothing(server, root, tmp_path, algo):
    nets = [*NETS, "algo.n_critics=2"]
    run = tmp_path / "run"
    done = server.train(f"algo={algo}", *FROM_NOTHING, *LOOP, *nets, f"data.root={root}", f"run_dir={run}")
    assert done.summary["base_success_rate"] is None
    evaluated = server.run("eval.py", f"checkpoint={run}", "n_episodes=3")
    assert evaluated.summary["mean_length"] == result(run)["mean_length"]
    assert_refused(server.run("eval.py", f"checkpoint={run}", "policy.n_inference_steps=3"), "GaussianPolicy")


@pytest.mark.parametrize("algo", ["residual", "residual_ppo"])
def test_improves_a_policy_of_any_make(server, root, tmp_path, algo):
    task = words("task=toy task.episode_length=15 task.speed=0.2 obs=state data.n_demos=4 data.n_workers=0")
    argv = [f"algo={algo}", *task, *LOOP, *OPTIONS[algo], "n_action_steps=4", f"data.root={root}"]
    run = tmp_path / "run"
    done = server.train(*argv, "base=tests.entry.walker:make", f"run_dir={run}")
    assert done.summary["base_success_rate"] is not None
    server.train(f"resume={run}")
    assert_refused(server.run("eval.py", f"checkpoint={run}", "n_episodes=3"), "black_box=tests.entry.walker:make")
    evaluated = server.run("eval.py", f"checkpoint={run}", "n_episodes=3", "black_box=tests.entry.walker:make")
    assert evaluated.summary["mean_length"] == result(run)["mean_length"]
    other = f"run_dir={tmp_path / 'x'}"
    assert_refused(server.run("train.py", *argv, other, "base=tests.entry.walker:mak"), "walker:mak", "PYTHONPATH")
    assert_refused(server.run("train.py", *argv, other, "base=tests.entry.walker:make_short"), "(2, 2)", "at least 4")
    argv = ["algo=dsrl", *task, f"data.root={root}", f"run_dir={tmp_path / 'y'}"]
    steered = server.run("train.py", *argv, "base=tests.entry.walker:make")
    assert_refused(steered, "function of one noise chunk")


def test_stop_and_resume(server, base, tmp_path):
    argv = ["algo=residual", f"base={base}", *LOOP, *OPTIONS["residual"], "eval.every=0"]
    run = tmp_path / "run"
    process = server.start("train.py", *argv, f"run_dir={run}", "algo.env_steps=100000")
    done = process.signal_when(signal.SIGINT, lambda: (run / "state.pt").exists(), "saved")
    assert done.status == 0, done.err
    assert "saved at environment step" in done.err
    assert f"resume={run}" in done.err


def test_ends_when_good_enough(server, base, tmp_path):
    """Once three evaluations in a row have the mean that was asked for, not before; resumed, it stays there."""
    run = tmp_path / "run"
    argv = ["algo=residual", f"base={base}", *LOOP, *OPTIONS["residual"], "algo.env_steps=100000", f"run_dir={run}"]
    assert_refused(server.run("train.py", *argv, "algo.stop_at=1.5"), "algo.stop_at=1.5", "at most 1")
    assert_refused(server.run("train.py", *argv, "algo.stop_at=0.9", "eval.every=0"), "algo.stop_at=0.9", "eval.every")
    done = server.train(*argv, "algo.stop_at=0.01", "eval.every=30", "eval.every_n_episodes=20")
    assert "algo.stop_at=0.01 is reached" in done.err
    rates = [r["success_rate"] for r in lines(run) if r["step"] and "success_rate" in r][:-1]  # without the final one
    means = [mean(rates[i : i + 3]) for i in range(len(rates) - 2)]
    assert means[-1] >= 0.01 > max(means[:-1], default=0)
    assert server.train(f"resume={run}").summary["step"] == done.summary["step"] < 100_000


def test_what_cannot_work_is_refused(server, base, tmp_path):
    """What cannot work is refused by name, before anything is written."""
    run = f"run_dir={tmp_path / 'x'}"
    assert_refused(server.run("train.py", "algo=residual", run), "base=RUN_DIR")
    assert_refused(server.run("train.py", "algo=residual", "base=/nowhere", run), "/nowhere")
    fixed = server.run("train.py", "algo=residual", f"base={base}", "task.name=door-open-v3", run)
    assert_refused(fixed, "task.name=door-open-v3", "fixed by the base")
    typo = server.run("train.py", "algo=dsrl", f"base={base}", "algo.varient=sac", run)
    assert_refused(typo, "varient", "variant")
    assert not (tmp_path / "x").exists()


def test_default_run_dir_and_demonstrations_of_the_base(server, base):
    server.train("algo=residual", f"base={base}", *LOOP, *OPTIONS["residual"], "algo.env_steps=60", "eval.every=0")
    run = base.with_name(base.name + "-residual-s0")
    meta = json.loads((run / "checkpoint" / "config.json").read_text())["meta"]
    assert meta["demo_seeds"] == json.loads((base / "checkpoint" / "config.json").read_text())["meta"]["demo_seeds"]
    assert meta["dataset"] is not None
