"""Trains a policy: ``python train.py task=metaworld task.name=door-open-v3 obs=pointcloud policy=flow algo=bc``.

Collects demonstrations when the data set is not there yet, trains, evaluates, and leaves a run folder (launch/run.py)
with the checkpoint, the metrics, a plot and videos. Ctrl-C and SIGTERM save first; ``resume=RUN_DIR`` continues
bit-exactly.
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: this may start the interpreter anew
    from launch.memory import keep_large_tensors

    keep_large_tensors()

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from algos.bc import BC
from algos.demos import demo_transitions
from algos.dppo import DPPO
from algos.dsrl import DSRL
from algos.gate import check_gate
from algos.learner import Learner
from algos.residual import Residual
from algos.residual_ppo import ResidualPPO
from configs.loader import help_text
from data.chunks import ChunkDataset, ChunkSampler
from data.construct import construct, lookup
from data.errors import ConfigError
from data.normaliser import Normaliser
from data.source import Episodes
from data.spec import TaskSpec
from envs.evaluate import summarise
from launch.acting import start_acting
from launch.base import base_and_demos
from launch.demos import demonstrations, imitated
from launch.distillation import Distilling
from launch.from_nothing import WithoutBase
from launch.history import History, crossed
from launch.privileged import critic_features, unrecorded
from launch.run import Run
from launch.session import Session
from launch.start import check_value_range, read_config, start_accelerator
from launch.terminal import Bar, Interrupted, StopSignal, console, run_main
from launch.threads import settle_threads
from policies.build import build_policy, normaliser_modes
from policies.checkpoint import wrapped_config
from policies.chunk_policy import ChunkPolicy
from policies.policy import Policy
from policies.precision import large_products

USAGE = "python train.py [task.name=door-open-v3] [obs=pointcloud] [policy=flow] [key=value ...] | resume=RUN_DIR"
FINE_TUNERS = {"residual": Residual, "dsrl": DSRL, "dppo": DPPO, "residual_ppo": ResidualPPO}
FROM_NOTHING = ("sac", "rlpd")
LOOP_OPTIONS = ("name", "env_steps", "stop_at", "save_every", "n_envs", "n_workers", "gamma", "demos", "critic_obs")


def make_policy(config: Mapping[str, Any], store: Episodes, task: TaskSpec, n_episodes: int) -> ChunkPolicy:
    """The policy of ``config`` for ``task``, its normaliser fitted on the training episodes."""
    torch.manual_seed(config["seed"])  # every process starts from the same weights
    normaliser = Normaliser.fit(store, normaliser_modes(task), episodes=np.arange(n_episodes))
    normaliser.shrink("action", config["data"]["gripper_dims"], config["data"]["gripper_factor"])
    policy = build_policy(config, task, normaliser)
    if config["compile"]:
        policy.head.network.compile()  # pyright: ignore[reportAttributeAccessIssue]
    return policy


class Imitation(Session):
    """``algo=bc``: gradient updates on demonstrations; a step is an update."""

    def __init__(self, config: dict[str, Any], run: Run, accelerator: Accelerator):
        store, task = self.demonstrations(config, accelerator)
        super().__init__(config, run, accelerator, task, store)
        self.dataset = ChunkDataset(
            store,
            obs_keys=list(self.task.obs),
            n_obs_steps=config["n_obs_steps"],
            horizon=config["horizon"],
            action_key=imitated(config["data"]["labels"], store),
            episodes=np.arange(self.n_demos),
            memory_budget_bytes=int(config["data"]["memory_gb"] * 1e9),
            device=accelerator.device,
        )
        options = {k: v for k, v in config["algo"].items() if k not in ("name", "batch_size", "save_every")}
        self.algo = self.make_algo(options)
        self.batch_size, self.train_steps = config["algo"]["batch_size"], config["algo"]["train_steps"]
        self.sampler = ChunkSampler(
            len(self.dataset),
            self.batch_size,
            config["seed"],
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        sample = ChunkSampler(len(self.dataset), self.batch_size, config["seed"])
        alone = accelerator.num_processes == 1  # several processes have a core each
        settle_threads(config, (lambda: self.algo.rehearse(self.dataset.batch(next(sample)))) if alone else None)

    def demonstrations(self, config: dict[str, Any], accelerator: Accelerator) -> tuple[Episodes, TaskSpec]:
        """The data set, and the part of its task that is used."""
        return demonstrations(config, accelerator)

    def make_algo(self, options: dict[str, Any]) -> BC:
        """Around a new policy."""
        assert self.store is not None
        policy = make_policy(self.config, self.store, self.task, self.n_demos)
        return construct(BC, options, "algo", policy=policy, accelerator=self.accelerator, seed=self.config["seed"])

    @property
    def policy(self) -> Policy:
        """The averaged policy."""
        return self.algo.policy

    def policy_config(self) -> dict[str, Any]:
        """See ``build_policy``."""
        return {k: self.config[k] for k in ("n_obs_steps", "horizon", "n_action_steps", "policy", "network", "encoder")}

    def state_dict(self) -> dict[str, Any]:
        """Learner and sampler."""
        return {"algo": self.algo.state_dict(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self.algo.load_state_dict(state["algo"])
        self.sampler.load_state_dict(state["sampler"])

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
                with large_products():
                    self.metrics = self.algo.update(self.dataset.batch(next(self.sampler)))
                self.step += 1
                if self.accelerator.device.type == "cpu":  # elsewhere, looking at every loss would hold up the device
                    self.check_finite()
                if self.step % config["log"]["every"] == 0 or self.step == self.train_steps:
                    rate = (self.step - first) * self.batch_size * self.accelerator.num_processes
                    rate /= time.perf_counter() - started
                    numbers = self.log(samples_per_s=round(rate, 1), epoch=round(self.sampler.epoch, 3))
                    bar.update(self.step, f"loss {numbers['loss']:.3g}, {rate:.0f} samples/s")
                if self.step % config["algo"]["save_every"] == 0 or self.step == self.train_steps:
                    self.save()


class Distillation(Distilling, Imitation):
    """``algo=distill``: Imitation's loop, with a teacher."""


class FineTuning(Session):
    """Reinforcement learning that starts from a trained policy; a step is an environment step."""

    unit = "environment step"

    def __init__(self, config: dict[str, Any], run: Run, accelerator: Accelerator):
        algo = config["algo"]
        if accelerator.num_processes > 1:
            raise ConfigError(f"algo={algo['name']} trains in one process; leave out accelerate launch.")
        torch.manual_seed(config["seed"])
        self.base, task, store = self.start_from(config, accelerator)
        check_value_range(algo, task.env_args)
        super().__init__(config, run, accelerator, task, store)
        options = {k: v for k, v in algo.items() if k not in LOOP_OPTIONS}
        self.critic_obs: list[str] = algo.get("critic_obs") or []
        self.algo: Learner = self.make_learner(options)
        settle_threads(config, None)
        self.env_steps = algo["env_steps"]
        self.acting = start_acting(config, self.algo, self.task, self.policy_config())
        self.history = History()

    def start_from(
        self, config: dict[str, Any], accelerator: Accelerator
    ) -> tuple[Policy | None, TaskSpec, Episodes | None]:
        """The base, its task, and demonstrations."""
        return base_and_demos(config, accelerator)

    def make_learner(self, options: dict[str, Any]) -> Learner:
        """What ``algo`` names."""
        algo, seed = self.config["algo"], self.config["seed"]
        given: dict[str, Any] = {"base": self.base, "n_envs": algo["n_envs"], "seed": seed}
        if "lr_decay" in algo:
            given["env_steps"] = algo["env_steps"]
        if "critic_obs" in algo:
            assert self.base is not None
            given["critic_features"] = critic_features(self.task, self.critic_obs, self.base.n_obs_steps, seed)
        return construct(FINE_TUNERS[algo["name"]], options, "algo", **given)

    @property
    def policy(self) -> Policy:
        """What the algorithm has made of the base."""
        return self.algo.policy

    def policy_config(self) -> dict[str, Any]:
        """The wrapper's options around the base's configuration."""
        return wrapped_config(self.policy, self.config.get("base_config"))

    def demo_seeds(self) -> list[int]:
        """Those of the base as well."""
        return sorted({*super().demo_seeds(), *self.config.get("base_demo_seeds", [])})

    def state_dict(self) -> dict[str, Any]:
        """Learner, environments and what was measured."""
        return {
            "algo": self.algo.state_dict(),
            **self.acting.state_dict(),
            "metrics": self.metrics,
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self.algo.load_state_dict(state["algo"])
        self.acting.load_state_dict(state)
        self.metrics = dict(state["metrics"])
        self.history.load_state_dict(state["history"])

    def begin(self, stop: StopSignal) -> None:
        """Demonstrations into the replay; the gate; the first episodes."""
        if self.store is not None and self.config["algo"]["demos"]:
            for demo in demo_transitions(
                self.store,
                obs_keys=list(self.task.obs) + [k for k in self.critic_obs if k in self.store.fields],
                n_obs_steps=self.policy.n_obs_steps,
                n_action_steps=self.algo.n_action_steps,
                gamma=self.config["algo"]["gamma"],
                n_episodes=self.n_demos,
                more=partial(unrecorded, self.store, self.critic_obs),
            ):
                self.algo.add_demo(demo)
        if self.base is not None:
            self.pass_gate(self.base, stop)
        self.acting.reset()

    def pass_gate(self, base: Policy, stop: StopSignal) -> None:
        """Refuses to start where the untrained fine-tuner is not as good as its base."""
        seeds = self.eval_seeds(final=False)
        if not seeds:  # a robot's
            return self.algo.base_result(0, 0)
        before = self.run_episodes(base, seeds, stop, "the base")
        if not self.acting.repeats:  # what is compared would be two different episodes
            self.algo.base_result(sum(r.success for r in before), len(before))
            return self.history.begin(summarise(before))
        start = self.run_episodes(self.policy, seeds, stop, f"{self.config['algo']['name']} before any update")
        check_gate(before, start, exact=self.algo.exact_at_start and base.reproducible)
        self.algo.base_result(sum(r.success for r in before), len(before))
        self.history.begin(summarise(before))
        self.run.log(0, {**summarise(start), "base_success_rate": summarise(before)["success_rate"]})

    def train(self, stop: StopSignal) -> None:
        """Acts, stores, updates, until ``env_steps``, or until it is as good as ``stop_at``."""
        config, every, stop_at = self.config, self.config["eval"]["every"], self.config["algo"].get("stop_at")
        if self.step == 0:
            self.begin(stop)
        label = f"{config['algo']['name']} on {self.task.name}"
        with closing(self.acting), Bar(label, self.env_steps, start=self.step) as bar:
            while True:
                if every and self.step // every > len(self.history.steps):
                    self.save()  # a kill during the evaluation then repeats only that
                    self.history.evaluated(self.step, self.evaluate(stop, final=False)["success_rate"])
                if self.step >= self.env_steps:
                    break
                if self.history.as_good_as(stop_at):
                    console.print(f"algo.stop_at={stop_at} is reached: ends after {self.step} environment steps")
                    break
                if stop.received:
                    self.save()
                    raise Interrupted(stop.received)
                before, started = self.step, time.perf_counter()
                self.acting.begin()  # algo.explore; environments begin to do it
                if not self.algo.on_policy:  # learns from what came before, while others act
                    self.learn()
                result = self.acting.finish()  # algo.observe
                if self.algo.on_policy:
                    self.learn()
                self.step += int(result.n_steps.sum())
                self.check_finite()
                self.history.add(result, time.perf_counter() - started)
                if crossed(before, self.step, config["log"]["every"]):
                    self.log(env_steps=self.step, **self.history.numbers(), **self.algo.counters)
                    bar.update(self.step, self.history.note())
                if crossed(before, self.step, config["algo"]["save_every"]) or self.step >= self.env_steps:
                    self.save()

    def learn(self) -> None:
        """The updates that are due."""
        with large_products():
            self.metrics |= self.algo.update()

    def facts(self, *, final: bool) -> dict[str, Any]:
        """Base, dip, steps to 90 and 95 %, time."""
        return self.history.facts()


class FromNothing(WithoutBase, FineTuning):
    """``algo=sac``, and ``algo=rlpd`` with demonstrations: the same loop."""


SESSIONS: dict[str, Callable[[dict[str, Any], Run, Accelerator], Session]] = {
    "bc": Imitation,
    "distill": Distillation,
    **dict.fromkeys(FINE_TUNERS, FineTuning),
    **dict.fromkeys(FROM_NOTHING, FromNothing),
}


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help"} & set(argv):
        print(help_text("train", USAGE))
        return 0
    config, resumed = read_config(argv, [*FINE_TUNERS, "distill"])
    accelerator = start_accelerator(config)
    is_main = accelerator.is_main_process
    run = Run.resume(config["run_dir"], is_main=is_main) if resumed else Run.create(config, is_main=is_main)
    try:
        session = lookup(SESSIONS, config["algo"]["name"], "algo")(config, run, accelerator)
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
                    console.print(
                        f"{e}: saved at {session.unit} {session.saved}; continue: python train.py resume={run.path}"
                    )
                return 0
    finally:
        run.close()
    if run.is_main:
        session.report(summary)
    return 0


if __name__ == "__main__":
    run_main(main)
