"""Simulated servo buses for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "MUJOCO_GL": "disable"}  # simulators draw nothing: they start faster


class Simulated(NamedTuple):
    """A running simulator."""

    port: str
    calibration: str
    process: subprocess.Popen


@contextlib.contextmanager
def bus(kind: str, folder: Path, *options: str, calibrated: bool = True) -> Iterator[Simulated]:
    """``real_robot.simulators.<kind>`` as long as it is needed."""
    calibration = str(folder / f"{kind}.json")
    given = [*options, f"calibration={calibration}"] if calibrated else list(options)
    command = [sys.executable, "-m", f"real_robot.simulators.{kind}", *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), line
        yield Simulated(line.split()[-1], calibration, process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
