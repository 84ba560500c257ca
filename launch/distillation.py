"""``algo=distill``: what differs from other imitation. The base teaches; its success stands beside the student's."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from algos.distill import Distillation
from data.chunks import ChunkBatch, ChunkDataset
from data.construct import construct
from data.errors import ConfigError, DataError
from data.source import Episodes
from data.spec import TaskSpec
from envs.evaluate import summarise
from launch.base import base_and_demos
from launch.session import Session
from launch.terminal import StopSignal, console
from policies.build import build_policy
from policies.chunk_policy import TOKENS, ChunkPolicy
from policies.rng import BatchRng


class Distilling(Session):
    """The parts of Imitation that have a teacher."""

    dataset: Any
    teacher: ChunkPolicy
    teacher_summary: Mapping[str, Any] | None = None

    def demonstrations(self, config: dict[str, Any], accelerator: Accelerator) -> tuple[Episodes, TaskSpec]:
        """Those of the base."""
        teacher, task, store = base_and_demos(config, accelerator)
        if not isinstance(teacher, ChunkPolicy):
            raise ConfigError(f"algo=distill needs a base trained by algo=bc; {config['base']} is another policy.")
        if teacher.prefix is not None:
            raise ConfigError(f"algo=distill does not teach to go on from actions; {config['base']} has policy.prefix.")
        if store is None:
            raise DataError(f"{config['base']} does not know its demonstrations: give data.path=...")
        self.teacher = teacher
        return store, task

    def make_algo(self, options: dict[str, Any]) -> Distillation:
        """A student like its teacher, but for the head."""
        config, seed = self.config, self.config["seed"]
        torch.manual_seed(seed)  # every process starts from the same weights
        student = build_policy(config, self.task, copy.deepcopy(self.teacher.normaliser))
        if config["compile"]:
            student.head.network.compile()  # pyright: ignore[reportAttributeAccessIssue]
        cache = options.pop("cache") and options["encoder"] == "frozen"
        given = {"policy": student, "teacher": self.teacher, "accelerator": self.accelerator, "seed": seed}
        algo = construct(Distillation, options, "algo", **given)
        if cache and student.reconstruction is None and sees_unchanged(student, self.dataset):
            self.dataset = with_tokens(self.dataset, self.teacher, int(config["data"]["memory_gb"] * 1e9))
        return algo

    def demo_seeds(self) -> list[int]:
        """Those of the base as well."""
        return sorted({*super().demo_seeds(), *self.config.get("base_demo_seeds", [])})

    def evaluate(self, stop: StopSignal, *, final: bool) -> dict[str, Any]:
        """The final evaluation lets the teacher act in the same episodes."""
        if final:
            results = self.run_episodes(self.teacher, self.eval_seeds(final=True), stop, "the teacher")
            self.teacher_summary = summarise(results)
        summary = super().evaluate(stop, final=final)
        if final:
            rate = summary["teacher_success_rate"]
            summary["kept"] = summary["success_rate"] / rate if rate else None
            if self.run.is_main:
                self.run.write_text("eval.json", json.dumps(summary) + "\n")
        return summary

    def facts(self, *, final: bool) -> dict[str, Any]:
        """Teacher's success, interval and latency."""
        if not final or self.teacher_summary is None:
            return {}
        names = ("success_rate", "success_ci95", "chunk_latency_ms_p50")
        return {f"teacher_{name}": self.teacher_summary[name] for name in names}

    def report(self, summary: Mapping[str, Any]) -> None:
        """With what the student kept of its teacher's success."""
        share = "" if summary["kept"] is None else f"; the student keeps {100 * summary['kept']:.0f} %"
        console.print(
            f"teacher: success {summary['teacher_success_rate']:.2f} in the same episodes{share}, at "
            f"{summary['chunk_latency_ms_p50']:.2f} ms for {summary['teacher_chunk_latency_ms_p50']:.2f} ms a chunk"
        )
        super().report(summary)


class TokenDataset:
    """Windows whose observations are encoded already."""

    def __init__(self, dataset: ChunkDataset, tokens: Tensor):
        self.dataset, self.tokens = dataset, tokens

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor) -> ChunkBatch:
        """See ChunkDataset; the observation is ``TOKENS``."""
        batch = self.dataset.batch(indices, obs=False)
        return batch._replace(obs={TOKENS: self.tokens[indices.to(self.tokens.device)]})


@torch.no_grad()
def sees_unchanged(policy: ChunkPolicy, dataset: ChunkDataset) -> bool:
    """Whether the encoder in training says what it says otherwise: no crops, no dropout."""
    obs, rng = dataset.batch(torch.arange(min(8, len(dataset)))).obs, BatchRng(0, policy.device)
    trained = policy.train().encode(obs, rng)
    return torch.equal(trained, policy.eval().encode(obs))


@torch.no_grad()
def with_tokens(dataset: ChunkDataset, policy: ChunkPolicy, memory_bytes: int) -> ChunkDataset | TokenDataset:
    """``dataset`` encoded once by ``policy``; as it is, where the tokens would not fit."""
    length, width = policy.encoder.token_shape(policy.n_obs_steps)
    if 4 * length * width * len(dataset) > memory_bytes:
        return dataset
    rows = torch.arange(len(dataset)).split(64)
    return TokenDataset(dataset, torch.cat([policy.encode(dataset.batch(part).obs) for part in rows]))
