"""An encoder that the critics go on training: shifted images, observations kept whole, nothing of the base changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from algos.corrected import ResidualPolicy
from algos.residual import Residual
from data.errors import ConfigError
from data.normaliser import Normaliser
from envs.chunk_env import ChunkEnv
from envs.make import make_env
from policies.build import build_policy, normaliser_modes
from policies.checkpoint import load_policy, save_policy, wrapped_config
from policies.encoders.augment import random_shift
from tests.algos.conftest import TOY, base_config

SEES = {**TOY, "obs": ["agent_pos", "rgb_top"], "image_size": 48}
SMALL = {
    "hold": 2, "hidden": [16], "critic_hidden": [16], "n_critics": 2, "batch_size": 8, "learning_starts": 8,
    "warmup_steps": 16, "utd_ratio": 0.5, "encoder": "learned", "shift": 2,
}  # fmt: skip


def test_random_shift_by_brute_force():
    x = torch.randint(256, (40, 2, 5, 6, 3), dtype=torch.uint8)
    shifted = random_shift(x, 2, torch.Generator().manual_seed(0))
    rows = np.arange(-2, 7).clip(0, 4)
    cols = np.arange(-2, 8).clip(0, 5)
    found = set()
    for before, after in zip(x.numpy(), shifted.numpy(), strict=True):
        padded = before[:, rows][:, :, cols]
        matches = [
            (i, j) for i in range(5) for j in range(5) if (padded[:, i : i + 5, j : j + 6] == after).all()
        ]  # all frames by the same shift
        assert matches
        found.update(matches)
    assert len(found) > 10
    assert torch.equal(random_shift(x, 0), x)


def config():
    encoder = {"rgb": {"width": 8, "out_dim": 4, "n_keypoints": 4}, "state": {"hidden": [8]}}
    return {**base_config("flow"), "encoder": encoder}


@pytest.fixture
def base():
    env = make_env(SEES)
    rows = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    numbers = {"min": rows[0], "max": rows[1], "mean": rows.mean(0), "std": rows.std(0)}
    normaliser = Normaliser(normaliser_modes(env.spec), {"agent_pos": numbers, "action": numbers})
    torch.manual_seed(0)
    return build_policy(config(), env.spec, normaliser).eval()


def learner(base, **more):
    torch.manual_seed(1)
    return Residual(base, 2, **{**SMALL, **more})


def run(new, n, state=None):
    env = ChunkEnv(SEES, n_envs=2, n_obs_steps=2, n_action_steps=2, gamma=0.9, in_process=True)
    if state is None:
        obs, fresh = env.reset(), torch.ones(2, dtype=torch.bool)
    else:
        new.load_state_dict(state["learner"])
        obs, fresh = env.load_state_dict(state["env"]), state["fresh"]
    metrics, actions = {}, []
    for _ in range(n):
        actions.append(new.explore(obs, fresh))
        env.begin_step(actions[-1])
        metrics |= new.update()
        step = env.finish_step()
        new.observe(step)
        obs, fresh = step.obs, step.terminated | step.truncated
    return metrics, actions, copy.deepcopy({"learner": new.state_dict(), "env": env.state_dict(), "fresh": fresh})


def test_critics_train_the_copy_and_leave_the_base_alone(base):
    new = learner(base)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    start = {k: v.clone() for k, v in new.policy.features.encoder.state_dict().items()}
    assert all(torch.equal(v, before[f"encoder.{k}"]) for k, v in start.items())
    metrics, _, _ = run(new, 24)
    assert "gain" in metrics  # the actor has been updated as well
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    now = new.policy.features.encoder.state_dict()
    changed = [k for k in now if not torch.equal(now[k], start[k])]
    assert any("rgb_top" in k for k in changed)


def test_an_actor_update_moves_only_the_actor(base):
    new = learner(base)
    run(new, 24)
    batch = new.sight.open(new.core.batch(), new.generator)
    encoder = [p.clone() for p in new.policy.features.parameters()]
    actor = [p.clone() for p in new.policy.actor.parameters()]
    new.update_actor(batch)
    assert all(torch.equal(a, b) for a, b in zip(encoder, new.policy.features.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(actor, new.policy.actor.parameters(), strict=True))


def test_keeps_images_once_and_as_bytes(base):
    new = learner(base)
    run(new, 24)
    replay = new.core.replay
    assert set(replay._frames) == {"agent_pos", "rgb_top"}
    batch = replay.sample(5)
    assert batch.obs["rgb_top"].dtype == torch.uint8
    assert batch.obs["rgb_top"].shape[:2] == (5, 2)
    # At most To new frames a decision, however long the windows overlap
    assert replay._frames["rgb_top"].total <= 2 * 24 * 2 + 2 * 24


def test_resumes_bit_exactly(base):
    _, whole, _ = run(learner(base), 30)
    _, _, half = run(learner(base), 14)
    _, rest, _ = run(learner(base), 16, half)
    assert all(torch.equal(a, b) for a, b in zip(whole[14:], rest, strict=True))


def test_saved_and_loaded_it_acts_alike(base, tmp_path):
    new = learner(base)
    run(new, 24)
    new.policy.active.fill_(True)
    save_policy(tmp_path / "c", new.policy, wrapped_config(new.policy, config()))
    loaded = load_policy(tmp_path / "c")
    assert isinstance(loaded, ResidualPolicy)
    obs = {"agent_pos": torch.randn(3, 2, 2), "rgb_top": torch.randint(256, (3, 2, 48, 48, 3), dtype=torch.uint8)}
    noise = base.draw_noise(3)
    assert torch.equal(new.policy.act(obs, noise=noise), loaded.act(obs, noise=noise))
    assert not torch.equal(new.policy.act(obs, noise=noise), base.act(obs, noise=noise)[:, :2])


def test_refuses_what_there_is_nothing_to_learn_for(make_base):
    with pytest.raises(ConfigError, match="frozen"):
        Residual(make_base(), 2, **SMALL)
