"""A small trained-looking base policy on the toy, and ways to run a learner on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from algos.demos import demo_transitions
from data.episodes import EpisodeStore
from data.normaliser import Normaliser
from envs.chunk_env import ChunkEnv
from envs.evaluate import evaluate
from envs.make import make_env
from envs.worker import demonstrate
from policies.build import build_policy, normaliser_modes

torch.set_num_threads(1)

TOY = {"suite": "toy", "obs": ["state"], "episode_length": 12, "obstacle": 0.4, "speed": 0.2}
HEADS = {
    "flow": {"name": "flow", "n_inference_steps": 2},
    "ddim": {"name": "diffusion", "n_inference_steps": 3},
    "ddpm": {"name": "diffusion", "sampler": "ddpm", "n_train_steps": 5, "n_inference_steps": 5},
}
GAMMA = 0.95


def base_config(head: str) -> dict:
    return {
        "n_obs_steps": 2,
        "horizon": 6,
        "n_action_steps": 4,
        "policy": HEADS[head],
        "network": {"name": "mlp", "hidden_dim": 16, "n_blocks": 1, "time_dim": 8},
        "encoder": {"state": {"hidden": [8]}},
    }


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    env = make_env(TOY)
    store = EpisodeStore.create(tmp_path_factory.mktemp("demos") / "toy.zarr", env.spec)
    for seed in range(30):
        episode = demonstrate(env, 2**31 + seed, 2)
        if episode is not None:
            store.append(episode)
    return store


@pytest.fixture
def make_base(store):
    """make_base(head) -> an untrained ChunkPolicy whose weights are always the same."""

    def make(head: str = "flow"):
        torch.manual_seed(0)
        normaliser = Normaliser.fit(store, normaliser_modes(store.task))
        return build_policy(base_config(head), store.task, normaliser).eval()

    return make


def demos(store, learner, n=3):
    return demo_transitions(
        store, obs_keys=["state"], n_obs_steps=2, n_action_steps=learner.n_action_steps, gamma=GAMMA, n_episodes=n
    )


class Rollout:
    """explore, step, observe, update: the loop of train.py without its surroundings."""

    def __init__(self, learner, n_envs: int):
        self.learner = learner
        self.env = ChunkEnv(
            TOY, n_envs=n_envs, n_obs_steps=2, n_action_steps=learner.n_action_steps, gamma=GAMMA, in_process=True
        )
        self.obs, self.fresh = self.env.reset(), torch.ones(n_envs, dtype=torch.bool)
        self.metrics: dict = {}
        self.steps: list = []

    def run(self, n: int):
        for _ in range(n):
            actions = self.learner.explore(self.obs, self.fresh)
            self.env.begin_step(actions)
            if not self.learner.on_policy:
                self.metrics |= self.learner.update()
            step = self.env.finish_step()
            self.learner.observe(step)
            if self.learner.on_policy:
                self.metrics |= self.learner.update()
            self.obs, self.fresh = step.obs, step.terminated | step.truncated
            self.steps.append((actions, step))
        return self

    def state(self):
        return {"learner": self.learner.state_dict(), "env": self.env.state_dict(), "fresh": self.fresh}

    def load(self, state):
        self.learner.load_state_dict(state["learner"])
        self.obs, self.fresh = self.env.load_state_dict(state["env"]), state["fresh"]
        return self


def outcomes(policy, seeds=range(8)):
    """Episodes of a policy, as evaluate_policy runs them."""

    def act(obs, episode):
        actions, episode.memory = policy.act_from(obs, episode.memory, episode.generator)
        return actions

    return evaluate(
        act, TOY, list(seeds), n_envs=2, n_obs_steps=2, n_action_steps=policy.n_action_steps, in_process=True
    )


def returns(results):
    return np.array([(r.success, r.length, r.episode_return) for r in results])
