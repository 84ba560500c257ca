"""Measures a policy: ``python eval.py checkpoint=RUN_DIR n_episodes=100 seed=10000``.

Prints, as its last line, one JSON object with the success rate, its Wilson interval, chunk latencies and the seeds; and
writes the same object beside the checkpoint. The result does not depend on the number of parallel environments: the
initial condition and the policy's noise belong to the episode.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: this may start the interpreter anew
    from launch.memory import keep_large_tensors

    keep_large_tensors()

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from configs.loader import check_at_least, help_text, load_config
from data.construct import construct
from data.errors import ConfigError
from envs.base import Frame
from envs.evaluate import Episode, EpisodeResult, evaluate, summarise
from envs.make import make_env
from envs.video import write_video
from envs.worker import Film
from launch.contract import take_environment
from launch.live import on_robot
from launch.processes import join_processes
from launch.terminal import Bar, Interrupted, console, run_main
from policies.checkpoint import check_contract, find_checkpoint, load_policy, read_config
from policies.compiled import compile_policy
from policies.export import export_onnx
from policies.foreign.lerobot_write import write_lerobot
from policies.inference.composed import Composed
from policies.inference.evaluations import count_evaluations
from policies.inference.execution import build_execution
from policies.inference.smoothness import smoothness
from policies.policy import Policy

USAGE = """python eval.py checkpoint=RUN_DIR [n_episodes=100] [seed=10000] [policy.n_inference_steps=1] [key=value ...]
       python eval.py checkpoint=RUN_DIR execution.name=rtc execution.delay=2
       python eval.py checkpoint=RUN_DIR export=onnx [out=policy.onnx]
       python eval.py checkpoint=RUN_DIR export=lerobot [out=FOLDER]"""
FILM_EVERY = 4  # control steps between two pictures of a video


def evaluate_policy(
    policy: Policy,
    env_args: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    n_envs: int = 1,
    n_videos: int = 0,
    processes: PartialState | None = None,
    on_episode: Callable[[int], None] | None = None,
) -> list[EpisodeResult]:
    """Runs the episodes ``seeds``, shared out over the processes; every process returns all results, in their order.

    Args:
        policy: in eval mode; acts on one environment at a time, so that results do not depend on batching.
        env_args: of the environment (``TaskSpec.env_args``).
        seeds: one per episode; decide its initial condition and the policy's noise.
        n_envs: parallel environments in this process.
        n_videos: record the first so many episodes.
        processes: this one among all; by default it is the only one.
        on_episode: called with the number of episodes this process has finished; may raise Interrupted to stop.
    """
    rank, world_size = (processes.process_index, processes.num_processes) if processes else (0, 1)
    device = policy.device

    def act(obs: Mapping[str, Tensor], episode: Episode) -> Tensor:
        on_device = {k: v.to(device) for k, v in obs.items()}
        actions, episode.memory = policy.act_from(on_device, episode.memory, episode.generator)
        return actions.cpu()

    done: list[EpisodeResult] = []

    def finished(result: EpisodeResult) -> None:
        done.append(result)
        if on_episode:
            on_episode(len(done))

    # One thread: the workers need the other cores, threads that wait for each other on busy cores are several times
    # slower than one, and the result does not depend on how many cores a machine has.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
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
        interrupted: list[str] = []
    except Interrupted as e:
        results, interrupted = [], [str(e)]
    finally:
        torch.set_num_threads(threads)
    if world_size > 1:
        results, interrupted = gather_object(results), gather_object(interrupted)
    if interrupted:
        raise Interrupted(interrupted[0])
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


def set_options(section: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given a value."""
    return {k: v for k, v in section.items() if v is not None}


def execution_summary(
    options: Mapping[str, Any],
    results: Sequence[EpisodeResult],
    n_action_steps: int,
    evaluations: int,
    processes: PartialState,
) -> dict[str, Any]:
    """How it was executed: ``options``, network evaluations per chunk (``nfe``), and ``smoothness``."""
    if processes.num_processes > 1:
        evaluations = sum(gather_object([evaluations]))
    n_chunks = sum(len(r.latencies_ms) for r in results)
    smooth = smoothness([r.actions for r in results], n_action_steps, options["delay"])
    return {**options, "n_action_steps": n_action_steps, "nfe": round(evaluations / n_chunks, 3), **smooth}


def refuse_seen(seeds: Sequence[int], demo_seeds: Sequence[int]) -> None:
    """Raises ConfigError when an episode of the evaluation is a demonstration."""
    seen = set(seeds) & set(demo_seeds)
    if seen:
        raise ConfigError(
            f"{len(seen)} of the evaluation's seeds ({', '.join(map(str, sorted(seen)[:3]))}"
            f"{', ...' if len(seen) > 3 else ''}) are demonstrations it is trained on; choose another seed."
        )


def composed(
    policy: Policy, compose: Mapping[str, Any], device: torch.device, n_action_steps: int | None
) -> tuple[Policy, list[int]]:
    """``policy`` and the one of compose.checkpoint as one, and the latter's demonstrations."""
    folder = find_checkpoint(compose["checkpoint"])
    other = load_policy(folder, device=device, n_action_steps=n_action_steps)
    options = {k: v for k, v in compose.items() if k != "checkpoint"}
    together = construct(Composed, options, "compose", a=policy, b=other)
    return together, read_config(folder)["meta"].get("demo_seeds", [])


def export(config: Mapping[str, Any], folder: Path, policy: Policy, frame: Frame) -> int:
    """``export=onnx``: the file, and how it compares; runs no episodes."""
    path = Path(config["out"] or folder.parent / "export")
    path = path if path.suffix == ".onnx" else path / "policy.onnx"
    obs = {k: torch.as_tensor(v).expand(1, policy.n_obs_steps, *v.shape) for k, v in frame.items()}
    found = export_onnx(policy.cpu(), path, obs)
    console.print(f"wrote {path}: {found.onnx_ms:.2f} ms a chunk with onnxruntime, {found.torch_ms:.2f} ms with torch")
    print(json.dumps(asdict(found)))
    return 0


def export_lerobot(config: Mapping[str, Any], folder: Path, policy: Policy) -> int:
    """``export=lerobot``: the folder."""
    path = Path(config["out"] or folder.parent / "export" / "lerobot")
    write_lerobot(policy.cpu(), read_config(folder, config["features"]), path)
    console.print(f"wrote {path}: DiffusionPolicy.from_pretrained('{path}') of LeRobot 0.4 loads it")
    print(json.dumps({"path": str(path), "files": sorted(f.name for f in path.iterdir())}))
    return 0


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(help_text("eval", USAGE))
        return 0
    config = load_config("eval", argv)
    check_at_least(1, config, ["n_episodes", "n_envs", "n_action_steps", "policy.n_inference_steps"])
    check_at_least(0, config, ["n_videos", "seed", "execution.delay"])
    if config["export"] not in (None, "onnx", "lerobot"):
        raise ConfigError(f"export={config['export']}: onnx and lerobot are what there is.")
    folder = find_checkpoint(config["checkpoint"])
    processes, device = join_processes(config["device"])
    policy = load_policy(
        folder,
        device=device,
        overrides=set_options(config["policy"]),
        n_action_steps=config["n_action_steps"],
        black_box=config["black_box"],
        features=config["features"],
    )
    if config["export"] == "lerobot":
        return export_lerobot(config, folder, policy)
    changes = set_options(config["task"])
    take_environment(policy, changes)
    seen = list(read_config(folder, config["features"])["meta"].get("demo_seeds", []))
    compose = set_options(config["compose"])
    if "checkpoint" in compose:
        policy, more = composed(policy, compose, device, config["n_action_steps"])
        seen += more
    if config["compile"] and config["export"] is None:
        compile_policy(policy)
    execution = set_options(config["execution"])
    policy = build_execution(policy, execution)
    if "server" in changes:
        env_args = on_robot(policy.spec, {"suite": "real", **changes}).env_args
    else:
        env_args = {**policy.spec.env_args, **changes}
    with closing(make_env(env_args)) as env:
        check_contract(policy, env.spec, f"Task {env.spec.name}")
        if config["export"] is not None:
            return export(config, folder, policy, env.reset(config["seed"]))
    seeds = [config["seed"] + i for i in range(config["n_episodes"])]
    refuse_seen(seeds, seen)
    with (
        Bar(f"evaluating {env.spec.name}", len(seeds), enabled=processes.is_main_process) as bar,
        count_evaluations(policy) as count,
    ):
        results = evaluate_policy(
            policy,
            env_args,
            seeds,
            n_envs=config["n_envs"],
            n_videos=config["n_videos"],
            processes=processes,
            on_episode=lambda done: bar.update(min(len(seeds), done * processes.num_processes)),
        )
    executed = execution_summary(execution, results, policy.n_action_steps, count.n, processes)
    if not processes.is_main_process:
        return 0
    summary = {**summarise(results), "task": env.spec.name, "checkpoint": str(config["checkpoint"])}
    summary |= {"execution": executed, **({"compose": compose} if "checkpoint" in compose else {})}
    out = Path(config["out"] or folder.parent / "evaluations" / f"seed{seeds[0]}-n{len(seeds)}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "eval.json").write_text(json.dumps(summary) + "\n")
    for path in [out / "eval.json", *save_videos(results, out, env.spec.control_hz)]:
        console.print(f"wrote {path}")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    run_main(main)
