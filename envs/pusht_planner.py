"""Pushes a T to its goal by looking ahead in a copy of the physics: PushT's demonstrations, with nothing downloaded.

A plan is one straight push: where on the T's outline it begins, in which direction, and how far. The block has no
momentum (it moves only while it is pushed), so what a push does depends on how far the pusher came, not on how fast.
Every push of a fixed list is tried in the copy, the best of them are continued by a second push of the list, and the
first push of the best pair is carried out: around the block without touching it, along the push, and back a little.
"""

# An extra, which a type checker may not find.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import shapely
from gym_pusht.envs.pusht import PushTEnv as Physics
from shapely.geometry import LineString, Point, Polygon

# The T in its own frame, pixels of the 512 x 512 world; the pusher is a disc.
OUTLINE = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float)
RADIUS, ROOM = 15.0, (21.0, 490.0)
MARGIN = 6.0  # pixels between pusher and block before a push
SPACING, SLANTS = 15.0, (-0.45, 0.0, 0.45)  # of the pushes tried: pixels along the outline, radians from its normal
SECOND = (0.0,)  # slants of the pushes that continue them
REACH, STRIDE = 110.0, 1.2  # pixels: the longest push, and the pusher's way in one step of the physics
BEAM, TRIALS = 8, 5  # first pushes that are continued, and of those, carried out in the copy
SPEED = 14.0  # pixels per action while pushing
TRAVEL_SPEEDS = (26.0, 14.0, 8.0)  # and on the way, the first that does not touch the block
TRAVEL_COST = 0.006  # pixels of error that a pixel of way is worth
CLOSE = 8.0  # pixels of mean error from which on coverage itself is looked at


class Push(NamedTuple):
    """A straight push in the world: the pusher's first and last position and the block's pose after it."""

    start: np.ndarray
    end: np.ndarray
    pose: np.ndarray
    error: float


class _Copy(Physics):
    """The same physics, without observations and without counting contacts, which takes most of the time."""

    def _setup(self) -> None:
        super()._setup()
        for shape in self.space.shapes:
            shape.collision_type = 1

    def _get_coverage(self) -> float:
        return 0.0

    def get_obs(self) -> None:
        return None

    def put(self, agent: np.ndarray, velocity: np.ndarray, pose: np.ndarray) -> None:
        self.agent.position, self.agent.velocity = tuple(map(float, agent)), tuple(map(float, velocity))
        self.block.angle = float(pose[2])  # first: it turns about the centre of mass
        self.block.position = tuple(map(float, pose[:2]))
        self.block.velocity, self.block.angular_velocity = (0.0, 0.0), 0.0
        self.space.reindex_shapes_for_body(self.agent)
        self.space.reindex_shapes_for_body(self.block)

    @property
    def pose(self) -> tuple[float, float, float]:
        x, y = self.block.position
        return x, y, self.block.angle


def outline(pose: np.ndarray) -> np.ndarray:
    """(..., 8, 2) corners of the T at pose (..., 3): x, y, angle."""
    c, s = np.cos(pose[..., 2, None]), np.sin(pose[..., 2, None])
    x, y = OUTLINE[:, 0], OUTLINE[:, 1]
    return np.stack([c * x - s * y + pose[..., 0, None], s * x + c * y + pose[..., 1, None]], -1)


class PushPlanner:
    """Actions for one episode; the same states asked for in the same order give the same actions."""

    def __init__(self, goal: np.ndarray, threshold: float = 0.95):
        """For the goal pose (3,), until that share of it is covered."""
        self._goal, self._threshold = outline(goal), threshold
        self._goal_shape = Polygon(self._goal)
        self._goal_area = self._goal_shape.area
        self._starts, self._normals = _contour()
        self._copy = _Copy()
        self.reset()

    def reset(self) -> None:
        """A new episode."""
        self._plan: list[np.ndarray] = []
        self._expected: np.ndarray | None = None
        self._copy._setup()

    def action(self, agent: np.ndarray, velocity: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """(2,) where the pusher should go next; plans when the last plan is carried out or did not work out."""
        now = np.concatenate([agent, pose])
        surprised = self._expected is not None and np.abs(now - self._expected)[:4].max() > 3.0
        if self.coverage(pose) > self._threshold:
            self._plan, self._expected = [], None
            return self._leave(agent, pose)
        if not self._plan or surprised:
            self._copy._setup()
            self._plan = self._make_plan(agent, velocity, pose)
            self._states = self._follow(agent, velocity, pose, self._plan)
        action = self._plan.pop(0)
        self._expected = self._states.pop(0)
        return action

    def coverage(self, pose: np.ndarray) -> Any:
        """(...,) share of the goal that the T covers at pose (..., 3)."""
        return shapely.area(shapely.intersection(self._goal_shape, shapely.polygons(outline(pose)))) / self._goal_area

    def error(self, pose: np.ndarray) -> Any:
        """(...,) mean distance of the corners from theirs in the goal, pixels."""
        return np.linalg.norm(outline(pose) - self._goal, axis=-1).mean(-1)

    # ------------------------------------------------------------------ which push

    def _make_plan(self, agent: np.ndarray, velocity: np.ndarray, pose: np.ndarray) -> list[np.ndarray]:
        ranked: list[tuple[float, Push]] = []
        for i, push in enumerate(sorted(self._pushes(pose, SLANTS), key=lambda p: p.error)):
            value = push.error
            if i < BEAM:
                second = min((p.error for p in self._pushes(push.pose, SECOND)), default=push.error)
                value = min(value, 0.3 * push.error + 0.7 * second + 1.0)
            ranked.append((value + TRAVEL_COST * float(np.linalg.norm(agent - push.start)), push))
        ranked.sort(key=lambda item: item[0])
        best: tuple[float, list[np.ndarray]] | None = None
        tried = 0
        for value, push in ranked:
            if tried == TRIALS:
                break
            way = self._way(agent, velocity, pose, push.start)
            if way is None:
                continue
            tried += 1
            actions = way + self._stroke(push)
            after = self._follow(agent, velocity, pose, actions)[-1][2:]
            value += float(self.error(after)) - push.error + 0.02 * len(actions)
            if self.coverage(after) > self._threshold:
                value -= 100.0
            if best is None or value < best[0]:
                best = value, actions
        return best[1] if best else [self._leave(agent, pose)] * 3

    def _pushes(self, pose: np.ndarray, slants: Sequence[float]) -> list[Push]:
        """Each push of the list from ``pose``, as far as it is good."""
        c, s = np.cos(pose[2]), np.sin(pose[2])
        turn = np.array([[c, -s], [s, c]])
        found = []
        for point, normal in zip(self._starts @ turn.T + pose[:2], self._normals @ turn.T, strict=True):
            start = point + (RADIUS + MARGIN) * normal
            if (start < ROOM[0]).any() or (start > ROOM[1]).any():
                continue
            for slant in slants:
                c, s = np.cos(slant), np.sin(slant)
                heading = -np.array([c * normal[0] - s * normal[1], s * normal[0] + c * normal[1]])
                begin = point - (RADIUS + MARGIN) * heading if slant else start
                poses = self._slide(begin, heading, pose)
                error = self.error(poses)
                best = int(error.argmin())
                if error[best] < CLOSE:  # within a few pixels the corners' distance is not the last word
                    near = np.flatnonzero(error < error[best] + 1.5)
                    best = int(near[self.coverage(poses[near]).argmax()])
                if best > 0:
                    end = begin + heading * STRIDE * (best + 1)
                    if (end >= ROOM[0]).all() and (end <= ROOM[1]).all():
                        found.append(Push(begin, end, poses[best], float(error[best])))
        return found

    def _slide(self, start: np.ndarray, heading: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """(n, 3) the block's pose while the pusher advances by STRIDE; ends where it has long been getting worse."""
        copy = self._copy
        copy.put(start, heading * STRIDE / copy.dt, pose)
        poses, least = [], np.inf
        for i in range(int(REACH / STRIDE)):
            copy.space.step(copy.dt)
            poses.append(copy.pose)
            if i % 20 == 19:
                error = float(self.error(np.array(poses[-1])))
                if error > least + 12.0:
                    break
                least = min(least, error)
        return np.array(poses)

    # ------------------------------------------------------------------ how it is carried out

    def _stroke(self, push: Push) -> list[np.ndarray]:
        """Targets along the push, until the pusher has come to rest at its end, and back from it."""
        way = push.end - push.start
        length = float(np.linalg.norm(way))
        n = max(1, int(np.ceil(length / SPEED)))
        targets = [push.start + way * min(1.0, (k + 1) * SPEED / length) for k in range(n)]
        back = push.end - way / length * 8.0
        return [*targets, *[push.end] * 4, back]

    def _way(
        self, agent: np.ndarray, velocity: np.ndarray, pose: np.ndarray, to: np.ndarray
    ) -> list[np.ndarray] | None:
        """Targets from here to where a push begins, past the block without moving it."""
        corners = _path(agent, to, Polygon(outline(pose)))
        if corners is None:
            return None
        line = LineString(corners)
        for speed in TRAVEL_SPEEDS:
            n = max(1, int(np.ceil(line.length / speed)))
            targets = [np.array(line.interpolate(min(line.length, (k + 1) * speed)).coords[0]) for k in range(n)]
            targets += [to] * 4
            after = self._follow(agent, velocity, pose, targets)[-1][2:]
            if np.abs(after - pose)[:2].max() < 0.3 and abs(after[2] - pose[2]) < 0.005:
                return targets
        return None

    def _follow(
        self, agent: np.ndarray, velocity: np.ndarray, pose: np.ndarray, actions: list[np.ndarray]
    ) -> list[np.ndarray]:
        """(5,) pusher and block after each action, in the copy."""
        self._copy.put(agent, velocity, pose)
        states = []
        for action in actions:
            self._copy.step(action)
            states.append(np.array([*self._copy.agent.position, *self._copy.pose]))
        return states

    def _leave(self, agent: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Away from the block."""
        outside = agent - np.array(shapely.shortest_line(Point(agent), Polygon(outline(pose))).coords[-1])
        distance = float(np.linalg.norm(outside))
        step = outside / max(distance, 1e-6) * max(0.0, RADIUS + 2 * MARGIN - distance)
        return np.clip(agent + step, *ROOM)


def _contour() -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) points of the outline that the pusher can touch from outside, and the normals there."""
    points, normals = [], []
    shape = Polygon(OUTLINE)
    for a, b in zip(OUTLINE, np.roll(OUTLINE, -1, axis=0), strict=True):
        length = float(np.linalg.norm(b - a))
        normal = np.array([b[1] - a[1], a[0] - b[0]]) / length
        for u in np.linspace(5.0, length - 5.0, max(2, round(length / SPACING))):
            point = a + (b - a) * u / length
            if shape.distance(Point(point + (RADIUS + 0.1) * normal)) > RADIUS - 0.1:
                points.append(point)
                normals.append(normal)
    return np.array(points), np.array(normals)


def _path(start: np.ndarray, to: np.ndarray, block: Polygon) -> list[np.ndarray] | None:
    """Corners of a short way for the pusher's centre around ``block`` inside the room, or None."""
    wall = block.buffer(RADIUS + 2.0, join_style="mitre")
    nodes = [start]
    if wall.contains(Point(start)):  # still close after a push: step away first
        edge = block.buffer(RADIUS + MARGIN - 0.5, join_style="mitre").exterior
        nodes = [np.array(edge.interpolate(edge.project(Point(start))).coords[0])]
    round_it = (block.buffer(RADIUS + 9.0, join_style="mitre"), block.buffer(RADIUS + 4.0, quad_segs=2))
    detour = np.concatenate([np.array(shape.exterior.coords[:-1]) for shape in round_it])
    detour = detour[((detour >= ROOM[0]) & (detour <= ROOM[1])).all(1)]
    nodes += [*detour, to]
    n = len(nodes)
    distance, before, open_ = np.full(n, np.inf), [-1] * n, set(range(n))
    distance[0] = 0.0
    while open_:  # Dijkstra
        i = min(open_, key=lambda k: distance[k])
        open_.remove(i)
        if not np.isfinite(distance[i]) or i == n - 1:
            break
        for j in open_:
            length = float(np.linalg.norm(nodes[i] - nodes[j]))
            if distance[i] + length < distance[j] and not wall.crosses(LineString([nodes[i], nodes[j]])):
                distance[j], before[j] = distance[i] + length, i
    if not np.isfinite(distance[n - 1]):
        return None
    path, i = [], n - 1
    while i >= 0:
        path.append(nodes[i])
        i = before[i]
    return [start, *path[::-1]]
