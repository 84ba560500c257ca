"""Every fine-tuner climbs from its base on the toy: `make climb`, a minute or two for each."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.entry.commands import run_command, words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1900)]  # two commands of 900 s at most

N = "eval.n_episodes=200"
TOY = words(f"""
    task=toy obs=state data.n_demos=10 data.n_workers=0 {N} eval.n_videos=0 device=cpu precision=fp32 seed=0
""")
BASE = words("""
    algo.train_steps=300 algo.batch_size=64 network.hidden_dim=128 network.n_blocks=2 policy.n_inference_steps=4
""")
LOOP = words(f"eval.every_n_episodes=50 {N} eval.n_videos=0 device=cpu precision=fp32")
SMALL = words("algo.hidden=[64,64] algo.critic_hidden=[64,64] algo.batch_size=64 algo.n_critics=2 algo.utd_ratio=1")
OFF_POLICY = [*SMALL, "algo.demos=false", "algo.warmup_steps=2000", "eval.every=2000"]
CLIMBS = {
    "residual": [
        *OFF_POLICY,
        *words("algo.env_steps=10000 algo.hold=2 algo.scale=0.7 algo.explore_std=0.2 algo.n_step=2 algo.prior=0.005"),
    ],
    "dsrl": [*OFF_POLICY, *words("algo.env_steps=20000 n_action_steps=4 algo.start_std=1 algo.prior=0.005")],
    # The toy's point turns at every step: corrections that are held over a chunk come too late for it
    "residual_ppo": words("""
        algo.env_steps=60000 eval.every=20000 algo.hold=1 algo.std=0.37 algo.actor_lr=1e-3 algo.adapt_lr=false
    """),
    "dppo": words("""
        algo.env_steps=100000 eval.every=20000 algo.hold=2 algo.n_finetuned_steps=5 algo.min_std=0.2 algo.actor_lr=3e-4
        algo.adapt_lr=false algo.clip_first=0.2 algo.clip_last=0.2 algo.target_kl=0.02 algo.rollout_steps=32
        algo.batch_size=512 algo.epochs=10
    """),
}
FROM_NOTHING = {
    "rlpd": ["algo.env_steps=4000", "algo.tau=0.01", *SMALL],
    "sac": ["algo.env_steps=16000", "algo.tau=0.01", "algo.alpha=0.2", "algo.learning_starts=1000", *SMALL],
}


def train(*argv: str) -> dict[str, Any]:
    done = run_command(sys.executable, "train.py", *argv, limit=900)
    assert done.status == 0, done.err
    return done.summary


@pytest.mark.parametrize("algo", CLIMBS)
def test_climbs_from_its_base(root, tmp_path, algo):
    policy = ["policy=diffusion", "policy.n_inference_steps=5"] if algo == "dppo" else []
    base = train(*TOY, *BASE, *policy, f"data.root={root}", f"run_dir={tmp_path / 'base'}")
    assert base["success_rate"] < 0.6, "nothing to climb"
    argv = [f"algo={algo}", f"base={tmp_path / 'base'}", *LOOP, *CLIMBS[algo]]
    tuned = train(*argv, f"run_dir={tmp_path / 'tuned'}")
    assert tuned["success_rate"] >= base["success_rate"] + 0.2, (base["success_rate"], tuned["success_rate"])
    if algo in ("residual", "dsrl"):  # what they hand out is watched (algos.trust)
        assert tuned["dip"] <= 0.1


@pytest.mark.parametrize("algo", FROM_NOTHING)
def test_climbs_from_nothing(root, tmp_path, algo):
    """RLPD from the sparse reward and ten demonstrations, SAC from the shaped reward alone."""
    reward = "dense" if algo == "sac" else "sparse"
    argv = [f"algo={algo}", f"task.reward={reward}", "n_obs_steps=1", *TOY, *FROM_NOTHING[algo]]
    tuned = train(*argv, f"data.root={root}", f"run_dir={tmp_path / 'run'}")
    assert tuned["success_rate"] >= 0.2, tuned["success_rate"]
