"""ChunkEnv against a reference that steps one environment at a time and keeps every frame."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError, ContractError
from envs.chunk_env import ChunkEnv
from envs.make import make_env
from envs.pool import WorkerError

TOY = {"suite": "toy", "obs": ["state", "rgb_top"]}


class Reference:
    """One environment, step by step, every frame observed."""

    def __init__(self, env_args, n_obs_steps, gamma, seed_of):
        self.env, self.n_obs_steps, self.gamma, self.seed_of = make_env(env_args), n_obs_steps, gamma, seed_of
        self.episode = 0
        self.begin()

    def begin(self):
        self.frames = [self.env.reset(self.seed_of(self.episode))]

    def window(self):
        padded = [self.frames[0]] * (self.n_obs_steps - 1) + self.frames
        last = padded[len(padded) - self.n_obs_steps :]
        return {key: np.stack([frame[key] for frame in last]) for key in last[0]}

    def step(self, chunk):
        reward, success, n = 0.0, False, 0
        for action in chunk:
            result = self.env.step(action)
            self.frames.append(self.env.observe())
            reward += self.gamma**n * result.reward
            success |= result.success
            n += 1
            if result.terminated or result.truncated:
                break
        next_obs = self.window()
        discount = self.gamma**n * (not result.terminated)
        if result.terminated or result.truncated:
            self.episode += 1
            self.begin()
        return self.window(), next_obs, reward, discount, result.terminated, result.truncated, success, n


def assert_windows(batched, windows):
    for i, window in enumerate(windows):
        for key, value in window.items():
            np.testing.assert_array_equal(batched[key][i].numpy(), value, err_msg=f"environment {i}, {key}")


def compare(env_args, *, n_envs, n_obs_steps, n_action_steps, gamma, chunks, in_process, seed):
    def seed_of(env, episode):
        return 1000 * seed + 100 * env + episode

    rng = np.random.default_rng(seed)
    ends = {"terminated": 0, "truncated": 0, "midway": 0}
    with ChunkEnv(
        env_args,
        n_envs=n_envs,
        n_obs_steps=n_obs_steps,
        n_action_steps=n_action_steps,
        gamma=gamma,
        in_process=in_process,
        seed_fn=seed_of,
        n_workers=2,
    ) as env:
        references = [
            Reference(env_args, n_obs_steps, gamma, lambda episode, i=i: seed_of(i, episode)) for i in range(n_envs)
        ]
        assert_windows(env.reset(), [r.window() for r in references])
        for _ in range(chunks):
            actions = rng.uniform(-1.5, 1.5, (n_envs, n_action_steps, 2)).astype(np.float32)
            got = env.step(torch.from_numpy(actions))
            want = [r.step(a) for r, a in zip(references, actions, strict=True)]
            assert_windows(got.obs, [w[0] for w in want])
            assert_windows(got.next_obs, [w[1] for w in want])
            np.testing.assert_allclose(got.reward.numpy(), [w[2] for w in want], rtol=1e-6)
            np.testing.assert_allclose(got.discount.numpy(), [w[3] for w in want], rtol=1e-6)
            assert got.terminated.tolist() == [w[4] for w in want]
            assert got.truncated.tolist() == [w[5] for w in want]
            assert got.success.tolist() == [w[6] for w in want]
            assert got.n_steps.tolist() == [w[7] for w in want]
            assert got.reward.dtype == got.discount.dtype == torch.float32
            assert got.terminated.dtype == got.truncated.dtype == got.success.dtype == torch.bool
            assert got.n_steps.dtype == torch.int64
            ends["terminated"] += int(got.terminated.sum())
            ends["truncated"] += int(got.truncated.sum())
            ends["midway"] += sum(w[7] < n_action_steps for w in want)
    return ends


@settings(max_examples=60, deadline=None)
@given(
    n_envs=st.integers(1, 3),
    n_obs_steps=st.integers(1, 4),
    n_action_steps=st.integers(1, 6),
    gamma=st.sampled_from([0.9, 0.99, 1.0]),
    episode_length=st.integers(1, 12),
    radius=st.sampled_from([0.3, 0.8]),
    reward=st.sampled_from(["sparse", "dense"]),
    terminate=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_brute_force(
    n_envs, n_obs_steps, n_action_steps, gamma, episode_length, radius, reward, terminate, seed
):
    args = {
        **TOY,
        "episode_length": episode_length,
        "radius": radius,
        "reward": reward,
        "terminate_on_success": terminate,
        "speed": 0.3,
    }
    compare(
        args,
        n_envs=n_envs,
        n_obs_steps=n_obs_steps,
        n_action_steps=n_action_steps,
        gamma=gamma,
        chunks=6,
        in_process=True,
        seed=seed,
    )


def test_equals_brute_force_in_worker_processes_with_both_ends_midway():
    args = {**TOY, "episode_length": 7, "radius": 0.5, "speed": 0.3, "reward": "dense"}
    ends = compare(args, n_envs=3, n_obs_steps=3, n_action_steps=4, gamma=0.9, chunks=25, in_process=False, seed=1)
    assert ends["terminated"] >= 3
    assert ends["truncated"] >= 3
    assert ends["midway"] >= 6


def test_state_dict_returns_to_the_same_moment():
    args = {**TOY, "episode_length": 10, "radius": 0.4, "speed": 0.3}
    rng = np.random.default_rng(0)
    chunks = [torch.from_numpy(rng.uniform(-1, 1, (2, 3, 2)).astype(np.float32)) for _ in range(12)]
    with ChunkEnv(args, n_envs=2, n_obs_steps=2, in_process=True, base_seed=4) as env:
        env.reset()
        for chunk in chunks[:5]:
            last = env.step(chunk)
        state = env.state_dict()
        wanted = [env.step(chunk) for chunk in chunks[5:]]
    with ChunkEnv(args, n_envs=2, n_obs_steps=2, in_process=True, base_seed=4) as env:
        obs = env.load_state_dict(state)
        assert all(torch.equal(obs[k], last.obs[k]) for k in obs)
        for chunk, want in zip(chunks[5:], wanted, strict=True):
            got = env.step(chunk)
            assert torch.equal(got.reward, want.reward)
            assert all(torch.equal(got.obs[k], want.obs[k]) for k in got.obs)


def test_given_seeds_name_the_episodes():
    with ChunkEnv(TOY, n_envs=2, n_obs_steps=1, in_process=True) as env:
        first = env.reset([7, 8])["state"]
        env.reset([1, 2])
        assert torch.equal(env.reset([7, 8])["state"], first)
        assert env.seeds == [7, 8]


def test_wrong_actions_are_refused():
    with ChunkEnv(TOY, n_envs=2, n_obs_steps=1, n_action_steps=4, in_process=True) as env:
        with pytest.raises(ContractError, match="before reset"):
            env.step(torch.zeros(2, 4, 2))
        env.reset()
        with pytest.raises(ContractError, match=r"\(2, 3, 2\), expected \(2, 4, 2\)"):
            env.step(torch.zeros(2, 3, 2))
        bad = torch.zeros(2, 4, 2)
        bad[1, 2, 0] = float("nan")
        with pytest.raises(ContractError, match=r"environment\(s\) \[1\]"):
            env.step(bad)


def test_errors_of_a_worker_arrive_as_they_are():
    with pytest.raises(ConfigError, match="no observation 'sate'"):
        ChunkEnv({"suite": "toy", "obs": ["sate"]}, n_envs=2, n_obs_steps=1)
    with pytest.raises(ConfigError, match="at least 1"):
        ChunkEnv(TOY, n_envs=0, n_obs_steps=1)


def test_a_dead_worker_is_named():
    with ChunkEnv(TOY, n_envs=2, n_obs_steps=1, n_workers=2) as env:
        env.reset()
        children = psutil.Process().children()
        victim = next(c for c in children if "envs.worker" in " ".join(c.cmdline()))
        victim.send_signal(signal.SIGKILL)
        while victim.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        with pytest.raises(WorkerError, match=r"worker process of environments \[\d\] died \(signal SIGKILL\)"):
            env.step(torch.zeros(2, 2, 2))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(how):
    code = (
        "import signal, torch; from envs.chunk_env import ChunkEnv\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells start background jobs without one
        "env = ChunkEnv({'suite': 'toy'}, n_envs=2, n_obs_steps=2, n_workers=2)\n"
        "env.reset(); print('ready', flush=True)\n"
        "while True: env.step(torch.zeros(2, 4, 2))\n"
    )
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline().strip() == b"ready"
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.send_signal(how)
    parent.wait(timeout=20)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_workers_do_not_import_torch():
    code = "import sys, envs.worker, envs.metaworld; sys.exit('torch' in sys.modules)"
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}).returncode == 0
