"""A policy that waves, and fails in the way that a file says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from real_robot.core.actions import ActionSpace
from real_robot.core.types import Frame, RobotSpec
from real_robot.remote.keys import CHUNK

HZ, LENGTH = 10.0, 8


def contract(spec: RobotSpec, camera: bool) -> dict[str, Any]:
    """Its metadata: what it is shown, and what it commands."""
    rule = {"hz": HZ, "state_key": "agent_pos", "velocity": False, "max_gap": 0.2, "max_image_age": 0.4,
            "crop": "none", "size": None}  # fmt: skip
    observation = {"agent_pos": {"shape": [spec.n], "dtype": "float32", "kind": "state"}}
    if camera:
        observation["rgb_front"] = {"shape": [48, 64, 3], "dtype": "uint8", "kind": "rgb"}
    return {
        "task": "test/wave",
        "observation": observation,
        "action": {"shape": [spec.n], "low": -1.0, "high": 1.0},
        "control_hz": HZ,
        "rule": rule,
        "actions": ActionSpace.of(spec, "delta", HZ).to_dict(),
        "n_obs_steps": 1,
        "n_action_steps": 4,
        "execution": {"name": "sync"},
    }


class Waves:
    """Swings the first joint.

    Args:
        metadata: see ``contract``.
        fault: file whose text says what goes wrong from now on (nan, inf, shape, wild, late); nothing, where
            there is none.
    """

    def __init__(self, metadata: Mapping[str, Any], fault: Path):
        self.metadata, self._fault = metadata, fault

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        t = time.monotonic() + np.arange(LENGTH) / HZ
        n = self.metadata["action"]["shape"][0]
        chunk = np.zeros((LENGTH, n))
        chunk[:, 0], chunk[:, -1] = 0.5 * np.cos(2 * t), 1.0
        fault = self._fault.read_text() if self._fault.exists() else ""
        if fault in ("nan", "inf"):
            chunk[3, 1] = float(fault)
        elif fault == "wild":
            chunk = np.random.default_rng(0).normal(0, 1e6, chunk.shape)
        elif fault == "late":
            time.sleep(0.2)
        elif fault == "shape":
            chunk = chunk[:, :-1]
        return {"actions": chunk, CHUNK: chunk}

    def close(self) -> None:
        """Nothing is held."""


def build(policy: Mapping[str, Any], mode: str) -> Waves:
    """For the policy process."""
    return Waves(policy["metadata"], Path(policy["fault"]))


class Grey:
    """A camera whose pictures count."""

    def __init__(self, name: str):
        self.name, self.width, self.height, self.fps, self.has_depth = name, 64, 48, 20.0, False
        self._seq = 0

    def start(self) -> None:
        """It is there."""

    def read(self) -> Frame:
        """The next picture, in its time."""
        time.sleep(1 / self.fps)
        self._seq += 1
        return Frame(time.monotonic_ns(), self._seq, np.full((48, 64, 3), self._seq % 256, np.uint8))

    def close(self) -> None:
        """Nothing is held."""
