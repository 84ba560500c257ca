"""The simulated robot that needs nothing else: physics in the control process itself, on whatever clock it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from real_robot.core.clock import MonotonicClock
from real_robot.core.streams import Session
from real_robot.core.types import SECOND, Clock, DeviceError, Joints, State
from real_robot.robots.spec import spec_from_model
from real_robot.simulators.scene import Scene, model_path
from real_robot.simulators.world import World


class MujocoArm:
    """Any arm with position actuators, a cube and a disc on its table.

    Args:
        model: MJCF file, or "ur5e"; actuators bear their joints' names.
        joints: without the gripper; by default all actuators but the gripper's.
        tcp: site of the tool's centre.
        gripper: actuator of the gripper, or None.
        velocity, acceleration, jerk: limits of the joints, rad/s, rad/s^2, rad/s^3.
        control_hz: rate that it is written to at.
        scene: entries of ``Scene`` that differ from its defaults.
        seed: of the first episode.
        clock: physics run up to its now.
        session: where ring ``world`` is published; None does without.
    """

    def __init__(
        self,
        model: str | Path = "ur5e",
        *,
        joints: Sequence[str] | None = None,
        tcp: str = "tcp",
        gripper: str | None = "gripper",
        velocity: float | Sequence[float] = 1.5,
        acceleration: float | Sequence[float] = 10.0,
        jerk: float | Sequence[float] = 500.0,
        control_hz: float = 200.0,
        scene: dict[str, Any] | None = None,
        seed: int = 0,
        clock: Clock | None = None,
        session: Session | None = None,
    ):
        self.spec = spec_from_model("mujoco", model_path(model), joints, tcp=tcp, gripper=gripper, velocity=velocity,
                                    acceleration=acceleration, jerk=jerk, control_hz=control_hz)  # fmt: skip
        self._clock = clock if clock is not None else MonotonicClock()
        self._session, self._seed = session, seed
        self._scene = replace(Scene(), **(scene or {}))
        self._world: World | None = None

    @property
    def world(self) -> World:
        """Raises DeviceError before ``connect``."""
        if self._world is None:
            raise DeviceError("robot mujoco is not connected.")
        return self._world

    def connect(self) -> None:
        """Builds the world, the robot at home."""
        assert self.spec.model is not None
        self._world = World(self.spec.model, self.spec.joints, gripper=self.spec.gripper, scene=self._scene,
                            seed=self._seed, start=self._clock.now())  # fmt: skip
        if self._session is not None:
            self._world.publish(self._session)

    def _advance(self) -> World:
        world = self.world
        world.messages()
        world.advance(self._clock.now())
        return world

    def read(self) -> State:
        """As it is now."""
        w = self._advance()
        return State(w.t, w.t / SECOND, w.q, w.dq, w.effort.copy())

    def write(self, q: Joints) -> None:
        """Servo targets from now on."""
        if not np.isfinite(q).all():
            raise DeviceError(f"robot mujoco was sent {q}: only finite targets are taken.")
        self._advance().set_targets(q)

    def stop(self) -> None:
        """Holds where it is; the gripper goes on holding what it holds."""
        w = self._advance()
        q = w.q
        if self.spec.gripper:
            q[-1] = w.targets[-1]
        w.set_targets(q)

    def recover(self) -> None:
        """Nothing stops it for good."""

    def close(self) -> None:
        """Holds."""
        if self._world is not None:
            self.stop()
