"""Trains a policy: ``python train.py task=metaworld task.name=door-open-v3 obs=pointcloud policy=flow algo=bc``.

Collects demonstrations when the data set is not there yet, trains, evaluates, and leaves a run folder (launch/run.py)
with the checkpoint, the metrics, a plot and videos. Ctrl-C and SIGTERM save first; ``resume=RUN_DIR`` continues
bit-exactly.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from algos.bc import BC
from configs.loader import help_text, load_config
from data.chunks import ChunkDataset, ChunkSampler
from data.episodes import EpisodeStore
from data.errors import ConfigError, TrainingError
from data.normaliser import Normaliser
from envs.collect import collect_demos, demo_seed
from envs.evaluate import summarise
from envs.make import make_env
from eval import evaluate_policy, pick_device, save_videos
from launch.plots import learning_curve
from launch.run import Run, global_rng_state, set_global_rng_state
from launch.terminal import Bar, Interrupted, StopSignal, console, run_main
from policies.build import build_policy, construct, lookup, normaliser_modes
from policies.checkpoint import save_policy
from policies.precision import resolve_precision

USAGE = "python train.py [task.name=door-open-v3] [obs=pointcloud] [policy=flow] [key=value ...] | resume=RUN_DIR"
ALGOS = {"bc": BC}
PERIODIC_SEED_OFFSET = 1_000_000  # evaluations during training never use the final evaluation's episodes


def env_args_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``make_env`` needs: the task's options and the observation keys."""
    cameras = config["task"].get("cameras", [])
    keys: list[str] = []
    for key in config["obs"]["keys"]:
        keys += [f"{key}_{camera}" for camera in cameras] if key in ("rgb", "depth") else [key]
    return {**config["task"], "obs": keys}


def demonstrations(config: Mapping[str, Any], accelerator: Accelerator) -> EpisodeStore:
    """The data set to train on; scripted demonstrations are collected when there are not enough of them yet."""
    data = config["data"]
    if data["path"] is not None:
        return EpisodeStore.open(data["path"])
    env_args = env_args_of(config)
    digest = hashlib.sha256(json.dumps(env_args, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{config['task']['suite']}-{config['task']['name']}-{config['obs']['name']}-s{config['seed']}-{digest}.zarr"
    path = Path(data["root"]) / name
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            with Bar(f"demonstrations of {config['task']['name']}", data["n_demos"]) as bar:
                collect_demos(
                    env_args,
                    path,
                    data["n_demos"],
                    first_seed=demo_seed(config["seed"], 0),
                    n_workers=data["n_workers"],
                    progress=lambda done, total: bar.update(done),
                )
    return EpisodeStore.open(path)


def make_policy(config: Mapping[str, Any], store: EpisodeStore, n_episodes: int) -> torch.nn.Module:
    """The policy of ``config``, its normaliser fitted on the training episodes."""
    if store.task is None:
        raise ConfigError(f"{store.path} has no task metadata; convert it first, or collect with Deft.")
    torch.manual_seed(config["seed"])  # every process starts from the same weights
    modes = normaliser_modes(store.task)
    normaliser = Normaliser.fit(store, modes, episodes=np.arange(n_episodes))
    policy = build_policy(config, store.task, normaliser)
    if config["compile"]:
        torch.nn.Module.compile(policy.head.get_submodule("network"))
    return policy


class Session:
    """One training run in one process: what is trained, on what, and where it is kept."""

    def __init__(self, config: dict[str, Any], run: Run, accelerator: Accelerator):
        self.config, self.run, self.accelerator = config, run, accelerator
        store = demonstrations(config, accelerator)
        self.n_demos = min(config["data"]["n_demos"], store.n_episodes)
        if config["data"]["path"] is not None:
            self.n_demos = store.n_episodes
        self.store = store
        policy = make_policy(config, store, self.n_demos)
        assert store.task is not None
        self.task = store.task
        self.dataset = ChunkDataset(
            store,
            obs_keys=list(store.task.obs),
            n_obs_steps=config["n_obs_steps"],
            horizon=config["horizon"],
            episodes=np.arange(self.n_demos),
            memory_budget_bytes=int(config["data"]["memory_gb"] * 1e9),
            device=accelerator.device,
        )
        options = {k: v for k, v in config["algo"].items() if k not in ("name", "batch_size", "save_every")}
        algo = lookup(ALGOS, config["algo"]["name"], "algo")
        self.algo = construct(algo, options, "algo", policy=policy, accelerator=accelerator, seed=config["seed"])
        self.batch_size, self.train_steps = config["algo"]["batch_size"], config["algo"]["train_steps"]
        self.sampler = ChunkSampler(
            len(self.dataset),
            self.batch_size,
            config["seed"],
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        self.step = 0

    # ------------------------------------------------------------------ state

    def save(self) -> None:
        """State to resume from, and the checkpoint."""
        if not self.run.is_main:
            return
        state = {
            "step": self.step,
            "algo": self.algo.state_dict(),
            "sampler": self.sampler.state_dict(),
            "rng": global_rng_state(),
        }
        self.run.save_state(state)
        config = {
            k: self.config[k] for k in ("n_obs_steps", "horizon", "n_action_steps", "policy", "network", "encoder")
        }
        meta = {
            "step": self.step,
            "train_config": self.config,
            "dataset": str(self.store.path),
            "demo_seeds": [int(s) for s in self.demo_seeds()],
            "versions": {name: version(name) for name in ("torch", "deft")},
        }
        save_policy(self.run.path / "checkpoint", self.algo.policy, config, meta)

    def demo_seeds(self) -> list[int]:
        """Seeds of the training episodes, where the data set knows them."""
        if "seed" not in self.store.episode_meta_names:
            return []
        return self.store.episode_meta("seed")[: self.n_demos].tolist()

    def restore(self) -> None:
        """Continues from the last save, if there was one."""
        state = self.run.load_state()
        if state is not None:
            self.step = state["step"]
            self.algo.load_state_dict(state["algo"])
            self.sampler.load_state_dict(state["sampler"])
            set_global_rng_state(state["rng"])

    # ------------------------------------------------------------------ loop

    def train(self, stop: StopSignal) -> None:
        """Updates until ``train_steps``; logs, saves and evaluates on the way."""
        config, every = self.config, self.config["eval"]["every"]
        label = f"training {config['policy']['name']} on {self.task.name}"
        with Bar(label, self.train_steps, start=self.step, enabled=self.run.is_main) as bar:
            started, first = time.perf_counter(), self.step
            while self.step < self.train_steps:
                batch = self.dataset.batch(next(self.sampler))
                metrics = self.algo.update(batch)
                self.step += 1
                if self.step % config["log"]["every"] == 0 or self.step == self.train_steps:
                    rate = (self.step - first) * self.batch_size * self.accelerator.num_processes
                    rate /= time.perf_counter() - started
                    loss = self.log(metrics, rate)
                    bar.update(self.step, f"loss {loss:.4f}, {rate:.0f} samples/s")
                elif self.accelerator.device.type == "cpu":
                    self.check_finite(metrics)
                stopping = self.stopping(stop)
                if self.step % config["algo"]["save_every"] == 0 or self.step == self.train_steps or stopping:
                    self.check_finite(metrics)
                    self.save()
                if stopping:
                    raise Interrupted(stop.received)
                if every and self.step % every == 0 and self.step < self.train_steps:
                    before = time.perf_counter()
                    self.evaluate(stop, final=False)
                    started += time.perf_counter() - before

    def stopping(self, stop: StopSignal) -> bool:
        """Whether any process was told to stop; all agree."""
        if self.accelerator.num_processes == 1:
            return stop.received is not None
        flag = torch.tensor(float(stop.received is not None), device=self.accelerator.device)
        return bool(torch.as_tensor(self.accelerator.reduce(flag, "sum")) > 0)

    def check_finite(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Raises TrainingError on a loss or gradient that is not finite; the last save is left as it is."""
        for name in ("loss", "grad_norm"):
            value = float(metrics[name])
            if not math.isfinite(value):
                raise TrainingError(
                    f"The {name} became {value} at update {self.step}; training stopped. The last good checkpoint is "
                    f"{self.run.path / 'checkpoint'} (saved every {self.config['algo']['save_every']} updates). "
                    "Look at the data (scale, NaN) or lower algo.lr."
                )

    def log(self, metrics: Mapping[str, torch.Tensor], rate: float) -> float:
        """One line of metrics; returns the loss."""
        self.check_finite(metrics)
        numbers = {k: float(v) for k, v in metrics.items()}
        self.run.log(self.step, {**numbers, "samples_per_s": round(rate, 1), "epoch": round(self.sampler.epoch, 3)})
        return numbers["loss"]

    def evaluate(self, stop: StopSignal, *, final: bool) -> dict[str, Any]:
        """Success of the averaged policy; the final evaluation also writes eval.json and videos."""
        options = self.config["eval"]
        n = options["n_episodes"] if final else options["every_n_episodes"]
        first = options["seed"] + (0 if final else PERIODIC_SEED_OFFSET)
        accelerator = self.accelerator
        share = len(range(accelerator.process_index, n, accelerator.num_processes))
        with Bar("final evaluation" if final else "evaluation", share, enabled=self.run.is_main) as bar:

            def on_episode(done: int) -> None:
                if accelerator.num_processes == 1:
                    stop.check()
                bar.update(done)

            results = evaluate_policy(
                self.algo.policy,
                self.task.env_args,
                [first + i for i in range(n)],
                n_envs=options["n_envs"],
                n_videos=options["n_videos"] if final else 0,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                on_episode=on_episode,
            )
        summary = {**summarise(results), "task": self.task.name, "step": self.step}
        self.run.log(self.step, {k: v for k, v in summary.items() if k not in ("seeds", "step")})
        if final and self.run.is_main:
            self.run.write_text("eval.json", json.dumps(summary) + "\n")
            save_videos(results, self.run.path / "videos", self.task.control_hz)
        return summary


def open_run(argv: list[str]) -> tuple[dict[str, Any], Run, bool]:
    """(configuration, run folder, whether it is resumed) of a command line."""
    is_main = Accelerator().is_main_process
    config = load_config("train", argv)
    if config["resume"] is None:
        config["device"] = str(pick_device(config["device"]))
        config["precision"] = resolve_precision(config["precision"], torch.device(config["device"]))
        return config, Run.create(config, is_main=is_main), False
    others = [a for a in argv if not a.startswith("resume=")]
    if others:
        raise ConfigError(f"resume= continues a run with its own configuration; leave out {' '.join(others)}.")
    run, config = Run.resume(config["resume"], is_main=is_main)
    return {**config, "run_dir": str(run.path)}, run, True


def report(run: Run, summary: Mapping[str, Any], title: str) -> None:
    """Draws the learning curve and names what the run has made; the last line is the evaluation."""
    learning_curve(run.records(), run.path / "learning_curve.png", title)
    low, high = summary["success_ci95"]
    rate, n = summary["success_rate"], summary["n_episodes"]
    console.print(f"success {rate:.2f} over {n} episodes (95 % interval {low:.2f}-{high:.2f})")
    for label, pattern in (("video", "videos/*.mp4"), ("plot", "learning_curve.png"), ("checkpoint", "checkpoint")):
        for path in sorted(run.path.glob(pattern)):
            console.print(f"{label}: {path}")
    print(json.dumps(summary))


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(help_text("train", USAGE))
        return 0
    config, run, resumed = open_run(argv)
    accelerator = Accelerator(
        cpu=config["device"] == "cpu", mixed_precision="bf16" if config["precision"] == "bf16" else "no"
    )
    set_seed(config["seed"] + accelerator.process_index)
    make_env(env_args_of(config)).close()  # a wrong task fails here, before any work
    session = Session(config, run, accelerator)
    if resumed:
        session.restore()
    run.begin(config)
    run.open_logs(session.step, config)
    try:
        with StopSignal() as stop:
            session.train(stop)
            summary = session.evaluate(stop, final=True)
    except Interrupted as e:
        console.print(f"{e}: saved at update {session.step}; continue with: python train.py resume={run.path}")
        return 0
    finally:
        run.close()
    if run.is_main:
        report(run, summary, f"{session.task.name}, {config['obs']['name']}, {config['policy']['name']}")
    return 0


if __name__ == "__main__":
    run_main(main)
