"""Runs of train.py that build on each other, several at a time, each resumed where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent


def ensure_run(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """eval.json of the run in ``folder``, which is started, or continued, where it has not ended yet.

    Its output goes to ``folder``.log. Raises RuntimeError, with the last line of that, when it fails.
    """
    result = folder / "eval.json"
    if not result.exists():
        args = [f"resume={folder}"] if (folder / "config.yaml").exists() else [*overrides, f"run_dir={folder}"]
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(folder.name + ".log")
        with open(log, "a") as out:
            done = subprocess.run(
                [sys.executable, str(ROOT / "train.py"), *args],
                cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        if done.returncode or not result.exists():
            raise RuntimeError(f"{folder} did not finish: {log.read_text().strip().splitlines()[-1]}")
    return json.loads(result.read_text())


def ensure_evaluation(out: Path, argv: Sequence[str]) -> dict[str, Any]:
    """eval.json in ``out`` of ``eval.py argv``, which is run where it is not there yet.

    Raises RuntimeError, with eval.py's last line, when it fails.
    """
    if (result := read(out)) is not None:
        return result
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *argv, f"out={out}"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{out}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads((out / "eval.json").read_text())


def side_by_side(jobs: Sequence[Callable[[], None]], n: int, after: Callable[[], None]) -> None:
    """All ``jobs``, n at a time; ``after`` is called when one has ended. One that fails is reported; the rest go on."""

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except RuntimeError as e:
            print(e, file=sys.stderr, flush=True)
        after()

    with ThreadPoolExecutor(n) as pool:
        list(pool.map(run, jobs))


def read(folder: Path) -> dict[str, Any] | None:
    """eval.json of a run that has ended."""
    file = folder / "eval.json"
    return json.loads(file.read_text()) if file.exists() else None


def errorbars(axes: Any, found: Sequence[tuple[float, Mapping[str, Any]]], colour: str, label: str) -> None:
    """Success rates with their intervals; ``found``: (x, eval.json)."""
    rates = [r["success_rate"] for _, r in found]
    bounds = [r["success_ci95"] for _, r in found]
    errors = [
        [p - low for p, (low, _) in zip(rates, bounds, strict=True)],
        [high - p for p, (_, high) in zip(rates, bounds, strict=True)],
    ]
    axes.errorbar([x for x, _ in found], rates, yerr=errors, fmt="o-", ms=4, capsize=2, color=colour, label=label)


def training_minutes(folder: Path) -> float:
    """Of a run of algo=bc or distill, without its evaluations."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [r for r in records if "samples_per_s" in r][-1]
    batch_size = yaml.safe_load((folder / "config.yaml").read_text())["algo"]["batch_size"]
    return last["step"] * batch_size / last["samples_per_s"] / 60


def percent(rate: float | None) -> str:
    """0.935 -> "93.5"."""
    return "-" if rate is None else f"{100 * rate:.1f}".removesuffix(".0")


def interval(bounds: Sequence[float] | None) -> str:
    """Wilson bounds in per cent."""
    return "-" if bounds is None else f"{100 * bounds[0]:.0f}-{100 * bounds[1]:.0f}"
