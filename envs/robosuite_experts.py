"""Scripted experts for robosuite's lift, can and square: demonstrations with nothing downloaded.

Each is a short list of hand poses to be reached one after the other; actions are OSC_POSE displacements towards them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

OPEN, CLOSED = -1.0, 1.0
FULL_STEP, FULL_TURN = 0.05, 0.5  # metres and radians that an action of 1 asks for
GAIN = 0.7  # of the way left, per action
FLOOR = 0.25  # but no slower: who imitates an approach that dies away stops short of its end


class Goal(NamedTuple):
    """A hand pose: where (3,), which yaw (None: as it is), the gripper, how near is near, and how long it may take."""

    position: np.ndarray
    yaw: float | None
    gripper: float
    within: float = 0.01
    at_least: int = 0
    at_most: int = 60


class Expert:
    """Follows the goals of a script, which looks at the simulation whenever the next one is due."""

    def __init__(self, env: Any, script: Callable[[Expert], Iterator[Goal]]):
        self.env, self._script = env, script
        self._goal: Goal | None = None

    def reset(self) -> None:
        """A new episode."""
        self._goals, self._goal, self._age = self._script(self), None, 0

    def action(self) -> np.ndarray:
        """(7,) now; asked again in the same state, it is the same."""
        clock = int(self.env.timestep)
        if self._goal is None:
            self._goal, self._since = next(self._goals), clock
        age = clock - self._since
        while self._reached(age):
            following = next(self._goals, None)
            if following is None:
                break
            self._goal, self._since, age = following, clock, 0
        goal = self._goal
        move = GAIN * (goal.position - self.hand) / FULL_STEP
        size, floor = float(np.abs(move).max()), FLOOR if age >= goal.at_least else 0.0
        move *= np.clip(size, floor, 1.0) / max(size, 1e-6)  # straight, also when far
        turn = np.zeros(3)
        turn[:2] = self._tilt() / FULL_TURN
        if goal.yaw is not None:
            turn[2] = GAIN * wrapped(goal.yaw - self.yaw) / FULL_TURN
        return np.concatenate([move, np.clip(turn, -1, 1), [goal.gripper]])

    def _reached(self, age: int) -> bool:
        assert self._goal is not None
        near = float(np.linalg.norm(self._goal.position - self.hand)) < self._goal.within
        if self._goal.yaw is not None:
            near = near and abs(wrapped(self._goal.yaw - self.yaw)) < 0.08
        return age >= self._goal.at_least and (near or age >= self._goal.at_most)

    @property
    def hand(self) -> np.ndarray:
        """(3,) between the fingertips, world."""
        return np.array(self.env.sim.data.site_xpos[self.env.robots[0].eef_site_id["right"]])

    @property
    def axes(self) -> np.ndarray:
        """(3, 3) of the hand, world, in columns."""
        return np.array(self.env.sim.data.site_xmat[self.env.robots[0].eef_site_id["right"]]).reshape(3, 3)

    @property
    def yaw(self) -> float:
        """Direction of the hand's x axis in the plane, radians."""
        return float(np.arctan2(self.axes[1, 0], self.axes[0, 0]))

    def _tilt(self) -> np.ndarray:
        """(2,) rotation about x and y that makes the hand point down again."""
        return np.cross(self.axes[:, 2], [0.0, 0.0, -1.0])[:2]

    def body(self, name: str) -> tuple[np.ndarray, float]:
        """Position (3,) and yaw of a body."""
        data = self.env.sim.data
        matrix = np.array(data.get_body_xmat(name))
        return np.array(data.get_body_xpos(name)), float(np.arctan2(matrix[1, 0], matrix[0, 0]))

    def site(self, name: str) -> np.ndarray:
        """(3,) where a site is."""
        return np.array(self.env.sim.data.site_xpos[self.env.sim.model.site_name2id(name)])

    def nearest_yaw(self, yaw: float, period: float) -> float:
        """The one of yaw, yaw +- period, ... that takes the least turning."""
        return self.yaw + (wrapped(yaw - self.yaw) + period / 2) % period - period / 2


def wrapped(angle: float) -> float:
    """In [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def up(height: float) -> np.ndarray:
    """(3,) metres."""
    return np.array([0.0, 0.0, height])


def lift(expert: Expert) -> Iterator[Goal]:
    """Over the cube, down, close, up."""
    while True:
        cube, yaw = expert.body("cube_main")
        yaw = expert.nearest_yaw(yaw, np.pi / 2)
        yield Goal(cube + up(0.08), yaw, OPEN, within=0.02)
        cube, _ = expert.body("cube_main")  # again: at first it falls onto the table
        yield Goal(cube, yaw, OPEN, within=0.008)
        yield Goal(cube, yaw, CLOSED, at_least=8, at_most=8)
        yield Goal(cube + up(0.12), yaw, CLOSED)
        while expert.body("cube_main")[0][2] > cube[2] + 0.03:
            yield Goal(cube + up(0.12), yaw, CLOSED, at_least=1, at_most=1)


def can(expert: Expert) -> Iterator[Goal]:
    """Over the can, down, close, up, over its compartment, down, open, up."""
    place = expert.env.target_bin_placements[expert.env.object_id]
    while True:
        where, _ = expert.body("Can_main")
        yield Goal(where + up(0.12), None, OPEN, within=0.02)
        where, _ = expert.body("Can_main")
        yield Goal(where + up(0.01), None, OPEN, within=0.01)
        yield Goal(where + up(0.01), None, CLOSED, at_least=8, at_most=8)
        over = np.array([*place[:2], place[2] + 0.25])
        yield Goal(np.array([*expert.hand[:2], over[2]]), None, CLOSED, within=0.04)
        # The arm comes to rest some 5 cm short of it. Who imitates cannot know how long an expert has been waiting.
        yield Goal(over, None, CLOSED, within=0.07)
        yield Goal(over - up(0.14), None, CLOSED, within=0.07)
        yield Goal(over - up(0.14), None, OPEN, at_least=5, at_most=5)
        yield Goal(over, None, OPEN, within=0.02, at_most=25)


def square(expert: Expert) -> Iterator[Goal]:
    """Over the nut's handle, down, close, up, over the peg, turned to fit it, down, open, up."""
    while True:
        yaw = expert.nearest_yaw(expert.body("SquareNut_main")[1] + np.pi / 2, np.pi)
        yield Goal(expert.site("SquareNut_handle_site") + up(0.1), yaw, OPEN, within=0.015)
        handle = expert.site("SquareNut_handle_site")
        yield Goal(handle, yaw, OPEN, within=0.006)
        yield Goal(handle, yaw, CLOSED, at_least=8, at_most=8)
        yield Goal(handle + up(0.22), yaw, CLOSED, within=0.04)
        peg, _ = expert.body("peg1")
        for height, within in ((0.2, 0.02), (0.16, 0.004), (0.14, 0.004), (0.02, 0.02)):
            nut, nut_yaw = expert.body("SquareNut_main")
            turn, arm = _fitting_turn(nut_yaw, (expert.hand - nut)[:2])
            target = np.array([*(peg[:2] + arm), peg[2] + height])
            yield Goal(target, wrapped(expert.yaw + turn), CLOSED, within=within, at_least=3)
        here = expert.hand
        yield Goal(here, None, OPEN, at_least=5, at_most=5)
        yield Goal(here + up(0.15), None, OPEN, within=0.03)


def _fitting_turn(nut_yaw: float, arm: np.ndarray) -> tuple[float, np.ndarray]:
    """How far to turn the nut so that its hole fits the peg, and the way (2,) from nut to hand then.

    It fits in four ways; beyond the peg the hand is hardly in reach.
    """
    least = (wrapped(-nut_yaw) + np.pi / 4) % (np.pi / 2) - np.pi / 4
    ways = []
    for turn in (least - np.pi / 2, least, least + np.pi / 2):
        c, s = np.cos(turn), np.sin(turn)
        turned = np.array([[c, -s], [s, c]]) @ arm
        ways.append((abs(turn) + 60.0 * max(0.0, turned[0] - 0.01), turn, turned))
    return min(ways, key=lambda way: way[0])[1:]


EXPERTS: dict[str, Callable[[Any], Expert]] = {
    "lift": lambda env: Expert(env, lift),
    "can": lambda env: Expert(env, can),
    "square": lambda env: Expert(env, square),
}
