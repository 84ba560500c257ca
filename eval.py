"""Measures a policy: ``python eval.py checkpoint=RUN_DIR n_episodes=100 seed=10000``.

Prints, as its last line, one JSON object with the success rate, its Wilson interval, chunk latencies and the seeds; and
writes the same object beside the checkpoint. The result does not depend on the number of parallel environments: the
initial condition and the policy's noise belong to the episode.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from configs.loader import help_text, load_config
from data.errors import ConfigError
from envs.evaluate import EpisodeResult, evaluate, summarise
from envs.make import make_env
from envs.video import write_video
from envs.worker import Film
from launch.terminal import Bar, console, run_main
from policies.checkpoint import check_contract, find_checkpoint, load_policy, read_config
from policies.policy import Policy

USAGE = "python eval.py checkpoint=RUN_DIR [n_episodes=100] [seed=10000] [policy.n_inference_steps=1] [key=value ...]"


FILM_EVERY = 4  # control steps between two pictures of a video


def evaluate_policy(
    policy: Policy,
    env_args: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    n_envs: int = 1,
    n_videos: int = 0,
    rank: int = 0,
    world_size: int = 1,
    on_episode: Callable[[int], None] | None = None,
) -> list[EpisodeResult]:
    """Runs the episodes ``seeds``, shared out over the processes; every process returns all results, in their order.

    Args:
        policy: in eval mode; acts on one environment at a time, so that results do not depend on batching.
        env_args: of the environment (``TaskSpec.env_args``).
        seeds: one per episode; decide its initial condition and the policy's noise.
        n_envs: parallel environments in this process.
        n_videos: record the first so many episodes.
        rank, world_size: this process among all.
        on_episode: called with the number of episodes this process has finished; may raise to stop.
    """
    device = next(policy.parameters()).device

    def act(obs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        noise = policy.draw_noise(1, generator)
        return policy.act({k: v.to(device) for k, v in obs.items()}, noise=noise).cpu()

    done: list[EpisodeResult] = []

    def finished(result: EpisodeResult) -> None:
        done.append(result)
        if on_episode:
            on_episode(len(done))

    results = evaluate(
        act,
        dict(env_args),
        list(seeds)[rank::world_size],
        n_envs=n_envs,
        n_obs_steps=policy.n_obs_steps,
        n_action_steps=policy.n_action_steps,
        on_episode=finished,
        video_seeds=list(seeds)[:n_videos],
        film=Film(every=FILM_EVERY, height=240, width=240),
    )
    if world_size > 1:
        results = gather_object(results)
    order = {seed: i for i, seed in enumerate(seeds)}
    return sorted(results, key=lambda r: order[r.seed])


def save_videos(results: Sequence[EpisodeResult], folder: Path, control_hz: float) -> list[Path]:
    """One MP4, at the speed of the robot, for each episode that was filmed; names tell seed and outcome."""
    return [
        write_video(
            r.video, folder / f"seed{r.seed}-{'success' if r.success else 'failure'}.mp4", control_hz / FILM_EVERY
        )
        for r in results
        if r.video
    ]


def pick_device(name: str) -> torch.device:
    """ "auto" -> the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def set_options(section: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given a value."""
    return {k: v for k, v in section.items() if v is not None}


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(help_text("eval", USAGE))
        return 0
    config = load_config("eval", argv)
    if config["n_episodes"] < 1:
        raise ConfigError(f"n_episodes={config['n_episodes']} must be at least 1.")
    folder = find_checkpoint(config["checkpoint"])
    policy = load_policy(
        folder,
        device=pick_device(config["device"]),
        overrides=set_options(config["policy"]),
        n_action_steps=config["n_action_steps"],
    )
    env_args = {**policy.spec.env_args, **set_options(config["task"])}
    env = make_env(env_args)
    check_contract(policy, env.spec, f"Task {env.spec.name}")
    env.close()
    seeds = [config["seed"] + i for i in range(config["n_episodes"])]
    trained_on = set(read_config(folder)["meta"].get("demo_seeds", []))
    if trained_on & set(seeds):
        raise ConfigError(
            f"{len(trained_on & set(seeds))} of the evaluation seeds are demonstrations the policy was trained on; "
            "choose another seed=."
        )
    with Bar(f"evaluating {env.spec.name}", len(seeds)) as bar:
        results = evaluate_policy(
            policy, env_args, seeds, n_envs=config["n_envs"], n_videos=config["n_videos"], on_episode=bar.update
        )
    summary = {**summarise(results), "task": env.spec.name, "checkpoint": str(config["checkpoint"])}
    out = Path(config["out"] or folder.parent / "evaluations" / f"seed{seeds[0]}-n{len(seeds)}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "eval.json").write_text(json.dumps(summary) + "\n")
    for path in [out / "eval.json", *save_videos(results, out, env.spec.control_hz)]:
        console.print(f"wrote {path}")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    run_main(main)
