"""What actors and critics see: the critic's privileged states reach the critic, and nothing that is deployed."""

from __future__ import annotations

import pytest
import torch

from algos.dppo import DPPO
from algos.dsrl import DSRL
from algos.features import LIMIT, CriticFeatures, Features, Sight
from algos.residual import Residual
from data.errors import ConfigError
from data.normaliser import Normaliser
from envs.make import make_env
from launch.privileged import critic_features, unrecorded, with_observations
from tests.algos.conftest import TOY, Rollout, demos

SMALL = {"hidden": [16], "critic_hidden": [16], "batch_size": 8, "learning_starts": 5, "warmup_steps": 10}


def secret(width=3, n_obs_steps=2):
    rows = torch.tensor([[-1.0] * width, [1.0] * width])
    numbers = {"min": rows[0], "max": rows[1], "mean": rows.mean(0), "std": rows.std(0)}
    return CriticFeatures({"secret": (width,)}, Normaliser({"secret": "minmax"}, {"secret": numbers}), n_obs_steps)


def test_critic_features_are_normalised_and_bounded():
    window = torch.tensor([[[0.5, 1.0, -1.0], [100.0, -100.0, 0.0]]])
    got = secret()({"secret": window, "state": torch.zeros(1, 2, 4)})
    torch.testing.assert_close(got, torch.tensor([[0.5, 1.0, -1.0, LIMIT, -LIMIT, 0.0]]))
    assert secret().width == got.shape[1]


def test_sight_keeps_each_view_once(make_base):
    obs = {"state": torch.randn(3, 2, 4), "secret": torch.randn(3, 2, 3)}
    actor = Features(make_base())
    assert set(Sight(actor, None)(obs)) == {"features"}
    sight = Sight(actor, secret())
    seen = sight(obs)
    assert seen[sight.of_critic].shape == (3, sight.critic_width)
    assert torch.equal(seen["features"], actor(obs))


@pytest.mark.parametrize("variant", ["residual", "na", "sac"])
def test_critics_judge_by_what_only_they_see(make_base, variant):
    if variant == "residual":
        learner = Residual(make_base(), 2, critic_features=secret(), **SMALL, hold=1)
    else:
        learner = DSRL(make_base(), 2, critic_features=secret(), **SMALL, variant=variant, steer="chunk")
    obs = {"state": torch.randn(2, 2, 4), "secret": torch.randn(2, 2, 3)}
    seen = {k: v[:, None] for k, v in learner.sight(obs).items()}
    changed = {k: v[:, None] for k, v in learner.sight({**obs, "secret": obs["secret"] + 0.5}).items()}
    assert torch.equal(seen["features"], changed["features"])
    if isinstance(learner, Residual):
        base = torch.zeros(2, 1, 2)
        views = [learner.judged(s, base, base) for s in (seen, changed)]
        critic = learner.critic
    else:
        critic = learner.critic or learner.noise_critic
        width = critic.in_dim - learner.sight.critic_width
        views = [learner._judged(s, torch.zeros(2, width)) for s in (seen, changed)]
    assert not torch.equal(critic(views[0]), critic(views[1]))


@pytest.mark.parametrize("algo", [Residual, DSRL])
def test_learns_with_critics_that_see_more(make_base, store, algo):
    """Explores, stores and updates with demonstrations; the policy alone needs the policy's observations only."""
    features = critic_features(store.task, ["state"], 2, seed=0)
    assert features is not None
    learner = algo(make_base(), 1, critic_features=features, **SMALL, **({"hold": 2} if algo is Residual else {}))
    for demo in demos(store, learner):
        learner.add_demo(demo)
    metrics = Rollout(learner, 1).run(20).metrics
    assert torch.isfinite(metrics["critic_loss"])
    learner.policy.active.fill_(True)
    assert learner.policy.act({"state": torch.zeros(1, 2, 4)}).shape[-1] == 2


def test_dppo_values_by_what_only_the_critic_sees(make_base):
    learner = DPPO(make_base("ddim"), 2, critic_features=secret(), rollout_steps=4, hold=1)
    obs = {"state": torch.randn(2, 2, 4), "secret": torch.randn(2, 2, 3)}
    learner.explore(obs, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(learner._now["features"], secret()(obs))


def test_what_the_store_lacks_is_seen_by_acting_again(store):
    assert unrecorded(store, ["state"], 0) == {}
    env_args = with_observations({**TOY, "obs": []}, ["state"])
    assert make_env(env_args).spec.obs.keys() == {"state"}
    assert critic_features(store.task, [], 2, seed=0) is None
    with pytest.raises(ConfigError, match="nowhere"):
        critic_features(store.task, ["nowhere"], 2, seed=0)
