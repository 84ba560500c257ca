"""``python -m real_robot.serve``, asked by openpi's unmodified client; and what a served policy remembers."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("websockets", reason="pip install 'deft[robots]'")

from data.errors import ConfigError, ContractError, DataError
from policies.black_box import BlackBox
from policies.checkpoint import load_policy, save_policy
from policies.inference.execution import build_execution
from real_robot.core.types import DeviceError
from real_robot.remote.client import RemotePolicy
from real_robot.remote.keys import CHUNK, DELAY, PREV_CHUNK, RESET
from real_robot.remote.serving import LocalPolicy, ServedPolicy, checkpoint_hash, load_served
from real_robot.serve import main
from tests.entry import commands
from tests.policies.conftest import config, make, make_store
from tests.real_robot.trivial_server import serving

KEY = "s3cret"
STATES = np.random.default_rng(0).uniform(0.1, 1, (20, 7)).astype("float32")


@pytest.fixture(scope="module")
def server(checkpoint):
    """The command, with a key; yields (process, address)."""
    command = [sys.executable, "-m", "real_robot.serve", f"checkpoint={checkpoint}", "port=0", "device=cpu", "seed=5"]
    env = commands.environment(DEFT_API_KEY=KEY)
    process = subprocess.Popen(command, cwd=commands.REPO, env=env, stdout=subprocess.PIPE, stderr=-1, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on ws://"), process.communicate()[1]
    yield process, line.split()[-1]
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def openpi_python():
    done = subprocess.run(
        [commands.REPO / "benchmarks/peers/install_openpi.sh"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"openpi-client cannot be installed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def by_itself(checkpoint, seed: int, windows, **execution) -> list[np.ndarray]:
    """The answers of the policy in this process."""
    policy = build_execution(load_policy(checkpoint), execution or {"name": "sync"})
    generator, memory, answers = torch.Generator().manual_seed(seed), None, []
    for window in windows:
        actions, memory = policy.act_from({"state": torch.from_numpy(window)[None]}, memory, generator)
        answers.append(actions[0].numpy())
    return answers


@pytest.mark.slow
def test_the_unmodified_client_of_openpi(server, openpi_python, checkpoint):
    process, address = server
    script = Path(__file__).with_name("openpi_robot.py")
    command = [openpi_python, str(script), address, KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=script.parent)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["health"] == "OK\n"
    assert "401" in found["wrong_key"]
    assert "401" in found["no_key"]
    assert found["metadata"] == {
        "deft_protocol": 1,
        "task": "test/task",
        "observation": {"state": {"shape": [7], "dtype": "float32", "kind": "state"}},
        "action": {"shape": [3], "low": -1.0, "high": 1.0},
        "control_hz": 0.0,
        "rule": None,
        "actions": None,
        "horizon": 8,
        "n_obs_steps": 2,
        "n_action_steps": 4,
        "execution": {"name": "sync", "delay": 0},
        "options": ["deft/reset"],
        "checkpoint": checkpoint_hash(checkpoint),
    }
    assert found["dtype"] == "float32"
    assert found["timing"]["infer_ms"] > 0
    np.testing.assert_allclose(found["actions"], by_itself(checkpoint, 5, [STATES[:2]])[0], atol=1e-6)
    # Frame by frame the server keeps the window; the broker asks at frames 0, 4 and 8.
    windows = [STATES[[0, 0]], STATES[[0, 4]], STATES[[4, 8]]]
    np.testing.assert_allclose(found["steps"], np.concatenate(by_itself(checkpoint, 6, windows))[:9], atol=1e-6)
    for name, words in {
        "shape": "Observation 'state' is (5,) float32; expected (7,) or (2, 7) float32",
        "dtype": "Observation 'state' is (7,) int32; expected (7,) or (2, 7) float32",
        "name": "Observation 'state' is missing; expected (7,) or (2, 7) float32. The request holds ['stat']",
    }.items():
        assert found["errors"][name].startswith("RuntimeError")
        assert words in found["errors"][name]
        assert "Traceback" not in found["errors"][name]
    assert found["still"] == [4, 3]
    assert process.poll() is None


def test_the_command_ends_as_it_is_asked_to(server):
    process, address = server
    policy = RemotePolicy(address, api_key=KEY, timeout_s=30)
    policy.infer({"state": STATES[0]})
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["answers"] > 0
    assert "state (7,) float32 -> 4 of 8 actions (3,) in [-1, 1]" in err
    assert "Traceback" not in err
    with pytest.raises(DeviceError, match=r"ended the connection|No policy server"):
        policy.infer({"state": STATES[0]})


def test_refusals(tmp_path, checkpoint):
    with pytest.raises(DataError, match=r"No checkpoint at .*config\.json"):
        main([f"checkpoint={tmp_path}"])
    with pytest.raises(ConfigError, match=r"'prt'.*port"):
        main([f"checkpoint={checkpoint}", "prt=8000"])
    with pytest.raises(ConfigError, match="max_clients=0"):
        main([f"checkpoint={checkpoint}", "max_clients=0"])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Cannot listen on 127.0.0.1:{port}"):
            main([f"checkpoint={checkpoint}", f"port={port}", "device=cpu"])


def test_help(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "max_message_mb: 32" in out
    assert "n_inference_steps: null" in out


# ---------------------------------------------------------------------- what is remembered


EXECUTIONS = [
    {"name": "sync"},
    {"name": "async", "delay": 1},
    {"name": "rtc", "delay": 2},
    {"name": "rti", "n_steps": 2},
    {"name": "ensemble", "delay": 1},
]


@pytest.mark.parametrize("execution", EXECUTIONS, ids=lambda e: e["name"])
def test_each_client_has_a_memory_of_its_own(checkpoint, execution):
    windows = [STATES[i : i + 2] for i in (0, 4, 8)]
    served = load_served(checkpoint, device="cpu", execution=execution)
    served.warm_up()
    with serving(served) as address:
        clients = [RemotePolicy(address, timeout_s=30) for _ in range(2)]
        found = [[c.infer({"state": w})["actions"] for c in clients] for w in windows]
        again = [clients[0].infer({"state": w, RESET: i == 0})["actions"] for i, w in enumerate(windows)]
    for i in range(2):
        np.testing.assert_allclose([f[i] for f in found], by_itself(checkpoint, i, windows, **execution), atol=1e-6)
    assert not np.allclose(again[0], found[0][0])  # other noise
    assert np.isfinite(again).all()


def test_local_and_remote_are_alike(checkpoint):
    served = load_served(checkpoint, device="cpu")
    local = LocalPolicy(load_served(checkpoint, device="cpu"))
    with serving(served) as address:
        remote = RemotePolicy(address, timeout_s=30)
        assert remote.metadata == local.metadata
        for state in STATES[:3]:
            ours, theirs = local.infer({"state": state}), remote.infer({"state": state})
            assert ours.keys() | {"server_timing"} == theirs.keys()
            np.testing.assert_array_equal(ours[CHUNK], theirs[CHUNK])
            np.testing.assert_array_equal(ours["actions"], theirs[CHUNK][:4])
            assert theirs[CHUNK].shape == (7, 3)


@pytest.mark.parametrize("execution", [{"name": "rtc"}, {"name": "rti", "n_steps": 1}], ids=lambda e: e["name"])
def test_a_chunk_goes_on_where_the_client_says_that_it_is(checkpoint, execution):
    """Whatever was executed, and however long it took: the first ``delay`` actions are given back, then it joins on."""
    with serving(load_served(checkpoint, device="cpu", execution=execution)) as address:
        policy = RemotePolicy(address, timeout_s=30)
        assert policy.metadata["options"] == [RESET, PREV_CHUNK, DELAY]
        first = policy.infer({"state": STATES[:2]})[CHUNK]
        jumps, free = [], []
        for executed, delay in [(1, 0), (2, 1), (3, 3), (5, 2)] * 3:
            left = first[executed:]
            request = {"state": STATES[:2], PREV_CHUNK: left, DELAY: delay}
            chunk = policy.infer(request)[CHUNK]
            assert chunk.shape == (7, 3)
            np.testing.assert_allclose(chunk[:delay], left[:delay], atol=1e-6)
            if delay < len(left):
                jumps.append(np.abs(chunk[delay] - left[delay]).mean())
                alone = policy.infer({"state": STATES[:2], RESET: True})[CHUNK]
                free.append(np.abs(alone[delay] - left[delay]).mean())
    assert np.mean(jumps) < 0.5 * np.mean(free)


def test_a_trained_prefix_is_what_will_have_been_executed(tmp_path):
    """The answer depends on the actions up to the delay, and on none after it."""
    store = make_store(tmp_path / "demo.zarr", ("state",))
    save_policy(tmp_path / "run", make(store, "flow", prefix=4).eval(), config("flow", "mlp", prefix=4))

    def answer(change):
        left = np.linspace(-0.5, 0.5, 15).reshape(5, 3)
        if change is not None:
            left[change] += 0.3
        served = load_served(tmp_path / "run", device="cpu", execution={"name": "prefix"})
        return LocalPolicy(served).infer({"state": STATES[:2], PREV_CHUNK: left, DELAY: 2})[CHUNK][2:]

    plain = answer(None)
    for action in range(5):
        assert np.allclose(answer(action), plain) == (action >= 2), action


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({PREV_CHUNK: np.zeros((9, 3))}, r"1 to 7 actions.*\(9, 3\)"),
        ({PREV_CHUNK: np.zeros((0, 3))}, "1 to 7 actions"),
        ({PREV_CHUNK: np.full((4, 3), np.nan)}, "all finite"),
        ({PREV_CHUNK: np.zeros((4, 2))}, r"\(n, 3\)"),
        ({PREV_CHUNK: [[0.0]]}, "a list"),
        ({PREV_CHUNK: np.zeros((2, 3)), DELAY: 3}, "deft/delay=3"),
        ({DELAY: 1}, "deft/delay=1"),
        ({DELAY: 0.5}, "whole number"),
        ({RESET: "yes"}, "true or false"),
        ({"deft/dely": 1}, "deft/dely"),
        ({"state": np.full(7, np.nan, np.float32)}, "'state' holds values that are not finite"),
        ({"state": [[1.0], [1.0, 2.0]]}, "'state' is no array"),
        ({"state": {}}, "'state' is"),
        ({"state": "text"}, "'state' is"),
    ],
)
def test_requests_that_do_not_fit(rtc, more, why):
    with pytest.raises(ContractError, match=why):
        rtc.infer({"state": STATES[0], **more})


@pytest.fixture(scope="module")
def rtc(checkpoint):
    return LocalPolicy(load_served(checkpoint, device="cpu", execution={"name": "rtc"}))


def test_numbers_of_another_width_are_taken(rtc):
    for state in (STATES[0].astype("float64"), STATES[0].astype(">f4"), STATES[0].tolist(), STATES[:2].astype("f2")):
        assert rtc.infer({"state": state})["actions"].shape == (4, 3)


def test_windows_and_frames_do_not_mix(tmp_path):
    store = make_store(tmp_path / "demo.zarr", ("rgb", "state"))
    local = LocalPolicy(ServedPolicy(make(store).eval()))
    rgb = np.zeros((2, 64, 64, 3), np.uint8)
    assert local.infer({"state": STATES[:2], "rgb": rgb})["actions"].shape == (4, 3)
    with pytest.raises(ContractError, match=r"\['rgb'\] are windows, \['state'\] are single"):
        local.infer({"state": STATES[0], "rgb": rgb})
    with pytest.raises(ContractError, match=r"'rgb' is \(2, 64, 64, 3\) float64"):
        local.infer({"state": STATES[0], "rgb": rgb / 255})


def test_a_policy_that_is_not_well_says_so(checkpoint):
    policy = load_policy(checkpoint)
    with torch.no_grad():
        next(policy.parameters()).fill_(torch.nan)
    with pytest.raises(ContractError, match="not finite"):
        LocalPolicy(ServedPolicy(policy)).infer({"state": STATES[0]})


# ---------------------------------------------------------------------- as a base


def test_a_remote_policy_is_a_base(checkpoint, monkeypatch):
    policy = load_policy(checkpoint)
    with serving(load_served(checkpoint, device="cpu", execution={"name": "rtc"})) as address:
        monkeypatch.setenv("DEFT_POLICY_SERVER", address)
        options = {"source": "real_robot.remote.client:make", "n_obs_steps": 2, "n_action_steps": 4}
        base = BlackBox(policy.spec, policy.normaliser, **options)
        windows = {"state": torch.from_numpy(np.stack([STATES[:2], STATES[5:7]]))}
        actions = base.act(windows)
        found = by_itself(checkpoint, 0, [STATES[:2], STATES[5:7]])
        np.testing.assert_allclose(actions[0], found[0], atol=1e-6)
        other = dataclasses.replace(policy.spec, obs={})
        with pytest.raises(ContractError, match="observation 'state'"):
            BlackBox(other, policy.normaliser, **options)


@pytest.mark.slow
def test_fine_tunes_a_remote_policy(tmp_path):
    """Imitation on the toy, served; then a residual on what the server answers."""
    task = commands.words("task=toy task.episode_length=15 task.speed=0.2 obs=state data.n_demos=4 data.n_workers=0")
    trained = tmp_path / "trained"
    argv = [*commands.TINY, *task, f"data.root={tmp_path}", f"run_dir={trained}", "algo.train_steps=30"]
    done = commands.python("train.py", *argv, "algo.save_every=30", "eval.n_episodes=2", "eval.n_envs=1")
    assert done.status == 0, done.err
    served = load_served(trained, device="cpu")
    with serving(served) as address:
        residual = commands.words("""
            algo=residual algo.env_steps=150 algo.save_every=50 eval.every=100 eval.every_n_episodes=6 eval.n_episodes=2
            eval.n_envs=1 eval.n_videos=0 log.every=10 device=cpu precision=fp32 algo.hidden=[16] algo.batch_size=16
            algo.critic_hidden=[16] algo.learning_starts=40 algo.warmup_steps=80 algo.hold=2
            base=real_robot.remote.client:make
        """)
        ta = f"n_action_steps={served.policy.n_action_steps}"
        argv = [*residual, *task, ta, f"data.root={tmp_path}", f"run_dir={tmp_path / 'run'}"]
        done = commands.python("train.py", *argv, DEFT_POLICY_SERVER=address)
    assert done.status == 0, done.err
    assert done.summary["base_success_rate"] is not None
