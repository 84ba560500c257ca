"""Arms of servos, in MuJoCo, as the simulated buses see them: goals in, positions out, in real time."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import mujoco as _mujoco
import numpy as np

from data.errors import ConfigError
from real_robot.core.ring import Ring
from real_robot.core.types import SECOND
from real_robot.simulators.world import World

mujoco: Any = _mujoco  # its compiled members are unknown to type checkers
PUBLISH = 10_000_000  # ns between records of the world's ring
GEARS = 1.5  # Nm, friction of a limp joint
LONGEST = 10.0  # s that are caught up with after this process was stopped


def world_dtype(nq: int) -> np.dtype:
    """A record of a ``world`` ring: time, s of the simulation, and MuJoCo's qpos."""
    return np.dtype([("time", "<f8"), ("qpos", "<f8", (nq,))])


class Arm(Protocol):
    """What a simulated bus asks of the arm that its servos move; joints are numbered as in ``joints``."""

    joints: tuple[str, ...]
    ranges: np.ndarray  # (n, 2) rad

    def step(self) -> None:
        """Lives until now."""
        ...

    def positions(self) -> np.ndarray:
        """(n,) rad."""
        ...

    def velocities(self) -> np.ndarray:
        """(n,) rad/s."""
        ...

    def efforts(self) -> np.ndarray:
        """(n,) Nm."""
        ...

    def set_goal(self, joint: int, position: float) -> None:
        """Position, rad, that the servo goes to while it has torque."""
        ...

    def set_torque(self, joint: int, on: bool) -> None:
        """A servo without torque can be moved by hand."""
        ...


class ServoArm(ABC):
    """A model's position actuators.

    Args:
        model, data: MuJoCo's.
        joints: names of actuators, in the order of the servos' ids; all of the model's by default.
    """

    def __init__(self, model: Any, data: Any, joints: Sequence[str] = ()):
        self.model, self.data = model, data
        known = {model.actuator(i).name: i for i in range(model.nu)}
        self.joints = tuple(joints) or tuple(known)
        if missing := [name for name in self.joints if name not in known]:
            raise ConfigError(f"The model has no position actuators {missing}; it has {sorted(known)}.")
        self._actuator = np.array([known[name] for name in self.joints])
        joint = model.actuator_trnid[self._actuator, 0]
        self._qpos, self._dof = model.jnt_qposadr[joint], model.jnt_dofadr[joint]
        self.ranges = model.jnt_range[joint].copy()
        self._friction = model.dof_frictionloss.copy()
        self._gain, self._bias = model.actuator_gainprm.copy(), model.actuator_biasprm.copy()
        self.torque = np.ones(len(self.joints), bool)

    @abstractmethod
    def step(self) -> None:
        """Lives until now."""

    def positions(self) -> np.ndarray:
        """(n,) rad."""
        return self.data.qpos[self._qpos]

    def velocities(self) -> np.ndarray:
        """(n,) rad/s."""
        return self.data.qvel[self._dof]

    def efforts(self) -> np.ndarray:
        """(n,) Nm."""
        return self.data.actuator_force[self._actuator]

    def set_goal(self, joint: int, position: float) -> None:
        """Position, rad, that the servo goes to while it has torque."""
        self.data.ctrl[self._actuator[joint]] = position

    def set_torque(self, joint: int, on: bool) -> None:
        """A servo without torque can be moved by hand; its gears keep an arm so light from falling."""
        a, dof = self._actuator[joint], self._dof[joint]
        self.model.dof_frictionloss[dof] = self._friction[dof] if on else GEARS
        self.torque[joint] = on
        self.model.actuator_gainprm[a] = self._gain[a] if on else 0
        self.model.actuator_biasprm[a] = self._bias[a] if on else 0


class WorldArm(ServoArm):
    """The arm of a world with a task, see ``World``: whoever asks for the arm moves the world on."""

    def __init__(self, world: World):
        super().__init__(world.model, world.data, world.joints)
        self.world = world

    def step(self) -> None:
        """Lives until now, and does what it was asked through the world's port."""
        self.world.messages()
        self.world.advance(time.monotonic_ns())


class LoneArm(ServoArm):
    """An arm and nothing else.

    Args:
        model: MJCF file with a position actuator of each joint's name.
        joints: names, in the order of the servos' ids; all actuators of the model by default.
        world: path of a ring that qpos is published to at up to 100 Hz, for simulated cameras.
        hand: who moves joints that have no torque: "" nobody, "sweep" a hand that brings one joint after another to
            both ends of its range, else the path of a ring of (n,) float64 records, rad, where they are held.
    """

    def __init__(self, model: str | Path, joints: Sequence[str] = (), world: str | Path = "", hand: str = ""):
        loaded = mujoco.MjModel.from_xml_path(str(model))
        super().__init__(loaded, mujoco.MjData(loaded), joints)
        self._hand = "sweep" if hand == "sweep" else (Ring.attach(hand) if hand else None)
        self._t = self._start = time.monotonic_ns()
        self._published = 0
        self._world = Ring.create(world, world_dtype(self.model.nq), 256) if world else None
        mujoco.mj_forward(self.model, self.data)

    def step(self) -> None:
        """Lives until now."""
        now, dt = time.monotonic_ns(), round(self.model.opt.timestep * SECOND)
        self._t = max(self._t, now - round(LONGEST * SECOND))
        while self._t + dt <= now:
            if self._hand is not None and not self.torque.all():
                self._move_by_hand()
            mujoco.mj_step(self.model, self.data)
            self._t += dt
        if self._world is not None and now - self._published >= PUBLISH:
            self._world.put(np.array((self.data.time, self.data.qpos), self._world.dtype), now)
            self._published = now

    def _move_by_hand(self) -> None:
        """A hand is stronger than gears: it brings the joints where it wants them, no faster than 6 rad/s."""
        now = self.positions()
        if isinstance(self._hand, Ring):
            record = self._hand.latest()
            want = now if record is None else np.clip(record.data, self.ranges[:, 0], self.ranges[:, 1])
        else:
            want = self._sweep()
        step = np.clip(want - now, -6 * self.model.opt.timestep, 6 * self.model.opt.timestep)
        free = ~self.torque
        self.data.qvel[self._dof[free]] = (step / self.model.opt.timestep)[free]

    def _sweep(self) -> np.ndarray:
        """All joints in the middle, but for one at a time that goes to its lower, then to its upper end."""
        low, high = self.ranges.T
        want = (low + high) / 2
        second = (self._t - self._start) / SECOND
        joint = int(second / 2.5) % len(self.joints)
        want[joint] = low[joint] if second % 2.5 < 1.25 else high[joint]
        return want
