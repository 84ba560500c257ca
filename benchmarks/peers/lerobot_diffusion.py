"""LeRobot 0.4.4's DiffusionPolicy on state, as its own train script runs it: the peer of two speed benchmarks.

Everything measured here is LeRobot's own code, called through its public functions. This file only names the
sizes, writes the data set and times the parts. `benchmarks/peers/install_lerobot.sh` makes the environment.

    .venv-peers/bin/python benchmarks/peers/lerobot_diffusion.py --selftest

A peer side of a benchmark reads:

    root = make_dataset(tmp / "data", episodes, fps=80)
    run = make_training(root, make_config(down_dims=(64, 128, 256)), batch_size=64, num_workers=0)
    loss = train_step(run)                              # batch from LeRobot's loader, normalised, one update
    run.policy.eval()
    chunk = predict_chunk(run, states[-2:], noise=noise)

Its best settings depend on the machine, so a benchmark should try `num_workers` 0, 2 and 4 (the train script's
default is 4) and `mixed_precision` "no" and "bf16" (bf16 is many times slower on a CPU without AVX-512) and report
LeRobot's best. The last batch of each epoch is smaller (`drop_last=False`): count samples, not steps.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is on a hub, so never look there
os.environ.setdefault("HF_DATASETS_CACHE", str(Path(tempfile.gettempdir()) / "deft-peers-datasets"))

import numpy as np
import torch

_SCHEMAS: list[torch.library.Library] = []  # a Library's schemas live as long as the object


def _declare_torchvision_schemas() -> None:
    """Let torchvision's CUDA wheel import on a CPU torch.

    Its C++ library does not load there, and its Python registers shape functions for two operators that the
    library would have defined. Neither is ever called on state observations.
    """
    if "torchvision" in sys.modules or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # already defined
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _SCHEMAS.append(library)


_declare_torchvision_schemas()

import datasets  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from accelerate.utils import DistributedDataParallelKwargs  # noqa: E402
from lerobot.configs.default import DatasetConfig  # noqa: E402
from lerobot.configs.train import TrainPipelineConfig  # noqa: E402
from lerobot.configs.types import NormalizationMode  # noqa: E402
from lerobot.datasets.factory import make_dataset as open_dataset  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402
from lerobot.datasets.sampler import EpisodeAwareSampler  # noqa: E402
from lerobot.datasets.utils import cycle  # noqa: E402
from lerobot.optim.factory import make_optimizer_and_scheduler  # noqa: E402
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig  # noqa: E402
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy  # noqa: E402
from lerobot.policies.factory import make_policy as build_policy  # noqa: E402
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402
from lerobot.scripts.lerobot_train import update_policy  # noqa: E402
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker  # noqa: E402

REPO_ID = "deft/peer"
ACTION, STATE, ENV_STATE = "action", "observation.state", "observation.environment_state"
ROBOT_DIMS = 4  # Meta-World's hand position and gripper; LeRobot's own Meta-World environment has the same four
DEFAULT_DOWN_DIMS = (512, 1024, 2048)


def version() -> str:
    return importlib.metadata.version("lerobot")


def make_dataset(
    root: str | Path, episodes: Sequence[dict[str, np.ndarray]], fps: int = 10, robot_dims: int = ROBOT_DIMS
) -> Path:
    """Write `episodes` (`state` (T, Ds), `action` (T, Da), float32) as a LeRobotDataset v3.0 and return its root.

    DiffusionPolicy insists on an image or an environment state beside the robot's own, so the first
    `robot_dims` numbers become `observation.state` and the rest `observation.environment_state`. LeRobot
    concatenates the two again, so its network sees the same vector, in the same order, as an undivided state.
    """
    root = Path(root)
    n_state, n_action = episodes[0]["state"].shape[1], episodes[0]["action"].shape[1]
    if not 0 < robot_dims < n_state:
        raise ValueError(f"robot_dims={robot_dims} must leave both parts of a {n_state}-number state non-empty")
    sizes = {STATE: robot_dims, ENV_STATE: n_state - robot_dims, ACTION: n_action}
    features = {key: {"dtype": "float32", "shape": (size,), "names": None} for key, size in sizes.items()}
    dataset = LeRobotDataset.create(REPO_ID, fps, features, root=root, use_videos=False)
    for episode in episodes:
        for state, action in zip(episode["state"], episode["action"], strict=True):
            frame = {STATE: state[:robot_dims], ENV_STATE: state[robot_dims:], ACTION: action}
            dataset.add_frame({**frame, "task": "peer"})
        dataset.save_episode()
    dataset.finalize()
    return root


def make_config(
    down_dims: Sequence[int] = DEFAULT_DOWN_DIMS,
    n_obs_steps: int = 2,
    horizon: int = 16,
    n_action_steps: int = 8,
    diffusion_step_embed_dim: int = 128,
    kernel_size: int = 5,
    n_groups: int = 8,
    prediction_type: str = "epsilon",
    noise_scheduler_type: str = "DDIM",
    num_train_timesteps: int = 100,
    num_inference_steps: int = 10,
    device: str = "cpu",
    compile_model: bool = False,
    compile_mode: str = "default",
) -> DiffusionConfig:
    """LeRobot's configuration, its defaults wherever no argument says otherwise, with two exceptions.

    `DDIM` changes sampling only (the training schedule is DDPM's). The environment state is min-max normalised
    like everything else, where LeRobot would pass it on in raw units.
    """
    minmax = {kind: NormalizationMode.MIN_MAX for kind in ("STATE", "ENV", "ACTION")}
    return DiffusionConfig(
        down_dims=tuple(down_dims),
        n_obs_steps=n_obs_steps,
        horizon=horizon,
        n_action_steps=n_action_steps,
        drop_n_last_frames=horizon - n_action_steps - n_obs_steps + 1,  # LeRobot's own formula
        diffusion_step_embed_dim=diffusion_step_embed_dim,
        kernel_size=kernel_size,
        n_groups=n_groups,
        prediction_type=prediction_type,
        noise_scheduler_type=noise_scheduler_type,
        num_train_timesteps=num_train_timesteps,
        num_inference_steps=num_inference_steps,
        normalization_mapping=minmax,
        device=device,
        compile_model=compile_model,
        compile_mode=compile_mode,
        push_to_hub=False,
    )


def make_train_config(
    root: str | Path, config: DiffusionConfig, batch_size: int = 64, num_workers: int = 4, steps: int = 100_000
) -> TrainPipelineConfig:
    """The train script's configuration with the policy's optimiser and scheduler presets filled in."""
    return TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=REPO_ID, root=str(root)),
        policy=config,
        batch_size=batch_size,
        num_workers=num_workers,
        steps=steps,
        optimizer=config.get_optimizer_preset(),
        scheduler=config.get_scheduler_preset(),
    )


def make_policy(dataset: LeRobotDataset, config: DiffusionConfig) -> DiffusionPolicy:
    """LeRobot's DiffusionPolicy for the shapes of `dataset`."""
    return build_policy(cfg=config, ds_meta=dataset.meta)


def make_loader(
    dataset: LeRobotDataset, config: DiffusionConfig, batch_size: int, num_workers: int
) -> torch.utils.data.DataLoader:
    """The train script's loader: its episode-aware sampler and its DataLoader settings."""
    sampler = EpisodeAwareSampler(
        dataset.meta.episodes["dataset_from_index"],
        dataset.meta.episodes["dataset_to_index"],
        episode_indices_to_use=dataset.episodes,
        drop_n_last_frames=config.drop_n_last_frames,
        shuffle=True,
    )
    return torch.utils.data.DataLoader(
        dataset,
        num_workers=num_workers,
        batch_size=batch_size,
        sampler=sampler,
        pin_memory=config.device == "cuda",
        prefetch_factor=2 if num_workers > 0 else None,
    )


@dataclass
class Training:
    """What the train script holds in local variables while it trains."""

    config: TrainPipelineConfig
    dataset: LeRobotDataset
    policy: DiffusionPolicy
    preprocess: Callable[[dict[str, Any]], dict[str, Any]]
    postprocess: Callable[[torch.Tensor], torch.Tensor]
    accelerator: Accelerator
    optimizer: torch.optim.Optimizer
    scheduler: Any
    loader: torch.utils.data.DataLoader
    batches: Iterator[dict[str, Any]]
    tracker: MetricsTracker


def make_training(
    root: str | Path,
    config: DiffusionConfig,
    batch_size: int = 64,
    num_workers: int = 4,
    steps: int = 100_000,
    mixed_precision: str = "no",
) -> Training:
    """Everything up to the training loop, in the train script's order.

    `mixed_precision="bf16"` is what `accelerate launch --mixed_precision bf16 lerobot-train` does. accelerate
    allows one precision per process at a time: steps of two `Training`s interleave only at equal precision.
    """
    cfg = make_train_config(root, config, batch_size, num_workers, steps)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        cpu=config.device == "cpu",
        mixed_precision=mixed_precision,
    )
    dataset = open_dataset(cfg)
    policy = make_policy(dataset, config)
    preprocess, postprocess = make_pre_post_processors(policy_cfg=config, dataset_stats=dataset.meta.stats)
    optimizer, scheduler = make_optimizer_and_scheduler(cfg, policy)
    loader = make_loader(dataset, config, batch_size, num_workers)
    policy, optimizer, loader, scheduler = accelerator.prepare(policy, optimizer, loader, scheduler)
    meters = {name: AverageMeter(name, ":.3f") for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")}
    tracker = MetricsTracker(batch_size, dataset.num_frames, dataset.num_episodes, meters, accelerator=accelerator)
    policy.train()
    return Training(
        cfg, dataset, policy, preprocess, postprocess, accelerator, optimizer, scheduler, loader, cycle(loader), tracker
    )


def next_batch(run: Training) -> dict[str, Any]:
    """One batch from LeRobot's loader through its normalising preprocessor, without end."""
    return run.preprocess(next(run.batches))


def train_step(run: Training, batch: dict[str, Any] | None = None) -> float:
    """One iteration of the train script's loop; without `batch` it loads one, as the script does. Returns the loss."""
    batch = next_batch(run) if batch is None else batch
    update_policy(
        run.tracker,
        run.policy,
        batch,
        run.optimizer,
        run.config.optimizer.grad_clip_norm,
        accelerator=run.accelerator,
        lr_scheduler=run.scheduler,
    )
    run.tracker.step()
    return run.tracker.loss.val


def split_state(run: Training, states: np.ndarray) -> dict[str, torch.Tensor]:
    """(To, Ds) states as the (1, To, ...) observation of DiffusionPolicy, in environment units."""
    states = torch.from_numpy(np.asarray(states, np.float32))[None]
    robot_dims = run.policy.config.robot_state_feature.shape[0]
    return {STATE: states[..., :robot_dims], ENV_STATE: states[..., robot_dims:]}


@torch.inference_mode()
def predict_chunk(run: Training, states: np.ndarray, noise: torch.Tensor | None = None) -> np.ndarray:
    """(To, Ds) states to the (Ta, Da) actions to execute, both in environment units, at batch 1.

    The leanest path LeRobot has: observation history and chunk go through its normalisers whole, and the
    action queue of `select_action` stays out. Put the policy in eval mode first.
    """
    batch = run.preprocess(split_state(run, states))
    actions = run.policy.diffusion.generate_actions(batch, noise=noise)
    return run.postprocess(actions)[0].numpy()


@torch.inference_mode()
def select_chunk(run: Training, state: np.ndarray, noise: torch.Tensor | None = None) -> np.ndarray:
    """One chunk the way LeRobot's evaluation drives it: observation by observation, action by action.

    `n_action_steps` calls of `select_action`, the first of which generates the chunk from the policy's own
    history of observations. `state` (Ds,) is what every one of them observes.
    """
    actions = []
    for _ in range(run.policy.config.n_action_steps):
        observation = {key: value[0] for key, value in split_state(run, state[None]).items()}
        actions.append(run.postprocess(run.policy.select_action(run.preprocess(observation), noise=noise))[0])
    return torch.stack(actions).numpy()


def synthetic_episodes(n: int, length: int, n_state: int = 39, n_action: int = 4, seed: int = 0) -> list[dict]:
    """Smooth random walks: the speed of LeRobot does not depend on what the numbers say."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(size=(n, length, n_state)).cumsum(1).astype(np.float32)
    action = np.tanh(np.diff(walk[..., :n_action], axis=1, append=walk[:, -1:, :n_action])).astype(np.float32)
    return [{"state": s, "action": a} for s, a in zip(walk, action, strict=True)]


def _milliseconds(function: Callable[[], object], repeats: int, warmup: int = 2) -> tuple[float, float]:
    """Median and mean time of `function`."""
    times = []
    for index in range(repeats + warmup):
        start = time.perf_counter()
        function()
        if index >= warmup:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), statistics.mean(times)


def _time_parts(run: Training, batch: dict[str, Any], repeats: int) -> dict[str, float]:
    """The parts of `update_policy` one by one, median milliseconds."""
    parts: dict[str, list[float]] = {"forward": [], "backward": [], "clip": [], "optimizer": []}
    for index in range(repeats + 1):
        marks = [time.perf_counter()]
        with run.accelerator.autocast():
            loss, _ = run.policy.forward(batch)
        marks.append(time.perf_counter())
        run.accelerator.backward(loss)
        marks.append(time.perf_counter())
        run.accelerator.clip_grad_norm_(run.policy.parameters(), run.config.optimizer.grad_clip_norm)
        marks.append(time.perf_counter())
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.scheduler.step()
        marks.append(time.perf_counter())
        if index:
            for name, start, end in zip(parts, marks, marks[1:], strict=False):
                parts[name].append(1e3 * (end - start))
    return {name: statistics.median(values) for name, values in parts.items()}


def count_parameters(run: Training) -> int:
    return sum(p.numel() for p in run.policy.parameters())


def selftest(args: argparse.Namespace) -> None:
    """Write a small data set, train, generate a chunk; print the time of each part."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    datasets.disable_progress_bars()
    torch.set_num_threads(args.threads)
    precisions = args.precisions.split(",")
    print(f"LeRobot {version()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        episodes = synthetic_episodes(args.episodes, args.length)
        start = time.perf_counter()
        root = make_dataset(Path(folder) / "data", episodes)
        print(f"wrote {args.episodes} x {args.length} steps in {time.perf_counter() - start:.1f} s")

        small = make_config(down_dims=args.down_dims, compile_model=args.compile)
        for precision in precisions:
            for workers in args.workers:
                torch.manual_seed(0)
                run = make_training(root, small, args.batch_size, workers, mixed_precision=precision)
                data = _milliseconds(lambda run=run: next_batch(run), args.batches)[1]
                torch.manual_seed(0)
                run.batches = cycle(run.loader)
                losses = []
                step = _milliseconds(lambda run=run, losses=losses: losses.append(train_step(run)), args.steps)[1]
                print(f"{precision}, {workers} workers: batch alone {data:.2f} ms, step with data {step:.2f} ms")
            losses = " ".join(f"{loss:.4f}" for loss in losses[-5:])
            print(f"{precision}: {count_parameters(run):,} parameters, last losses {losses}")
            _report(run, episodes[0]["state"][:2], args.steps, precision)
        if args.default_size:
            for precision in precisions:
                run = make_training(root, make_config(), args.batch_size, 0, mixed_precision=precision)
                print(f"{precision}, down_dims {DEFAULT_DOWN_DIMS}: {count_parameters(run):,} parameters")
                _report(run, episodes[0]["state"][:2], 3, precision)


def _report(run: Training, states: np.ndarray, repeats: int, precision: str) -> None:
    batch = next_batch(run)
    step = _milliseconds(lambda: train_step(run, batch), repeats)[0]
    parts = ", ".join(f"{name} {value:.2f}" for name, value in _time_parts(run, batch, repeats).items())
    print(f"{precision}: step without data {step:.2f} ms ({parts})")
    run.policy.eval()
    with run.accelerator.autocast():
        lean = _milliseconds(lambda: predict_chunk(run, states), 4 * repeats)[0]
        run.policy.reset()
        queued = _milliseconds(lambda: select_chunk(run, states[-1]), 4 * repeats)[0]
    print(f"{precision}: chunk {lean:.2f} ms, through select_action {queued:.2f} ms")
    run.policy.reset()
    noise = torch.randn(1, run.policy.config.horizon, run.policy.config.action_feature.shape[0])
    chunk, queued_chunk = predict_chunk(run, states, noise), [select_chunk(run, state, noise) for state in states][-1]
    np.testing.assert_allclose(chunk, queued_chunk, atol=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--selftest", action="store_true", required=True)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="timed training steps of each setting")
    parser.add_argument("--batches", type=int, default=10, help="timed batches of each setting")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--down-dims", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--precisions", default="no", help="comma-separated: no, bf16")
    parser.add_argument("--compile", action="store_true", help="LeRobot's compile_model, in the default mode")
    parser.add_argument("--default-size", action="store_true", help="also time LeRobot's default down_dims")
    selftest(parser.parse_args())


if __name__ == "__main__":
    main()
