"""Steering a base through its noise: ours against stable-baselines3's SAC with the DSRL paper's hyperparameters.

    .venv-peers/bin/python benchmarks/dsrl_sb3.py --base runs/finetune/pick-place-v3-state-s0 [--seeds 0 1 2]

Both improve the same base on the same task, see the same normalised states, and are evaluated every 5000 environment
steps on the same 50 episodes; the training episodes have the same seeds as well. The recipe (section 2.2 of Wagenmaker
et al. 2025): w is the whole noise chunk in [-b, b], b = 1.5; reward -1 per chunk until success; 20 gradient steps per
chunk, batches of 256, learning rate 3e-4, tau 0.005, gamma 0.99 per chunk, temperature adjusted towards entropy 0,
three hidden layers of 128 with tanh, first the base's own noise (as many steps as ours waits; the paper waits 24,000,
which would only be later). It runs in this process; ours is train.py. One after the other: neither waits for the other.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: this may start the interpreter anew
    from launch.memory import keep_large_tensors

    keep_large_tensors()

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from chain import ROOT, ensure_run
from stable_baselines3 import SAC
from torch import Tensor

from algos.features import Features
from algos.wrapper import WrappedPolicy
from envs.chunk_env import ChunkEnv
from eval import evaluate_policy
from launch.session import PERIODIC_SEED_OFFSET
from policies.checkpoint import load_policy
from policies.chunk_policy import ChunkPolicy
from policies.policy import Obs

EVERY, EPISODES, BOUND = 5000, 50, 1.5
EVAL_SEEDS = [10_000 + PERIODIC_SEED_OFFSET + i for i in range(EPISODES)]  # those of train.py


class NoiseEnv(gym.Env):
    """One environment whose action is the base's noise chunk; ``env_steps`` counts control steps."""

    def __init__(self, base: ChunkPolicy, seed: int):
        self.base, self.features, self.env_steps = base, Features(base), 0
        self.env = ChunkEnv(
            base.spec.env_args, n_envs=1, n_obs_steps=base.n_obs_steps, n_action_steps=base.n_action_steps,
            in_process=True, base_seed=seed,
        )  # fmt: skip
        size = base.horizon * base.action_dim
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (self.features.out_dim(),), np.float32)
        self.action_space = gym.spaces.Box(-BOUND, BOUND, (size,), np.float32)
        self.obs: Obs = {}

    def see(self, obs: Obs) -> np.ndarray:
        return self.features(obs)[0].numpy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        del seed, options
        if not self.obs:
            self.obs = self.env.reset()
        return self.see(self.obs), {}

    @torch.no_grad()
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        noise = torch.from_numpy(action).view(1, self.base.horizon, self.base.action_dim)
        step = self.env.step(self.base.act(self.obs, noise=noise))
        self.env_steps += int(step.n_steps)
        self.obs = step.obs
        return self.see(step.next_obs), float(step.success) - 1.0, bool(step.terminated), bool(step.truncated), {}


class Steered(WrappedPolicy):
    """The base under a trained SAC."""

    def __init__(self, base: ChunkPolicy, model: SAC):
        super().__init__(base, {})
        self.features, self.model = Features(base), model

    def sample(self, obs: Obs, *, noise: Tensor | None = None) -> Tensor:
        w, _ = self.model.predict(self.features(obs).numpy(), deterministic=True)
        return self.base.sample(obs, noise=torch.from_numpy(w).view(-1, self.horizon, self.action_dim))


def peer(base: ChunkPolicy, seed: int, env_steps: int, wait: int, out: Path) -> list[dict[str, float]]:
    """Evaluations of stable-baselines3's SAC: env_steps, success_rate, seconds without evaluations."""
    if out.exists():
        return json.loads(out.read_text())
    env = NoiseEnv(base, seed)
    model = SAC(
        "MlpPolicy", env, learning_rate=3e-4, buffer_size=200_000, learning_starts=0, batch_size=256, tau=0.005,
        gamma=0.99, train_freq=1, gradient_steps=20, ent_coef="auto", target_entropy=0.0, seed=seed, device="cpu",
        policy_kwargs={"net_arch": [128, 128, 128], "activation_fn": torch.nn.Tanh},
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    obs, _ = env.reset()
    while env.env_steps < wait:  # the base's own noise
        w = np.clip(rng.standard_normal(env.action_space.shape), -BOUND, BOUND).astype(np.float32)
        after, reward, terminated, truncated, _ = env.step(w)
        info = [{"TimeLimit.truncated": truncated}]
        scaled = model.policy.scale_action(w)
        model.replay_buffer.add(
            obs, after, scaled[None], np.array([reward]), np.array([terminated or truncated]), info
        )  # fmt: skip
        obs = env.see(env.obs)
    curve: list[dict[str, float]] = []
    seconds, started = 0.0, time.perf_counter()

    def evaluate() -> None:
        nonlocal seconds, started
        seconds += time.perf_counter() - started
        results = evaluate_policy(steered, base.spec.env_args, EVAL_SEEDS)
        rate = sum(r.success for r in results) / len(results)
        curve.append({"env_steps": env.env_steps, "success_rate": rate, "seconds": seconds})
        print(f"stable-baselines3, seed {seed}: {curve[-1]}", flush=True)
        started = time.perf_counter()

    steered = Steered(base, model)
    steered.active.fill_(True)

    def after_step(*_: object) -> bool:
        if env.env_steps >= EVERY * (len(curve) + 1):
            evaluate()
        return env.env_steps < env_steps

    model.learn(total_timesteps=10**9, callback=after_step, reset_num_timesteps=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(curve))
    return curve


def ours(base: Path, seed: int, env_steps: int, folder: Path) -> list[dict[str, float]]:
    """The same of ``algo=dsrl`` with its defaults."""
    ensure_run(folder, [
        "algo=dsrl", f"base={base}", f"seed={seed}", f"algo.env_steps={env_steps}", f"eval.every={EVERY}",
        f"eval.every_n_episodes={EPISODES}", f"eval.n_episodes={EPISODES}", "eval.n_videos=0", "eval.n_envs=1",
    ])  # fmt: skip
    curve, seconds = [], 0.0
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        seconds = row.get("seconds", seconds)
        if "success_rate" in row and row["step"] > 0:
            curve.append({"env_steps": row["step"], "success_rate": row["success_rate"], "seconds": seconds})
    return curve


def reached(curve: list[dict[str, float]], rate: float) -> tuple[str, str]:
    """Environment steps and minutes of the first evaluation at ``rate`` or above."""
    first = next((p for p in curve if p["success_rate"] >= rate), None)
    return ("-", "-") if first is None else (f"{first['env_steps']:.0f}", f"{first['seconds'] / 60:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="run folder of a policy=flow or DDIM base")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--env-steps", type=int, default=100_000)
    parser.add_argument("--wait", type=int, default=3000, help="environment steps before the peer learns")
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "dsrl-sb3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = load_policy(args.base)
    assert isinstance(base, ChunkPolicy)
    print("| side | seed | steps to 90 % | minutes | to 95 % | minutes | last | worst |\n|" + "---|" * 8)
    for seed in args.seeds:
        name = f"{args.base.name}-s{seed}"
        curves = {
            "Deft": ours(args.base.absolute(), seed, args.env_steps, args.root / name),
            "stable-baselines3": peer(base, seed, args.env_steps, args.wait, args.root / f"{name}-sb3.json"),
        }
        for side, curve in curves.items():
            rates = [p["success_rate"] for p in curve]
            ends = (f"{rates[-1]:.2f}", f"{min(rates):.2f}")
            cells = [side, str(seed), *reached(curve, 0.9), *reached(curve, 0.95), *ends]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
