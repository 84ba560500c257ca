"""Trains a policy: ``python train.py task=metaworld task.name=door-open-v3 obs=pointcloud policy=flow algo=bc``.

Collects demonstrations when the data set is not there yet, trains, evaluates, and leaves a run folder (launch/run.py)
with the checkpoint, the metrics, a plot and videos. Ctrl-C and SIGTERM save first; ``resume=RUN_DIR`` continues
bit-exactly.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: this may start the interpreter anew
    from launch.memory import keep_large_tensors

    keep_large_tensors()

import json
import math
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, set_seed

from algos.bc import BC
from configs.loader import check_at_least, help_text, load_config
from data.chunks import ChunkDataset, ChunkSampler
from data.episodes import EpisodeStore
from data.errors import ConfigError, TrainingError
from data.normaliser import Normaliser
from data.spec import TaskSpec
from envs.evaluate import summarise
from eval import evaluate_policy, refuse_seen, save_videos
from launch.demos import demonstrations
from launch.plots import learning_curve
from launch.processes import join_processes
from launch.run import Run, global_rng_state, set_global_rng_state
from launch.terminal import Bar, Interrupted, StopSignal, console, run_main
from policies.build import build_policy, construct, lookup, normaliser_modes
from policies.checkpoint import save_policy
from policies.chunk_policy import ChunkPolicy
from policies.precision import resolve_precision

USAGE = "python train.py [task.name=door-open-v3] [obs=pointcloud] [policy=flow] [key=value ...] | resume=RUN_DIR"
ALGOS = {"bc": BC}
PERIODIC_SEED_OFFSET = 1_000_000  # evaluations during training never use the final evaluation's episodes


def make_policy(config: Mapping[str, Any], store: EpisodeStore, task: TaskSpec, n_episodes: int) -> ChunkPolicy:
    """The policy of ``config`` for ``task``, its normaliser fitted on the training episodes."""
    torch.manual_seed(config["seed"])  # every process starts from the same weights
    normaliser = Normaliser.fit(store, normaliser_modes(task), episodes=np.arange(n_episodes))
    policy = build_policy(config, task, normaliser)
    if config["compile"]:
        policy.head.network.compile()  # pyright: ignore[reportAttributeAccessIssue]
    return policy


class Session:
    """One training run in one process: what is trained, on what, and where it is kept."""

    def __init__(self, config: dict[str, Any], run: Run, accelerator: Accelerator):
        self.config, self.run, self.accelerator = config, run, accelerator
        self.store, self.task = demonstrations(config, accelerator)
        wanted = self.store.n_episodes if config["data"]["path"] is not None else config["data"]["n_demos"]
        self.n_demos = min(wanted, self.store.n_episodes)
        refuse_seen(self.eval_seeds(final=True) + self.eval_seeds(final=False), self.demo_seeds())
        self.dataset = ChunkDataset(
            self.store,
            obs_keys=list(self.task.obs),
            n_obs_steps=config["n_obs_steps"],
            horizon=config["horizon"],
            episodes=np.arange(self.n_demos),
            memory_budget_bytes=int(config["data"]["memory_gb"] * 1e9),
            device=accelerator.device,
        )
        policy = make_policy(config, self.store, self.task, self.n_demos)
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
        self.saved: int | None = None  # step of the last save
        self.metrics: dict[str, torch.Tensor] = {}  # of the last update

    # ------------------------------------------------------------------ state

    def save(self) -> None:
        """The checkpoint, and the state to resume from, unless this step has them."""
        self.check_finite()
        if self.saved == self.step:
            return
        self.saved = self.step
        if not self.run.is_main:
            return
        config = {
            k: self.config[k] for k in ("n_obs_steps", "horizon", "n_action_steps", "policy", "network", "encoder")
        }
        meta = {
            "step": self.step,
            "train_config": self.config,
            "dataset": str(self.store.path),
            "demo_seeds": self.demo_seeds(),
            "versions": {name: version(name) for name in ("torch", "deft")},
        }
        # The checkpoint first: a run killed in between repeats some updates, and no state is ahead of its checkpoint.
        save_policy(self.run.path / "checkpoint", self.algo.policy, config, meta)
        state = {
            "step": self.step,
            "num_processes": self.accelerator.num_processes,
            "algo": self.algo.state_dict(),
            "sampler": self.sampler.state_dict(),
            "rng": global_rng_state(),
        }
        self.run.save_state(state)

    def restore(self) -> None:
        """Continues from the last save, if there was one."""
        state = self.run.load_state()
        if state is None:
            return
        if state["num_processes"] != self.accelerator.num_processes:
            raise ConfigError(
                f"{self.run.path} was trained by {state['num_processes']} process(es) and cannot be continued by "
                f"{self.accelerator.num_processes}: the batch would be another one."
            )
        self.step = self.saved = state["step"]
        self.algo.load_state_dict(state["algo"])
        self.sampler.load_state_dict(state["sampler"])
        set_global_rng_state(state["rng"])

    def demo_seeds(self) -> list[int]:
        """Seeds of the training episodes, where the data set knows them."""
        if "seed" not in self.store.episode_meta_names:
            return []
        return [int(seed) for seed in self.store.episode_meta("seed")[: self.n_demos]]

    def eval_seeds(self, *, final: bool) -> list[int]:
        """Seeds of an evaluation's episodes; those during training are others than the final one's."""
        options = self.config["eval"]
        if final:
            return [options["seed"] + i for i in range(options["n_episodes"])]
        return [options["seed"] + PERIODIC_SEED_OFFSET + i for i in range(options["every_n_episodes"])]

    # ------------------------------------------------------------------ loop

    def train(self, stop: StopSignal) -> None:
        """Updates until ``train_steps``; logs, saves and evaluates on the way."""
        config, every = self.config, self.config["eval"]["every"]
        label = f"training {config['policy']['name']} on {self.task.name}"
        with Bar(label, self.train_steps, start=self.step, enabled=self.run.is_main) as bar:
            started, first = time.perf_counter(), self.step
            while self.step < self.train_steps:
                if self.stopping(stop):
                    self.save()
                    raise Interrupted(stop.received or "stopped by another process")
                if every and self.step and self.step % every == 0:
                    before = time.perf_counter()
                    self.save()  # a kill during the evaluation then repeats only that
                    self.evaluate(stop, final=False)
                    started += time.perf_counter() - before
                self.metrics = self.algo.update(self.dataset.batch(next(self.sampler)))
                self.step += 1
                if self.accelerator.device.type == "cpu":  # elsewhere, looking at every loss would hold up the device
                    self.check_finite()
                if self.step % config["log"]["every"] == 0 or self.step == self.train_steps:
                    rate = (self.step - first) * self.batch_size * self.accelerator.num_processes
                    rate /= time.perf_counter() - started
                    loss = self.log(rate)
                    bar.update(self.step, f"loss {loss:.4f}, {rate:.0f} samples/s")
                if self.step % config["algo"]["save_every"] == 0 or self.step == self.train_steps:
                    self.save()

    def stopping(self, stop: StopSignal) -> bool:
        """Whether any process was told to stop; all agree."""
        if self.accelerator.num_processes == 1:
            return stop.received is not None
        if self.step % 10:  # asking the others waits for the device
            return False
        flag = torch.tensor(float(stop.received is not None), device=self.accelerator.device)
        return float(cast(torch.Tensor, self.accelerator.reduce(flag, "sum"))) > 0

    def check_finite(self) -> None:
        """Raises TrainingError on a loss or gradient that is not finite; the last save is left as it is."""
        for name in ("loss", "grad_norm"):
            value = float(self.metrics.get(name, 0.0))
            if not math.isfinite(value):
                saved = f"The last good checkpoint, of update {self.saved}, is {self.run.path / 'checkpoint'}."
                raise TrainingError(
                    f"The {name} became {value} at update {self.step}; training stopped. "
                    f"{saved if self.saved is not None else 'No checkpoint had been saved yet.'} "
                    "Look at the data (scale, NaN) or lower algo.lr."
                )

    def log(self, rate: float) -> float:
        """One line of metrics, averaged over the processes; returns the loss."""
        self.check_finite()
        averaged = self.accelerator.reduce({k: v.float() for k, v in self.metrics.items()}, "mean")
        numbers = {k: float(v) for k, v in cast(dict[str, torch.Tensor], averaged).items()}
        self.run.log(self.step, {**numbers, "samples_per_s": round(rate, 1), "epoch": round(self.sampler.epoch, 3)})
        return numbers["loss"]

    def evaluate(self, stop: StopSignal, *, final: bool) -> dict[str, Any]:
        """Success of the averaged policy; the final evaluation also writes eval.json and videos."""
        options, processes = self.config["eval"], self.accelerator.num_processes
        seeds = self.eval_seeds(final=final)
        with Bar("final evaluation" if final else "evaluation", len(seeds), enabled=self.run.is_main) as bar:

            def on_episode(done: int) -> None:
                bar.update(min(len(seeds), done * processes))
                stop.check()

            results = evaluate_policy(
                self.algo.policy,
                self.task.env_args,
                seeds,
                n_envs=options["n_envs"],
                n_videos=options["n_videos"] if final else 0,
                processes=PartialState(),
                on_episode=on_episode,
            )
        summary = {**summarise(results), "task": self.task.name, "step": self.step}
        self.run.log(self.step, {k: v for k, v in summary.items() if k not in ("seeds", "step")})
        if final and self.run.is_main:
            self.run.write_text("eval.json", json.dumps(summary) + "\n")
            save_videos(results, self.run.path / "videos", self.task.control_hz)
        return summary


def read_config(argv: list[str]) -> tuple[dict[str, Any], bool]:
    """(configuration, whether it continues a run) of a command line."""
    config = load_config("train", argv)
    resumed = config["resume"] is not None
    if resumed:
        others = [a for a in argv if not a.startswith("resume=")]
        if others:
            raise ConfigError(f"resume= continues a run with its own configuration; leave out {' '.join(others)}.")
        config = Run.config_of(config["resume"])
    check_at_least(1, config, ["n_obs_steps", "horizon", "n_action_steps", "log.every", "data.n_demos"])
    check_at_least(1, config, [f"algo.{name}" for name in ("train_steps", "batch_size", "save_every")])
    check_at_least(1, config, [f"eval.{name}" for name in ("n_episodes", "every_n_episodes", "n_envs")])
    check_at_least(1, config, ["policy.n_inference_steps", "policy.noise_per_obs"])
    check_at_least(0, config, ["seed", "data.n_workers", "eval.seed", "eval.every", "eval.n_videos"])
    if config["precision"] not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision is auto, fp32 or bf16, not '{config['precision']}'.")
    return config, resumed


def start_accelerator(config: dict[str, Any]) -> Accelerator:
    """Device, precision and processes; what "auto" stood for is put into ``config``."""
    device = join_processes(config["device"])[1]
    config["device"] = device.type
    # Measured, so processes might disagree: the first one decides.
    config["precision"] = broadcast_object_list([resolve_precision(config["precision"], device)])[0]
    accelerator = Accelerator(mixed_precision="bf16" if config["precision"] == "bf16" else "no")
    set_seed(config["seed"] + accelerator.process_index)
    return accelerator


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
    config, resumed = read_config(argv)
    accelerator = start_accelerator(config)
    is_main = accelerator.is_main_process
    run = Run.resume(config["run_dir"], is_main=is_main) if resumed else Run.create(config, is_main=is_main)
    try:
        session = Session(config, run, accelerator)
        if resumed:
            session.restore()
        run.begin(config)
        run.open_logs(session.step, config)
        with StopSignal(talk=is_main) as stop:
            try:
                session.train(stop)
                summary = session.evaluate(stop, final=True)
            except Interrupted as e:
                if is_main:
                    console.print(f"{e}: saved at update {session.saved}; continue: python train.py resume={run.path}")
                return 0
    finally:
        run.close()
    if run.is_main:
        report(run, summary, f"{session.task.name}, {config['obs']['name']}, {config['policy']['name']}")
    return 0


if __name__ == "__main__":
    run_main(main)
