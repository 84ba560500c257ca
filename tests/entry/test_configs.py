"""Composition, types, precision, and what runs end with; every experiment runs for two steps."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from configs.loader import CONFIG_DIR, groups, load_config
from data.errors import ConfigError
from launch import terminal
from launch.plots import learning_curve
from policies import precision
from tests.entry.commands import EVAL_KEYS

OF_ROBOTS = ("robot", "teleop")
CHOICES = [(group, name) for group, names in groups().items() for name in names if group not in OF_ROBOTS]


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=str)
def test_every_choice_composes(group, name):
    config = load_config("train", [f"{group}={name}"])
    assert config["algo"]["batch_size"] >= 1
    if group == "task":
        assert config[group]["suite"] == {"robot": "real_robot.env:RobotEnv", "live": "real"}.get(name, name)
    elif group not in ("experiment", "encoder", "size"):
        assert config[group]["name"] == name


@pytest.mark.parametrize("name", groups()["robot"])
def test_every_robot_composes(name):
    needs = {"so101": ["port", "calibration"], "dynamixel": ["port", "calibration"], "ur": ["host"]}.get(name, [])
    given = [f"robot={name}", *(f"robot.{option}=x" for option in needs)]
    for command, more in (("record", ["out=x"]), ("deploy", ["checkpoint=x"]), ("live", [])):
        config = load_config(command, [*given, *more])
        assert config["robot"]["type"] == ("mujoco" if name.endswith("_mujoco") else name.removesuffix("_sim"))
        assert config["safety"]["max_age"] > 0
        for option in needs:
            with pytest.raises(ConfigError):
                load_config(command, [*(g for g in given if option not in g), *more])


@pytest.mark.parametrize("name", groups()["teleop"])
def test_every_device_composes(name):
    given = ["teleop.port=x", "teleop.calibration=x"] if name == "leader" else []
    config = load_config("record", ["out=x", f"teleop={name}", *given])
    assert config["teleop"]["device"] == (None if name == "none" else name)


def test_defaults_follow_the_observation():
    config = load_config("train", ["obs=rgb", "policy=diffusion", "network=mlp"])
    assert config["policy"]["noise_per_obs"] == config["obs"]["noise_per_obs"] > 1
    assert config["algo"]["batch_size"] == config["obs"]["batch_size"]
    assert config["run_dir"].endswith("-rgb-diffusion-s0")
    assert load_config("train", ["obs=rgb", "policy.noise_per_obs=2"])["policy"]["noise_per_obs"] == 2


IMPROVES = {  # experiments that start from another one's policy
    "improve": "improve_base", "residual_long": "improve_base", "residual_paper": "improve_base",
    "dsrl_paper": "improve_base", "residual_ppo_paper": "improve_base", "dppo_paper": "dppo_base",
    "manicm_paper": "improve_base", "consistency_policy_paper": "improve_base",
    "consistency_metaworld": "dp3_metaworld",
}  # fmt: skip
FROM_NOTHING = ("rlpd_paper", "sac_paper")
OFF_POLICY = ["algo.learning_starts=6", "algo.hidden=[16]", "algo.critic_hidden=[16]"]
ON_POLICY = ["algo.rollout_steps=2", "algo.critic_hidden=[16]"]


def run_briefly(server, root, folder, name, *more):
    """A few steps of an experiment, with its own observation, policy, network and task."""
    tiny = "algo.batch_size=4 eval.n_episodes=1 eval.n_videos=0 eval.every=0 eval.every_n_episodes=1 eval.n_envs=1"
    argv = [f"experiment={name}", *tiny.split(), "device=cpu", "precision=fp32", *more]
    return server.train(*argv, f"data.root={root}", f"run_dir={folder}").summary


def some_slow(name):
    """Methods run in other tests as well, with options of their own."""
    return pytest.param(name, marks=pytest.mark.slow) if name.endswith(("_metaworld", "_paper", "dppo_base")) else name


@pytest.mark.parametrize("name", map(some_slow, groups()["experiment"]))
def test_experiment_runs(server, root, tmp_path, name):
    updates = ["algo.train_steps=2", "algo.save_every=1"]
    few = ["algo.env_steps=12", "algo.n_envs=2", *(ON_POLICY if "ppo" in name else OFF_POLICY)]
    if name in FROM_NOTHING:
        summary = run_briefly(server, root, tmp_path / "run", name, "data.n_demos=2", *few)
        assert summary["step"] == 12
    else:
        first = IMPROVES.get(name, name)
        brief = ["data.n_demos=2", *updates, *(["network.size=tiny"] if first.endswith("_metaworld") else [])]
        summary = run_briefly(server, root, tmp_path / "run", first, *brief)
        assert summary["step"] == 2
    if name in IMPROVES:
        distils = name.startswith(("manicm", "consistency"))
        few = updates if distils else [*few, *(["algo.stop_at=null"] if name == "residual_long" else [])]
        summary = run_briefly(server, root, tmp_path / "next", name, f"base={tmp_path / 'run'}", *few)
        assert summary["step"] >= (2 if distils else 12)  # whole decisions
    assert set(summary) >= EVAL_KEYS


def test_experiments_hold_differences_only():
    for file in (CONFIG_DIR / "experiment").glob("*.yaml"):
        assert len(file.read_text().splitlines()) <= 30, f"{file} repeats more than it changes"


@pytest.mark.parametrize(
    ("override", "fits"),
    [
        ("algo.lr=1", True),  # an int where a float stands
        ("algo.lr=true", False),
        ("algo.train_steps=1e3", False),
        ("algo.train_steps=true", False),
        ("compile=1", False),
        ("compile=true", True),
        ("algo.betas=0.9", False),
        ("algo.betas=[0.9,0.95]", True),
        ("task.goal=yes", False),
        ("task.cameras=corner", False),
        ("task.cameras=[corner]", True),
        ("encoder.state.hidden=[8,16]", True),
        ("data.path=some/where", True),
        ("seed=null", True),
        ("algo.batch_size=7", True),
    ],
)
def test_types(override, fits):
    if fits:
        load_config("train", [override])
    else:
        with pytest.raises(ConfigError, match=override.split("=")[0]):
            load_config("train", [override])


@pytest.mark.parametrize(("gain", "expected"), [(0.02, "fp32"), (1.0, "fp32"), (1.2, "fp32"), (1.6, "bf16")])
def test_auto_precision_takes_bf16_only_where_it_is_faster(monkeypatch, gain, expected):
    monkeypatch.setattr(precision, "measure_bf16_gain", lambda: gain)
    cpu = torch.device("cpu")
    assert precision.resolve_precision("auto", cpu) == expected
    assert precision.resolve_precision("bf16", cpu) == "bf16"
    assert precision.resolve_precision("fp32", cpu) == "fp32"


def test_bf16_trains_and_resumes_as_resolved(server, toy, tmp_path):
    run = tmp_path / "run"
    argv = [a for a in toy if not a.startswith("precision")]
    server.train(*argv, "precision=bf16", "algo.train_steps=3", f"run_dir={run}")
    assert "precision: bf16" in (run / "config.yaml").read_text()
    server.train(f"resume={run}")


@pytest.mark.parametrize("options", ["transformer policy=meanflow network.dropout=0.1", "dit policy=diffusion"])
def test_transformers_train(server, toy, tmp_path, options):
    argv = [a for a in toy if not a.startswith("network")] + f"network={options}".split()
    argv += ["network.size=tiny", "algo.train_steps=2", "eval.n_episodes=1"]
    assert server.train(*argv, f"run_dir={tmp_path / 'run'}").summary["step"] == 2


def test_bar_prints_lines_where_there_is_no_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=False, markup=False))
    with terminal.Bar("counting [a]", 3) as bar:
        for done in range(1, 4):
            bar.update(done, "loss 1.0")
    with terminal.Bar("silent", 1, enabled=False) as bar:
        bar.update(1)
    assert out.getvalue() == "counting [a]: 3/3 loss 1.0\n"


def test_bar_prints_every_ten_seconds(monkeypatch):
    out, clock = io.StringIO(), iter([0.0, 4.0, 11.0, 11.0, 15.0, 21.5, 21.5])
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=False, markup=False))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    bar = terminal.Bar("counting", 9)
    for done in range(1, 5):
        bar.update(done)
    assert out.getvalue().split("\n") == ["counting: 2/9", "counting: 4/9", ""]


def test_messages_are_printed_as_they_are(capsys):
    """Neither wrapped nor read as markup."""
    message = "data/[/x] and [red] " + "word " * 60
    terminal.fail(message.strip())
    assert capsys.readouterr().err == f"error: {message.strip()}\n"


@pytest.mark.parametrize("n", [0, 1, 30])
def test_learning_curve_draws(tmp_path, n):
    records = [{"step": i, "loss": 1 / (i + 1)} for i in range(n)]
    records += [{"step": i, "success_rate": 1.0, "success_ci95": [0.7, 1.0]} for i in range(0, n, 10)]
    learning_curve(records, tmp_path / "curve.png", "a title")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_config_of_a_run_is_complete(straight):
    """What a run wrote is what it ran with: no interpolation and no auto is left."""
    text = (straight / "config.yaml").read_text()
    assert "${" not in text
    assert "auto" not in text
    meta = json.loads((straight / "checkpoint" / "config.json").read_text())["meta"]
    assert meta["train_config"]["algo"]["batch_size"] == 16
