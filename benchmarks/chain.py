"""Runs of train.py that build on each other, several at a time, each resumed where it was stopped.

What benchmarks/results holds of a run (records.py) stands for the run itself, unless another run needs its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from records import read

ROOT = Path(__file__).parent.parent


def ensure_run(folder: Path, overrides: Sequence[str], *, checkpoint: bool = False) -> dict[str, Any]:
    """Result of the run in ``folder``, which is started, or continued, where it has not ended yet.

    Its output goes to ``folder``.log. With ``checkpoint`` its record is not enough. Raises RuntimeError, with the last
    line of the output, when it fails.
    """
    ended = (folder / "eval.json").exists()
    if not ended and (checkpoint or read(folder) is None):
        args = [f"resume={folder}"] if (folder / "config.yaml").exists() else [*overrides, f"run_dir={folder}"]
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(folder.name + ".log")
        with open(log, "a") as out:
            done = subprocess.run(
                [sys.executable, str(ROOT / "train.py"), *args],
                cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        if done.returncode or not (folder / "eval.json").exists():
            raise RuntimeError(f"{folder} did not finish: {log.read_text().strip().splitlines()[-1]}")
    result = read(folder)
    assert result is not None
    return result


def check_root(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where other options for train.py would be answered with results of the usual ones."""
    if args.overrides and args.root == parser.get_default("root"):
        parser.error("options after -- want a --root of their own: what is in the usual one is not of these options.")


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


def errorbars(axes: Any, found: Sequence[tuple[float, Mapping[str, Any]]], colour: str, label: str) -> None:
    """Success rates with their intervals; ``found``: (x, eval.json)."""
    rates = [r["success_rate"] for _, r in found]
    bounds = [r["success_ci95"] for _, r in found]
    errors = [
        [p - low for p, (low, _) in zip(rates, bounds, strict=True)],
        [high - p for p, (_, high) in zip(rates, bounds, strict=True)],
    ]
    axes.errorbar([x for x, _ in found], rates, yerr=errors, fmt="o-", ms=4, capsize=2, color=colour, label=label)


def percent(rate: float | None) -> str:
    """0.935 -> "93.5"."""
    return "-" if rate is None else f"{100 * rate:.1f}".removesuffix(".0")


def interval(bounds: Sequence[float] | None) -> str:
    """Wilson bounds in per cent."""
    return "-" if bounds is None else f"{100 * bounds[0]:.0f}-{100 * bounds[1]:.0f}"
