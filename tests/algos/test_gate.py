"""Gate, trust and history: what keeps a fine-tuner honest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from algos.gate import check_gate
from algos.off_policy import OffPolicy
from algos.trust import Trust
from data.errors import TrainingError
from envs.base import ChunkStep
from envs.evaluate import wilson_interval
from launch.history import History, smoothed


@dataclass
class End:
    success: bool
    length: int = 10
    digest: str = "a"


def ends(*successes):
    return [End(bool(s)) for s in successes]


def test_exact_gate_looks_at_every_episode():
    check_gate(ends(1, 0, 1), ends(1, 0, 1), exact=True)
    with pytest.raises(TrainingError, match=r"2/3 episodes succeed under the base, 2/3 .* 2 of 3"):
        check_gate(ends(1, 0, 1), ends(0, 1, 1), exact=True)
    with pytest.raises(TrainingError, match="acted differently"):
        check_gate([End(True)], [End(True, digest="b")], exact=True)


def test_other_gate_allows_what_chance_allows():
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        try:
            check_gate(ends(*(rng.random(50) < 0.5)), ends(*(rng.random(50) < 0.5)), exact=False)
        except TrainingError:
            refused += 1
    assert refused <= 6
    with pytest.raises(TrainingError, match=r"30/50 .* 5/50"):
        check_gate(ends(*[1] * 30, *[0] * 20), ends(*[1] * 5, *[0] * 45), exact=False)


def test_trust_follows_the_wilson_bounds():
    rng = np.random.default_rng(1)
    trust, seen, active = Trust(window=20, z=1.0), [], False
    trust.base(12, 20)
    for i in range(400):
        success = bool(rng.random() < (0.3 if i < 100 else 0.95 if i < 250 else 0.2))
        seen.append(success)
        recent = seen[-20:]
        low, high = wilson_interval(sum(recent), len(recent), z=1.0)
        if len(recent) >= 10:
            active = True if low > 0.6 else False if high < 0.6 else active
        assert trust.add(success) == active
    states = [trust.state_dict()]
    other = Trust(window=20, z=1.0)
    other.load_state_dict(states[0])
    assert other.add(True) == trust.add(True)


def test_an_unknown_base_is_not_passed():
    trust = Trust(window=10)
    assert not any(trust.add(True) for _ in range(50))


def test_a_base_that_was_not_measured_is_measured_in_training():
    options = dict(batch_size=2, utd_ratio=0.0, n_step=1, learning_starts=0, warmup_steps=0, base_fraction=1.0,
                   quiet_fraction=1.0, replay_size=100, replay_gb=1.0, replay_dir=None, value_low=None,
                   value_high=None, seed=0)  # fmt: skip
    x, no = {"x": torch.zeros(1, 2)}, torch.zeros(1, dtype=torch.bool)
    for beforehand, expected in (((3, 4), (3, 4)), ((0, 0), (2, 5))):
        core = OffPolicy(1, **options)
        core.trust.base(*beforehand)
        for success in (True, False, True, False, None):  # the last one is cut before anything was done
            core.roles.warming_up = core.warming_up
            core.roles.begin(~no, core.generator)
            steps = torch.tensor([0 if success is None else 4])
            won = torch.tensor([bool(success)])
            core.store(x, torch.zeros(1, 1), ChunkStep(x, x, won * 1.0, ~won * 1.0, won, ~won, won, steps), x)
        assert (core.trust.base_successes, core.trust.base_episodes) == expected
        assert len(core.replay) == 4
        assert core.env_steps == 16


def test_dip_is_of_the_smoothed_evaluations():
    history = History()
    assert history.dip() is None
    history.begin({"success_rate": 0.5, "success_ci95": [0.4, 0.6]})
    for step, rate in enumerate([0.5, 0.2, 0.35, 0.9, 0.95]):
        history.evaluated(step * 1000, rate)
    assert smoothed([0.5, 0.2]) == [0.35]
    assert history.dip() == pytest.approx(0.5 - 0.35)
    facts = history.facts()
    assert (facts["env_steps_to_90"], facts["env_steps_to_95"]) == (3000, 4000)
    again = History()
    again.load_state_dict(history.state_dict())
    assert again.facts() == facts


def test_as_good_as_takes_three_evaluations_in_a_row():
    history = History()
    reached = []
    for rate in (1.0, 1.0, 0.9, 1.0, 0.98, 0.99):
        history.evaluated(1000, rate)
        reached.append(history.as_good_as(0.99))
    assert reached == [False, False, False, False, False, True]
    assert not history.as_good_as(None)
