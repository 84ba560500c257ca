"""The only source of what is written to a robot: a point that moves within velocity, acceleration and jerk limits.

A target may jump, tremble or be nonsense within the joint range; the point runs after it, re-planned in every tick by
Ruckig (Berscheid and Kroeger 2021), and never leaves a state from which it cannot stop in time: before a step is taken,
the stop that would follow it is computed, and if that stop leaves the joint range or the workspace, the stop that was
computed for the present state is continued instead. So by induction no limit is ever passed. An energy tank
(real_robot/control/tank.py), where there is one, is asked in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import IntFlag

import numpy as np
from ruckig import ControlInterface, InputParameter, Result, Ruckig, RuckigError, Synchronization, Trajectory

from real_robot.control.tank import Tank
from real_robot.core.types import Joints, RobotSpec

_SLACK = 1e-9  # rad: rounding of a stop that was computed again; the range is drawn in by twice as much
_BEHIND = 0.05  # rad to its target, from which a follower counts as behind


class Clip(IntFlag):
    """What kept a robot from going where it was asked to."""

    NONE = 0
    POSITION = 1  # the target lay outside the joint range
    RATE = 2  # it runs away faster than velocity, acceleration and jerk allow
    RANGE = 4  # going on would not leave room to stop within the joint range
    WORKSPACE = 8  # ... within the workspace
    ENERGY = 16  # the energy tank does not pay for it, or for the speed that was asked for


class Follower:
    """Position, velocity and acceleration of what is commanded.

    Args:
        spec: whose limits hold.
        outside: how far, in m, joints q put the tool outside of where it may be, 0 or less where it may; asked along
            every stop. What starts outside may come in.
        samples: points of a stop at which it is asked, at least; the last one is where it stands.
        tank: that has to pay for every step and the stop after it; None: energy is no limit.

    Attributes:
        q, v, a: (n,) the present state.
    """

    def __init__(
        self,
        spec: RobotSpec,
        outside: Callable[[Joints], float] | None = None,
        samples: int = 6,
        tank: Tank | None = None,
    ):
        self.spec, self.outside, self.samples, self.tank = spec, outside, samples, tank
        n = spec.n
        self._plan = Ruckig(n, spec.dt)
        self._trajectory = Trajectory(n)
        self._chase, self._brake = InputParameter(n), InputParameter(n)
        self._brake.control_interface = ControlInterface.Velocity
        # The joints arrive together: each by itself, they would lead the tool off its way, into the table for one, and
        # be stopped there for good. A gripper arrives when it can.
        arm, alone = n - spec.gripper, Synchronization.No
        self._together = [Synchronization.Time] * arm + [alone] * (n - arm)
        self._brake.synchronization = alone
        for parameters in (self._chase, self._brake):
            # A hair inside the limits, for the rounding of what is sent
            parameters.max_velocity = (spec.velocity * (1 - 1e-6)).tolist()
            parameters.max_acceleration = (spec.acceleration * (1 - 1e-6)).tolist()
            parameters.max_jerk = (spec.jerk * (1 - 1e-6)).tolist()
        self.reset(np.clip(np.zeros(n), spec.lower, spec.upper))

    def reset(self, q: Joints) -> None:
        """Stands at ``q``. Where that is outside the joint range, the range reaches so far until it has come in."""
        self.q, self.v, self.a = q.astype(np.float64).copy(), np.zeros(self.spec.n), np.zeros(self.spec.n)
        self._lower, self._upper = self.spec.lower + 2 * _SLACK, self.spec.upper - 2 * _SLACK
        self._low, self._high = np.minimum(self._lower, self.q), np.maximum(self._upper, self.q)
        if self.tank is not None:
            self.tank.jumped(self.q)

    @property
    def moving(self) -> bool:
        """Whether it is not at rest."""
        return bool(np.abs(self.v).max() > 1e-9 or np.abs(self.a).max() > 1e-9)

    def step(self, target: Joints, velocity: Joints | None = None) -> Clip:
        """One control period towards ``target`` (n,), which moves with ``velocity`` (n,); both finite."""
        spec, clip = self.spec, Clip.NONE
        goal = np.clip(target, self._lower, self._upper)
        arm = slice(None, -1) if spec.gripper else slice(None)  # a gripper that is asked to close harder is just closed
        if (target < spec.lower)[arm].any() or (target > spec.upper)[arm].any():
            clip |= Clip.POSITION
        # Seen from a frame that moves with the target, so that it is met and not run after.
        scale = 1.0 if self.tank is None else self.tank.scale
        fastest = spec.velocity * scale
        if spec.gripper:
            fastest[-1] = spec.velocity[-1]
        frame = np.zeros(spec.n) if velocity is None else np.clip(velocity, -0.9 * fastest, 0.9 * fastest)
        frame = np.where(goal == target, frame, 0.0)
        if spec.gripper:  # its targets end at its range's ends: met at speed, they would be passed
            frame[-1] = 0.0
        limit = fastest * (1 - 1e-6)
        chase = self._chase
        chase.max_velocity, chase.min_velocity = (limit - frame).tolist(), (-limit - frame).tolist()
        chase.current_position, chase.current_velocity = self.q.tolist(), (self.v - frame).tolist()
        chase.current_acceleration = self.a.tolist()
        chase.target_position = goal.tolist()
        if not self._find_way():
            return clip | Clip.RANGE | self.brake()
        q, v, a = (np.asarray(x) for x in self._trajectory.at_time(spec.dt))
        q, v = q + frame * spec.dt, v + frame
        if np.abs(goal - q).max() > _BEHIND:
            clip |= Clip.RATE if scale == 1.0 else Clip.RATE | Clip.ENERGY
        refused = self._refused(q, v, a)
        if refused:
            return clip | refused | self.brake()
        self._go(q, v, a)
        return clip

    def _go(self, q: Joints, v: Joints, a: Joints) -> None:
        if self.tank is not None:
            self.tank.draw(self.q, q)
        self.q, self.v, self.a = q, v, a

    def _find_way(self) -> bool:
        """The trajectory to the target."""
        for synchronization in (self._together, [Synchronization.No] * self.spec.n):  # ways of 1e-15 rad take no time
            self._chase.per_dof_synchronization = synchronization
            with suppress(RuckigError):
                return self._plan.calculate(self._chase, self._trajectory) in (Result.Working, Result.Finished)
        return False

    def brake(self) -> Clip:
        """One control period of the fastest stop."""
        self._stop(self.q, self.v, self.a)
        self._go(*(np.asarray(x) for x in self._trajectory.at_time(self.spec.dt)))
        return Clip.NONE

    def _stop(self, q: Joints, v: Joints, a: Joints) -> None:
        """Plans the fastest stop from a state, each joint by itself."""
        brake = self._brake
        brake.current_position, brake.current_velocity = q.tolist(), v.tolist()
        brake.current_acceleration = a.tolist()
        result = self._plan.calculate(brake, self._trajectory)
        if result not in (Result.Working, Result.Finished):  # cannot be: a stop exists from every state within limits
            raise FloatingPointError(f"No stop from velocity {v.tolist()}, acceleration {a.tolist()}: {result}")

    def _refused(self, q: Joints, v: Joints, a: Joints) -> Clip:
        """What the stop after a step to this state would run into."""
        self._stop(q, v, a)
        extremes = self._trajectory.position_extrema
        low = np.array([e.min for e in extremes])
        high = np.array([e.max for e in extremes])
        # Beyond the range only where it started there, and never further out.
        self._low = np.minimum(self._lower, np.maximum(self._low, self.q))
        self._high = np.maximum(self._upper, np.minimum(self._high, self.q))
        lower, upper = np.minimum(self._low - _SLACK, self.q), np.maximum(self._high + _SLACK, self.q)
        if (low < lower).any() or (high > upper).any():
            return Clip.RANGE
        if self.outside is not None:
            most, duration = max(0.0, self.outside(self.q)), self._trajectory.duration
            count = max(self.samples, int(np.ceil(duration / 0.02)))
            for t in np.linspace(0.0, duration, count):
                if self.outside(np.asarray(self._trajectory.at_time(float(t))[0])) > most + _SLACK:
                    return Clip.WORKSPACE
        if self.tank is not None:
            duration = self._trajectory.duration
            end = np.asarray(self._trajectory.at_time(duration)[0])
            if not self.tank.pays(self.q, q, v, a, end, duration):
                return Clip.ENERGY
        return Clip.NONE
