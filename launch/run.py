"""A run folder: its configuration, its lock, the state to resume from, its metrics.

config.yaml       the resolved configuration; what ``resume=`` continues with
metrics.jsonl     one JSON object a line
tensorboard/      the same numbers
state.pt          everything a resumed run needs, replaced atomically
checkpoint/       the policy (see policies.checkpoint)
eval.json         the final evaluation
videos/, learning_curve.png
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from data.errors import ConfigError, DataError


def global_rng_state() -> dict[str, Any]:
    """States of the process-wide generators of python, numpy and torch."""
    kind, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - it is this one we save
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), int(pos), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_global_rng_state(state: Mapping[str, Any]) -> None:
    """Continues the streams of ``global_rng_state``."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, np_keys, *rest = state["numpy"]
    np.random.set_state((kind, np_keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


class Run:
    """One run folder; ``is_main`` says whether this process writes to it.

    Args:
        path: the folder.
        is_main: false in all but one process of a data-parallel run.
    """

    def __init__(self, path: Path | str, *, is_main: bool = True):
        self.path = Path(path)
        self.is_main = is_main
        self._metrics = None
        self._lock = None
        self._writer = None
        self._wandb = None

    @classmethod
    def create(cls, config: Mapping[str, Any], *, is_main: bool = True) -> Run:
        """A new folder for ``config``, locked; it counts as a run once ``begin`` has written the configuration.

        Raises:
            ConfigError: when the folder already holds a run, or one that starts there now.
        """
        run = cls(config["run_dir"], is_main=is_main)
        if is_main:
            try:
                run.path.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise ConfigError(f"run_dir={run.path} cannot be made: {e.strerror}.") from e
            run._acquire()
            if (run.path / "config.yaml").exists():
                raise ConfigError(
                    f"{run.path} already holds a run. Continue it with 'python train.py resume={run.path}', "
                    "or choose another run_dir."
                )
        return run

    def begin(self, config: Mapping[str, Any]) -> None:
        """Writes config.yaml, when all that can be wrong with it has been tried."""
        if self.is_main and not (self.path / "config.yaml").exists():
            self.write_text("config.yaml", yaml.safe_dump(dict(config), sort_keys=False))

    @classmethod
    def resume(cls, path: Path | str, *, is_main: bool = True) -> Run:
        """An existing folder, locked. Raises ConfigError when another process trains there."""
        run = cls(path, is_main=is_main)
        if is_main:
            run._acquire()
        return run

    @staticmethod
    def config_of(path: Path | str) -> dict[str, Any]:
        """The configuration of the run in folder ``path``. Raises ConfigError when there is none."""
        file = Path(path) / "config.yaml"
        if not file.exists():
            raise ConfigError(f"There is no run to resume at {path}: {file} does not exist.")
        return {**yaml.safe_load(file.read_text()), "run_dir": str(path)}

    def _acquire(self) -> None:
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise ConfigError(f"Another process is training in {self.path}.") from e

    def write_text(self, name: str, text: str) -> None:
        """Replaces a file of the folder in one step."""
        tmp = self.path / f".{name}.tmp"
        tmp.write_text(text)
        os.replace(tmp, self.path / name)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replaces state.pt; a kill at any moment leaves the old or the new one."""
        tmp = self.path / ".state.pt.tmp"
        with open(tmp, "wb") as f:
            torch.save(dict(state), f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, self.path / "state.pt")

    def load_state(self) -> dict[str, Any] | None:
        """state.pt, or None when the run was killed before its first save."""
        file = self.path / "state.pt"
        if not file.exists():
            return None
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as e:
            raise DataError(f"{file} cannot be read ({type(e).__name__}: {e}).") from e

    def open_logs(self, step: int, config: Mapping[str, Any]) -> None:
        """Starts the logs at ``step``: lines of what is about to be repeated are dropped.

        That is every later line, written by a run that was killed before it saved, and evaluations at ``step`` itself.
        """
        if not self.is_main:
            return
        file = self.path / "metrics.jsonl"
        kept = []
        for line in file.read_text().splitlines() if file.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # half a line: the process was killed while it wrote
                continue
            if record["step"] < step or (record["step"] == step and "success_rate" not in record):
                kept.append(line + "\n")
        self.write_text("metrics.jsonl", "".join(kept))
        self._metrics = open(file, "a", buffering=1)  # noqa: SIM115
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1 if step else None)
        if config["log"]["wandb"]:
            import wandb  # pyright: ignore[reportMissingImports]

            self._wandb = wandb.init(
                project=config["log"]["wandb"],
                dir=self.path,
                config=dict(config),
                id=self.path.resolve().name,
                resume="allow",
            )

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the numbers to TensorBoard (and wandb)."""
        if not self.is_main or self._metrics is None:
            return
        line = {"step": step, **record, "time": round(time.time(), 3)}
        self._metrics.write(json.dumps(line) + "\n")
        numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)  # type: ignore[union-attr]
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def records(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def close(self) -> None:
        """Flushes the logs and gives the lock back; a folder that never became a run disappears."""
        if self._lock is not None and not (self.path / "config.yaml").exists():
            with suppress(OSError):  # not empty: it was somebody else's folder before
                (self.path / ".lock").unlink()
                self.path.rmdir()
        for thing in (self._metrics, self._writer, self._lock):
            if thing is not None:
                thing.close()
        if self._wandb:
            self._wandb.finish()
