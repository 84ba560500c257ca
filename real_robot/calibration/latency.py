"""How late: the delay between a cause and its effect, both sampled irregularly; and the motion that shows it.

A joint swings in a chirp, so slowly and softly that any robot follows. Commands and measured positions give the action
latency; measured positions and what a camera shows give the camera's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data.errors import ConfigError, DataError
from real_robot.core.types import SECOND, Clock, DeviceError, Frame, Joints, Robot, RobotSpec

LEAST_FIT = 0.6  # R^2, below which the effect is not that of the cause
SHARE = 0.5  # of the robot's limits that a swing may use
THUMBNAIL = (64, 48)


class Delay(NamedTuple):
    """``seconds`` from cause to effect; ``std`` of it, from the noise that is left; ``fit`` R^2 at it."""

    seconds: float
    std: float
    fit: float


def estimate_delay(
    t_cause: Float64[np.ndarray, " n"],
    cause: Float64[np.ndarray, " n"],
    t_effect: Float64[np.ndarray, " m"],
    effect: Float64[np.ndarray, " m"] | Float64[np.ndarray, "m k"],
    low: float = -0.05,
    high: float = 0.6,
) -> Delay:
    """The delay d for which effect(t) tells the most of cause(t - d).

    An effect of several components (of a picture's motion) tells by its best linear combination. The cause is taken
    between its samples by straight lines, so it must be sampled well above what it does; the effect need not be.

    Args:
        t_cause, t_effect: s, one clock, rising.
        cause, effect: in any units; with one component this is the peak of the normalised cross-correlation.
        low, high: s, looked between.

    Raises:
        DataError: too short, or the one does not follow from the other.
    """
    effect = np.asarray(effect, np.float64).reshape(len(t_effect), -1)
    use = (t_effect - high >= t_cause[0]) & (t_effect - low <= t_cause[-1])
    t, effect = t_effect[use], effect[use]
    if len(t) < 20 + 3 * effect.shape[1]:
        raise DataError(f"{len(t)} samples of the effect lie within the cause's time: too few for a delay.")
    effect = effect - effect.mean(axis=0)
    basis, sizes, _ = np.linalg.svd(effect, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * max(sizes[0], 1e-30)]

    def fits(delays: np.ndarray) -> np.ndarray:
        y = np.interp(t[None] - delays[:, None], t_cause, cause)
        y -= y.mean(axis=1, keepdims=True)
        return ((y @ basis) ** 2).sum(axis=1) / np.maximum((y**2).sum(axis=1), 1e-30)

    step = 0.004
    grid = np.arange(low, high + step, step)
    best = grid[int(np.argmax(fits(grid)))]
    for _ in range(3):  # the peak is a parabola from near: 4 ms, 0.4 ms, 0.04 ms
        around = best + step * np.linspace(-1.5, 1.5, 31)
        best = float(around[int(np.argmax(fits(around)))])
        step /= 10
    best = float(np.clip(best, low, high))
    fit = float(fits(np.array([best]))[0])
    if fit < LEAST_FIT:
        raise DataError(f"The effect does not follow its cause (R^2 {fit:.2f}, {LEAST_FIT} needed): was it to be seen?")
    slope = (np.interp(t - best + 5e-3, t_cause, cause) - np.interp(t - best - 5e-3, t_cause, cause)) / 1e-2
    noise = (1 - fit) * float(np.var(np.interp(t - best, t_cause, cause)))
    return Delay(best, float(np.sqrt(noise / max(float((slope**2).sum()), 1e-30))), fit)


def motion_components(pictures: Sequence[UInt8[np.ndarray, "h w"]], n: int = 3) -> Float64[np.ndarray, "m n"]:
    """What changes most in a series of grey pictures: their first principal components over time.

    With one thing moving, a camera on the arm or the arm before a camera, these are functions of its position; no
    marker is needed, as long as little else moves.
    """
    flat = np.stack(pictures).reshape(len(pictures), -1).astype(np.float64)
    flat -= flat.mean(axis=0)
    values, vectors = np.linalg.eigh(flat @ flat.T)
    return vectors[:, ::-1][:, :n] * np.sqrt(np.maximum(values[::-1][:n], 0))


def thumbnail(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Small and grey: enough for ``motion_components``, and light enough to keep hundreds of."""
    return cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), THUMBNAIL, interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class Chirp:
    """A swing of rising frequency that begins and ends at rest.

    Attributes:
        amplitude: rad or m.
        duration: s.
        low, high: Hz, at its beginning and end.
        ramp: s, over which it swells and fades.
    """

    amplitude: float = 0.05
    duration: float = 10.0
    low: float = 0.2
    high: float = 1.0
    ramp: float = 1.5

    def __call__(self, t: np.ndarray | float) -> np.ndarray:
        """Displacement at ``t`` s."""
        t = np.clip(t, 0, self.duration)
        phase = 2 * np.pi * (self.low * t + 0.5 * (self.high - self.low) / self.duration * t**2)
        edge = np.clip(np.minimum(t, self.duration - t) / self.ramp, 0, 1)
        swell = edge**3 * (10 - 15 * edge + 6 * edge**2)  # at rest at both ends, its acceleration too
        return self.amplitude * swell * np.sin(phase)

    def within(self, spec: RobotSpec, joint: int, q: float) -> Chirp:
        """The same swing around ``q``, small enough for half of the joint's limits.

        Raises:
            ConfigError: nothing is left of it.
        """
        t = np.linspace(0, self.duration, 20_000)
        x = replace(self, amplitude=1.0)(t)
        dt = t[1] - t[0]
        largest = min(self.amplitude, SHARE * (q - spec.lower[joint]), SHARE * (spec.upper[joint] - q))
        for limit in (spec.velocity, spec.acceleration, spec.jerk):
            x = np.gradient(x, dt)
            largest = min(largest, SHARE * limit[joint] / np.abs(x[3:-3]).max())
        if largest < 0.1 * self.amplitude or largest <= 0:
            raise ConfigError(
                f"robot {spec.name}: joint {spec.joints[joint]} at {q:.3f} may swing by {max(largest, 0):.4f} only, "
                f"{self.amplitude:g} was asked for: move it away from its limits, or swing slower (high)."
            )
        return replace(self, amplitude=largest)


class Swing(NamedTuple):
    """What was commanded and what happened; s of the session's clock, positions less the first one's."""

    t_command: Float64[np.ndarray, " n"]
    command: Float64[np.ndarray, " n"]
    t_state: Float64[np.ndarray, " m"]
    q: Float64[np.ndarray, " m"]
    t_frame: Float64[np.ndarray, " k"]
    pictures: list[np.ndarray]

    def action_latency(self) -> Delay:
        """From the writing of a command to the joint's following it.

        A command holds until the next; compared with straight lines between them, q would seem late by up to a period.
        """
        until = np.append(self.t_command[1:] - 1e-6, self.t_command[-1] + 1e-6)
        t = np.stack([self.t_command, until], axis=1).ravel()
        return estimate_delay(t, np.repeat(self.command, 2), self.t_state, self.q)

    def camera_latency(self) -> Delay:
        """From the joint's position to the picture of it, by the stamps of both."""
        if len(self.pictures) < 30:
            raise DataError(f"{len(self.pictures)} pictures during the swing: too few. Does the camera run?")
        return estimate_delay(self.t_state, self.q, self.t_frame, motion_components(self.pictures))


def swing(
    robot: Robot,
    joint: int,
    chirp: Chirp,
    clock: Clock,
    *,
    frames: Callable[[], Sequence[Frame]] | None = None,
    max_error: float = 0.15,
    rest: float = 1.0,
) -> Swing:
    """Moves one joint; stops the robot whatever happens.

    Args:
        robot: connected; nothing else may write to it.
        joint: index.
        chirp: fitted to the joint's limits (``Chirp.within``).
        clock: of the session.
        frames: the pictures that came since it was last asked; asked in every control period, must not wait.
        max_error: rad or m between command and position, beyond which the robot is stopped.
        rest: s of standing still before and after.

    Raises:
        DeviceError: the robot does not follow, or does not answer.
    """
    spec, first = robot.spec, robot.read()
    home: Joints = first.q.copy()
    commands, states, pictures = [], [], []
    last = -1
    begin = clock.now()
    ticks = round((chirp.duration + 2 * rest) * spec.control_hz)
    try:
        for k in range(ticks):
            clock.sleep_until(begin + round(k * SECOND / spec.control_hz))
            state = robot.read()
            if state.t > last:
                states.append((last := state.t, state.q[joint] - home[joint]))
            now = clock.now()
            offset = float(chirp((now - begin) / SECOND - rest))
            if abs(error := state.q[joint] - home[joint] - offset) > max_error:
                raise DeviceError(
                    f"robot {spec.name}: joint {spec.joints[joint]} is {error:+.3f} from where it was sent, and was "
                    "stopped: is it free to move?"
                )
            target = home.copy()
            target[joint] += offset
            robot.write(target)
            commands.append((now, offset))
            if frames is not None:
                pictures += [(f.t, thumbnail(f.rgb)) for f in frames()]
    finally:
        robot.stop()
    t_command, command = _series(commands)
    t_state, q = _series(states)
    return Swing(t_command, command, t_state, q, _series([(t, 0.0) for t, _ in pictures])[0], [p for _, p in pictures])


def _series(samples: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    t = np.array([s[0] for s in samples], np.int64) / SECOND
    return t, np.array([s[1] for s in samples], np.float64)
