"""An energy tank: how much work what is commanded may do on the arm and on whatever the arm touches.

The model. A position-controlled arm pulls itself to where it is told to be, ``qd``, as by springs and dampers in its
joints, tau = K (qd - q) - D dq. With qd at rest that is passive: nobody gets more energy out of the arm than they put
in. What makes it active is qd moving: a step of qd from a to b, the arm being at q, changes what the springs hold by

    work = sum K (b - a) ((a + b) / 2 - q)                                                                      [J]

exactly, for qd stands still between two ticks. That is drawn from the tank (returned to it, where it is negative), and
what the dampers take out of the arm flows back, D (q2 - q1)^2 / (t2 - t1) between two readings, a lower bound of the
integral of D dq^2 by Cauchy and Schwarz, which a trembling encoder hardly raises. Nothing flows in above ``energy``.
The energy tanks are those of Ferraguti, Secchi and Fantuzzi (ICRA 2013) and Kronander and Billard (RA-L 2016), counted
at samples as by Zanella, Palli, Stramigioli and Califano (2024), who give a learnt policy a budget per task, as here:
the tank is filled when a person enables the robot or begins an episode.

A step is taken only if the tank pays for it *and* for the stop that would follow it with the arm stuck where it is, or
being pushed against that stop at ``push`` besides the speed that it has: so qd can always stop within the robot's
limits, and the tank is never below empty. Where it is nearly empty, what is commanded becomes slower before anything
is refused.

What it gives, for an arm of this model with true gains: from any moment on, the work done on the arm and its
surroundings is at most what the tank holds plus what is dissipated; an arm that runs into something stiff is pressed
against it with at most sqrt(2 K energy) in a joint that stood unloaded, once its own motion is spent. What it does not
give: force is not measured, K and D are what one assumes. Gains in the right proportion but of the wrong size make
joules of another size, and nothing worse; D / K (s) larger than what the arm really lags by pours energy in that is
not there (``damping: 0`` never does). An arm that adds integral action or feeds velocity forward has another law, its
kinetic energy at enabling is not counted, nor is what a gripper does. A reading that is late by L is wrong by as much
as the arm moves in L. This is a limit on commands, no collision detection, and no substitute for a robot's own force
limits.
"""

from __future__ import annotations

import numpy as np

from data.errors import ConfigError
from real_robot.core.types import SECOND, Joints, RobotSpec

_WINDOW = round(0.1 * SECOND)  # ns between two readings that dissipation is counted from: longer trembles less
_EASY = 0.8  # share of what is there that a step and its stop may cost before it becomes slower
_SLOWEST = 0.02  # share of its velocity limits that an empty tank leaves, for motion that costs nothing
_ROUNDING = 1e-9  # J


class Tank:
    """What is left of the energy that may be spent.

    Args:
        spec: of the robot; a gripper does not count.
        energy: J, the largest content.
        stiffness: Nm/rad (N/m) of the robot's position control, one for all joints of the arm or one for each.
        damping: Nms/rad of it; 0: nothing flows back but what is returned.
        initial: J that ``fill`` fills it to; ``energy`` by default.
        push: rad/s (m/s) by which a joint may be pushed against its own stop, besides the speed that it has.

    Attributes:
        level: J, in [0, energy], always.
        overdrawn: J that stops took beyond an empty tank: it was pushed harder than at ``push``. Told, not paid.
        scale: share of the velocity limits that leads to steps which it can pay; a gripper's is 1.

    Raises:
        ConfigError: a value that is not finite or of the wrong sign or shape.
    """

    def __init__(
        self,
        spec: RobotSpec,
        *,
        energy: float,
        stiffness: float | Joints,
        damping: float | Joints = 0.0,
        initial: float | None = None,
        push: float = 0.2,
    ):
        self.spec, self.energy, self.push = spec, float(energy), float(push)
        self.initial = self.energy if initial is None else float(initial)
        if not (np.isfinite(self.energy) and 0 <= self.initial <= self.energy and self.energy > 0):
            raise ConfigError(f"safety.tank: 0 <= initial={initial} <= energy={energy} J must hold, energy above 0.")
        if not (np.isfinite(self.push) and self.push >= 0):
            raise ConfigError(f"safety.tank.push={push}: expected rad/s, 0 or more.")
        self.stiffness = self._gain("stiffness", stiffness)
        self.damping = self._gain("damping", damping)
        self.level, self.overdrawn, self.scale = self.initial, 0.0, 1.0
        self._q, self._dq = np.zeros(spec.n), np.zeros(spec.n)
        self._from, self._at = np.zeros(spec.n), -1  # the reading that dissipation is counted from
        self._arm = slice(0, spec.n - spec.gripper)
        self._work, self._turning = np.zeros((4, spec.n)), np.zeros((2, spec.n))  # room for what a tick computes

    def _gain(self, name: str, value: float | Joints) -> Joints:
        arm = self.spec.n - self.spec.gripper
        given = np.asarray(value, np.float64)
        if given.shape not in ((), (arm,)) or not (np.isfinite(given).all() and (given >= 0).all()):
            raise ConfigError(f"safety.tank.{name}={value}: expected one number, 0 or more, or {arm}, one per joint.")
        if name == "stiffness" and not given.all():
            raise ConfigError(f"safety.tank.stiffness={value}: must be above 0.")
        gains = np.zeros(self.spec.n)
        gains[:arm] = given
        return gains

    def fill(self, command: Joints) -> None:
        """To ``initial`` less what the springs hold: a person's wish, when the robot is enabled or an episode begins.

        Args:
            command: (n,) where the arm is told to be.
        """
        way = np.subtract(command, self._q, out=self._work[0])
        way *= way
        filled = self.initial - 0.5 * float(self.stiffness @ way)
        self.level = max(self.level, filled)  # never less: what moves relies on what is there

    def feel(self, q: Joints, dq: Joints, t: int) -> None:
        """The arm is at ``q`` (n,) with velocity ``dq`` (n,) at ``t``; both finite. Once per tick, before the step."""
        self._q[:], self._dq[:] = q, dq
        if self._at < 0:
            self._from[:], self._at = q, t
        elif t - self._at >= _WINDOW:
            way = np.subtract(q, self._from, out=self._work[0])
            way *= way
            self.level = min(self.energy, self.level + float(self.damping @ way) * SECOND / (t - self._at))
            self._from[:], self._at = q, t

    def jumped(self, q: Joints) -> None:
        """The arm was put at ``q`` (n,), where it is told to be too: that is no work."""
        self._q[:], self._dq[:], self._at = q, 0.0, -1

    def work(self, a: Joints, b: Joints) -> float:
        """J that the springs hold more when the command goes from ``a`` to ``b`` (n,)."""
        middle = np.add(a, b, out=self._work[0])
        middle *= 0.5
        middle -= self._q
        step = np.subtract(b, a, out=self._work[1])
        step *= self.stiffness
        return float(step @ middle)

    def draw(self, a: Joints, b: Joints) -> None:
        """The command has gone from ``a`` to ``b`` (n,)."""
        left = self.level - self.work(a, b)
        if left < -_ROUNDING:
            self.overdrawn -= left
        self.level = min(self.energy, max(0.0, left))

    def pays(self, at: Joints, to: Joints, v: Joints, a: Joints, end: Joints, seconds: float) -> bool:
        """Whether a step can be paid for, with the stop after it; sets ``scale``.

        Args:
            at, to: (n,) the command before the step and after it.
            v, a: (n,) its velocity and acceleration after the step.
            end, seconds: (n,) where the fastest stop from there leads, and how long it takes.
        """
        price = max(0.0, self.work(at, to)) + self._price(to, v, a, end, seconds + self.spec.dt)
        pace = np.divide(np.abs(v, out=self._work[0]), self.spec.velocity, out=self._work[0])[self._arm].max()
        if price <= self.level * _EASY:
            self.scale = 1.0
        else:
            self.scale = max(_SLOWEST, min(1.0, float(pace) * (_EASY * self.level / price) ** 0.5))
        return price <= self.level

    def _turn(self, v: Joints, a: Joints) -> Joints:
        """How far a stop goes on, (n,) with sign, before it turns round; 0 where it only ends.

        It turns where the acceleration is against the velocity, and still so when that is 0, the jerk being what it
        may be: v + a t + j t^2 / 2 = 0 has a solution.
        """
        t, j = self._turning
        np.sign(a, out=j)
        j *= -self.spec.jerk
        np.multiply(a, a, out=t)
        t -= 2 * j * v
        turns = (t > 0) & (a * v < 0)
        np.sqrt(np.maximum(t, 0.0, out=t), out=t)
        np.subtract(np.abs(a), t, out=t)
        t /= self.spec.jerk
        t *= turns
        return t * (v + t * (a / 2 + t * j / 6))

    def _price(self, start: Joints, v: Joints, a: Joints, end: Joints, seconds: float) -> float:
        """J that a stop costs at most: on the way from ``start`` to where it turns, and from there to its ``end``."""
        turn = start + self._turn(v, a)
        return self._way(start, turn, seconds) + self._way(turn, end, seconds)

    def _way(self, a: Joints, b: Joints, seconds: float) -> float:
        """J of 0 or more that it costs to go from ``a`` to ``b`` (n,), the arm being pushed the other way meanwhile."""
        sign, near, far = np.sign(b - a, out=self._work[0]), self._work[1], self._work[2]
        away = np.maximum(np.multiply(self._dq, -sign, out=self._work[3]), 0.0, out=self._work[3])
        away += self.push
        away *= seconds
        for edge, x in ((a, near), (b, far)):  # how far the springs are drawn in the direction of the way
            np.subtract(edge, self._q, out=x)
            x *= sign
            x += away
            np.maximum(x, 0.0, out=x)
            x *= x
        far -= near
        far *= sign != 0
        return 0.5 * float(self.stiffness @ far)
