"""The measured success belongs to the policy and the seeds, not to how the episodes were run."""

from __future__ import annotations

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ConfigError, ContractError, DataError
from envs.evaluate import EpisodeResult, evaluate, summarise, wilson_interval
from envs.video import write_video
from envs.worker import Film

TOY = {"suite": "toy", "obs": ["state"], "episode_length": 25, "radius": 0.15}


def noisy_expert(obs, episode):
    """Towards the goal, with noise large enough to fail sometimes."""
    state = obs["state"][:, -1]
    towards = ((state[:, 2:] - state[:, :2]) / 0.1).clamp(-1, 1)
    return towards[:, None] * 0.6 + 0.9 * torch.randn(1, 4, 2, generator=episode.generator)


def outcome(results):
    return [(r.seed, r.success, r.episode_return, r.length, len(r.latencies_ms)) for r in results]


def test_does_not_depend_on_how_many_run_side_by_side():
    seeds = [5, 3, 9, 0, 7, 1, 2]
    runs = [
        evaluate(noisy_expert, TOY, seeds, n_envs=n, n_obs_steps=2, n_action_steps=4, **how)
        for n, how in ((1, {"in_process": True}), (3, {"in_process": True}), (4, {"n_workers": 2}), (20, {}))
    ]
    assert [r.seed for r in runs[0]] == seeds
    assert all(outcome(run) == outcome(runs[0]) for run in runs)
    assert sum(r.success for r in runs[0]) > 0
    alone = evaluate(noisy_expert, TOY, [9], n_envs=1, n_obs_steps=2, n_action_steps=4, in_process=True)
    assert outcome(alone) == outcome(runs[0][2:3])


def test_metaworld_with_point_clouds_in_two_workers():
    args = {"suite": "metaworld", "name": "reach-v3", "episode_length": 12, "n_points": 64}

    def act(obs, episode):
        centre = obs["pointcloud"][:, -1].mean(1)
        return (0.1 * centre.sum() + torch.randn(1, 4, 4, generator=episode.generator)).clamp(-1, 1)

    runs = [evaluate(act, args, range(3), n_envs=n, n_obs_steps=2, n_action_steps=4, in_process=n == 1) for n in (1, 2)]
    assert outcome(runs[0]) == outcome(runs[1])


def test_films_the_chosen_episodes():
    done = []
    results = evaluate(
        noisy_expert, TOY, [1, 2, 3], n_envs=2, n_obs_steps=1, n_action_steps=4, in_process=True,
        video_seeds=[2], film=Film(every=2, height=32, width=48), on_episode=lambda r: done.append(r.seed),
    )  # fmt: skip
    assert sorted(done) == [1, 2, 3]
    assert [r.video is not None for r in results] == [False, True, False]
    video = results[1].video
    assert video is not None
    assert len(video) == results[1].length // 2 + 2  # the first moment, every second step, and the last
    assert video[0].shape == (32, 48, 3)


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_videos_can_be_read_back(tmp_path, ending):
    frames = [np.full((34, 50, 3), 20 * i, np.uint8) for i in range(6)]
    path = write_video(frames, tmp_path / "a" / f"film.{ending}", fps=10)
    assert sum(1 for _ in imageio.get_reader(path)) == 6
    with pytest.raises(DataError, match="no frames"):
        write_video([], path)
    with pytest.raises(DataError, match=r"\.mp4 or \.gif"):
        write_video(frames, tmp_path / "film.txt")


def test_bad_policies_are_named():
    def run(act):
        evaluate(act, TOY, [0], n_envs=1, n_obs_steps=1, n_action_steps=4, in_process=True)

    with pytest.raises(ContractError, match=r"\(1, 3, 2\), expected \(1, 4, 2\)"):
        run(lambda obs, noise: torch.zeros(1, 3, 2))
    with pytest.raises(ContractError, match="not finite"):
        run(lambda obs, noise: torch.full((1, 4, 2), float("nan")))


def test_summary():
    results = [EpisodeResult(i, i % 4 == 0, float(i), 10 * i, [1.0, 2.0, 3.0]) for i in range(8)]
    summary = summarise(results)
    assert summary["success_rate"] == 0.25
    assert summary["n_episodes"] == 8
    assert summary["mean_return"] == 3.5
    assert summary["mean_length"] == 35.0
    assert summary["chunk_latency_ms_p50"] == 2.0
    assert summary["seeds"] == list(range(8))
    low, high = summary["success_ci95"]
    assert low < 0.25 < high
    with pytest.raises(ConfigError, match="no episodes"):
        summarise([])


def test_wilson_interval_known_values():
    # Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for (k, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        np.testing.assert_allclose(wilson_interval(k, n), expected, atol=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_interval_holds_the_rate_and_is_symmetric(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    np.testing.assert_allclose(wilson_interval(n - k, n), (1 - high, 1 - low), atol=1e-12)
