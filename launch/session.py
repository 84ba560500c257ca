"""What every training run has in common: where it is kept, how it is saved, continued, stopped and measured."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState

from data.errors import ConfigError, TrainingError
from data.source import Episodes
from data.spec import TaskSpec
from envs.evaluate import EpisodeResult, summarise
from eval import evaluate_policy, refuse_seen, save_videos
from launch.plots import learning_curve
from launch.run import Run, global_rng_state, set_global_rng_state
from launch.terminal import Bar, StopSignal, console
from policies.checkpoint import save_policy
from policies.policy import Policy

PERIODIC_SEED_OFFSET = 1_000_000  # evaluations during training never use the final evaluation's episodes


class Session(ABC):
    """One training run in one process.

    Attributes:
        step: updates (imitation) or environment steps (reinforcement learning) done.
        saved: step of the last save.
        metrics: of the last update.
    """

    unit = "update"

    def __init__(
        self, config: dict[str, Any], run: Run, accelerator: Accelerator, task: TaskSpec, store: Episodes | None
    ):
        self.config, self.run, self.accelerator = config, run, accelerator
        self.task, self.store = task, store
        self.n_demos = 0
        if store is not None:
            wanted = store.n_episodes if config["data"]["path"] is not None else config["data"]["n_demos"]
            self.n_demos = min(wanted, store.n_episodes)
        refuse_seen(self.eval_seeds(final=True) + self.eval_seeds(final=False), self.demo_seeds())
        self.step = 0
        self.saved: int | None = None
        self.metrics: dict[str, torch.Tensor] = {}

    # ------------------------------------------------------------------ what a run adds

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """What is evaluated, saved and deployed."""

    @abstractmethod
    def policy_config(self) -> dict[str, Any]:
        """What ``load_policy`` rebuilds it from."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that this kind of run resumes from, besides step and global generators."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""

    @abstractmethod
    def train(self, stop: StopSignal) -> None:
        """To the end; raises Interrupted, after saving, when told to stop."""

    # ------------------------------------------------------------------ state

    def save(self) -> None:
        """The checkpoint, and the state to resume from, unless this step has them."""
        self.check_finite()
        if self.saved == self.step:
            return
        self.saved = self.step
        if not self.run.is_main:
            return
        meta = {
            "step": self.step,
            "train_config": self.config,
            "dataset": None if self.store is None else str(Path(self.store.path).resolve()),
            "demo_seeds": self.demo_seeds(),
            "versions": {name: version(name) for name in ("torch", "deft")},
        }
        # The checkpoint first: a run killed in between repeats some updates, and no state is ahead of its checkpoint.
        save_policy(self.run.path / "checkpoint", self.policy, self.policy_config(), meta)
        state = {
            "step": self.step,
            "num_processes": self.accelerator.num_processes,
            **self.state_dict(),
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
        try:
            self.load_state_dict(state)
        except KeyError as e:
            raise ConfigError(
                f"{self.run.path}/state.pt has no {e}: another version of Deft wrote it. The run's checkpoint can be "
                "used, but it cannot be continued; start it anew."
            ) from e
        set_global_rng_state(state["rng"])

    def demo_seeds(self) -> list[int]:
        """Seeds of the training episodes, where the data set knows them."""
        if self.store is None or "seed" not in self.store.episode_meta_names:
            return []
        return [int(seed) for seed in self.store.episode_meta("seed")[: self.n_demos]]

    def eval_seeds(self, *, final: bool) -> list[int]:
        """Seeds of an evaluation's episodes; those during training are others than the final one's."""
        options = self.config["eval"]
        if final:
            return [options["seed"] + i for i in range(options["n_episodes"])]
        return [options["seed"] + PERIODIC_SEED_OFFSET + i for i in range(options["every_n_episodes"])]

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
        for name, metric in self.metrics.items():
            value = float(metric)
            if not math.isfinite(value):
                saved = f"The last good checkpoint, of {self.unit} {self.saved}, is {self.run.path / 'checkpoint'}."
                raise TrainingError(
                    f"The {name} became {value} at {self.unit} {self.step}; training stopped. "
                    f"{saved if self.saved is not None else 'No checkpoint had been saved yet.'} "
                    "Look at the data (scale, NaN) or lower algo.lr."
                )

    def log(self, **more: float) -> dict[str, float]:
        """One line of metrics, averaged over the processes, which it returns."""
        self.check_finite()
        averaged = self.accelerator.reduce({k: v.float() for k, v in self.metrics.items()}, "mean")
        numbers = {k: float(v) for k, v in cast(dict[str, torch.Tensor], averaged).items()}
        self.run.log(self.step, {**numbers, **more})
        return numbers

    def run_episodes(
        self, policy: Policy, seeds: list[int], stop: StopSignal, label: str, n_videos: int = 0
    ) -> list[EpisodeResult]:
        """The episodes ``seeds`` under ``policy``, shared out over the processes, with a bar."""
        processes = self.accelerator.num_processes
        with Bar(label, len(seeds), enabled=self.run.is_main) as bar:

            def on_episode(done: int) -> None:
                bar.update(min(len(seeds), done * processes))
                stop.check()

            return evaluate_policy(
                policy,
                self.task.env_args,
                seeds,
                n_envs=self.config["eval"]["n_envs"],
                n_videos=n_videos,
                processes=PartialState(),
                on_episode=on_episode,
            )

    def evaluate(self, stop: StopSignal, *, final: bool) -> dict[str, Any]:
        """Success of the policy; the final evaluation also writes eval.json and videos."""
        if not self.config["eval"]["n_episodes"]:
            return {"task": self.task.name, "step": self.step, "n_episodes": 0, "success_rate": None}
        label = "final evaluation" if final else "evaluation"
        n_videos = self.config["eval"]["n_videos"] if final else 0
        results = self.run_episodes(self.policy, self.eval_seeds(final=final), stop, label, n_videos)
        summary = {**summarise(results), "task": self.task.name, "step": self.step, **self.facts(final=final)}
        self.run.log(self.step, {k: v for k, v in summary.items() if k not in ("seeds", "step")})
        if final and self.run.is_main:
            self.run.write_text("eval.json", json.dumps(summary) + "\n")
            save_videos(results, self.run.path / "videos", self.task.control_hz)
        return summary

    def facts(self, *, final: bool) -> dict[str, Any]:
        """What an evaluation is reported with, besides its success."""
        return {}

    def report(self, summary: Mapping[str, Any]) -> None:
        """Draws the learning curve and names what the run has made; the last line is the evaluation."""
        run, config = self.run, self.config
        names = (self.task.name, config["obs"]["name"], config["policy"]["name"], config["algo"]["name"])
        learning_curve(run.records(), run.path / "learning_curve.png", ", ".join(names), f"{self.unit}s")
        rate, n, base = summary["success_rate"], summary["n_episodes"], summary.get("base_success_rate")
        if rate is None:
            console.print("not evaluated (eval.n_episodes=0)")
        else:
            low, high = summary["success_ci95"]
            before = f" (base {base:.2f})" if base is not None else ""
            console.print(f"success {rate:.2f} over {n} episodes (95 % interval {low:.2f}-{high:.2f}){before}")
        for label, pattern in (("video", "videos/*.mp4"), ("plot", "learning_curve.png"), ("checkpoint", "checkpoint")):
            for path in sorted(run.path.glob(pattern)):
                console.print(f"{label}: {path}")
        print(json.dumps(summary))
