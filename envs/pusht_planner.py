"""Pushes a T to its goal: PushT's demonstrations, with nothing downloaded.

A push is straight: where on the T's outline it begins, in which direction, how far. The block has no momentum (it moves
only while it is pushed), so what a push does is the same wherever the T lies: the physics is asked once, for every push
of a list, and from then on pushes are put together by turning and shifting. At every step the planner weighs all of
them, each alone and each followed by any other, against what is left of the error and the way that the pusher has to
go, around the block to where the push begins. It keeps no plan: what it does is a function of where pusher and block
are, which is what makes it fit to be imitated.
"""

# An extra, which a type checker may not find.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import shapely
from gym_pusht.envs.pusht import PushTEnv as Physics
from scipy.sparse.csgraph import shortest_path
from shapely.geometry import Point, Polygon

# The T in its own frame, pixels of the 512 x 512 world; the pusher is a disc.
OUTLINE = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float)
CENTRE = OUTLINE.mean(0)
SPREAD = float(((OUTLINE - CENTRE) ** 2).sum(-1).mean())
RADIUS, ROOM = 15.0, (21.0, 490.0)

MARGIN = 5.0  # pixels between pusher and block before a push
SPACING, SLANTS = 10.0, (-0.5, 0.0, 0.5)  # of the pushes: pixels along the outline, radians from its normal
REACH, STRIDE = 132.0, 1.2  # pixels: the longest push, and the pusher's way in one step of the physics
EVERY = 11  # of so many lengths of a push one is continued by another push
WAY, HOP = 0.045, 60.0  # pixels of error that a pixel of way is worth; pixels of way between two pushes
STEEP, NEAR = 3.0, 3.0  # the last few pixels of error count that much more: without them nothing is done
PUSH_LEAD, LEAD, TURN = 30.0, 45.0, 20.0  # pixels that the target is ahead: pushing, on the way, past a corner


class _Routes(NamedTuple):
    """Ways of the pusher to where pushes begin, in the T's frame."""

    length: np.ndarray  # (n_pushes,), inf where there is none
    direct: np.ndarray  # (n_pushes,) whether it is a straight line
    last: np.ndarray  # (n_pushes,) else the last corner on it
    before: np.ndarray  # (n_corners + 1,) the corner before each; the last one is the pusher
    away: np.ndarray | None  # where it leaves the block first, if it touches it


def outline(pose: np.ndarray) -> np.ndarray:
    """(..., 8, 2) corners of the T at pose (..., 3): x, y, angle."""
    return _turn(pose[..., 2, None], OUTLINE) + pose[..., None, :2]


class PushPlanner:
    """Actions: where the pusher should go next, a function of where pusher and block are."""

    def __init__(self, goal: np.ndarray, threshold: float = 0.95):
        """For the goal pose (3,), until that share of it is covered."""
        self._goal, self._threshold = goal, threshold
        self._goal_shape, self._goal_centre = Polygon(outline(goal)), outline(goal).mean(0)
        self._starts, self._headings, self._effects = _pushes()
        self._lengths = STRIDE * np.arange(1, self._effects.shape[1] + 1)
        self._moves = np.abs(self._effects[..., :2]).sum(-1) + 60.0 * np.abs(self._effects[..., 2]) > 0.7
        straight, every = slice(1, None, len(SLANTS)), slice(EVERY - 1, None, EVERY)
        self._second = self._effects[straight, every].reshape(-1, 3)
        self._second_way = WAY * np.tile(self._lengths[every], len(self._effects[straight])).astype(np.float32)
        self._map()

    def action(self, agent: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """(2,) the pusher's next target, for its position (2,) and the block's pose (3,)."""
        if self.coverage(pose) > self._threshold:
            return self._leave(agent, pose)
        here = _turn(-pose[2], agent - pose[:2])
        corners, starts = (_turn(pose[2], p) + pose[:2] for p in (self._corners, self._starts))
        routes = self._routes(here, _in_room(corners))
        since = here - self._starts
        along = (since * self._headings).sum(-1)
        beside = np.abs(since[:, 0] * self._headings[:, 1] - since[:, 1] * self._headings[:, 0])
        begun = (beside < 4.0) & (along > -MARGIN) & (along < MARGIN + 4.0)
        way = np.where(begun, np.minimum(routes.length, beside), routes.length)
        push, length = self._choose(pose, np.where(_in_room(starts), way, np.inf), starts)
        if begun[push]:
            heading = _turn(pose[2], self._headings[push])
            return agent + heading * min(PUSH_LEAD, 2.5 * (length - along[push]) + 2.0)
        return _turn(pose[2], self._ahead(here, routes, push)) + pose[:2]

    def coverage(self, pose: np.ndarray) -> float:
        """The share of the goal that the T covers at pose (3,)."""
        return self._goal_shape.intersection(Polygon(outline(pose))).area / self._goal_shape.area

    # ------------------------------------------------------------------ which push

    def _choose(self, pose: np.ndarray, way: np.ndarray, starts: np.ndarray) -> tuple[int, float]:
        """A push and its length, for the way (n_pushes,) to where each begins."""
        after = _continued(pose, self._effects)
        ends = starts[:, None] + _turn(pose[2], self._headings)[:, None] * self._lengths[:, None]
        cost = np.where(self._moves & _in_room(ends), WAY * (way[:, None] + self._lengths), np.inf)
        one = cost + self._error(after)
        some = slice(EVERY - 1, None, EVERY)
        two = np.full(cost[:, some].shape, np.inf)
        open_ = np.isfinite(cost[:, some])
        left = self._error_after_second(after[:, some][open_]) + self._second_way
        two[open_] = cost[:, some][open_] + left.min(-1) + WAY * HOP
        if one.min() <= two.min():
            push, length = np.unravel_index(one.argmin(), one.shape)
            return int(push), float(self._lengths[length])
        push, length = np.unravel_index(two.argmin(), two.shape)
        return int(push), float(self._lengths[some][length])

    def _error(self, pose: np.ndarray) -> np.ndarray:
        """(...,) root mean square distance of the corners from theirs in the goal, in pixels, the last ones dearer."""
        away = _turn(pose[..., 2], CENTRE) + pose[..., :2] - self._goal_centre
        return _dear((away**2).sum(-1) + 2.0 * SPREAD * (1.0 - np.cos(pose[..., 2] - self._goal[2])))

    def _error_after_second(self, pose: np.ndarray) -> np.ndarray:
        """(n, n_second) the same, when each of poses (n, 3) is followed by each second push: one matrix product."""
        by, turned = self._second, pose[:, 2] - self._goal[2]
        centre = _turn(by[:, 2], CENTRE) + by[:, :2]
        away = pose[:, :2] - self._goal_centre
        back = 2.0 * _turn(-pose[:, 2], away)
        one, c, s = np.ones(len(pose)), 2.0 * SPREAD * np.cos(turned), 2.0 * SPREAD * np.sin(turned)
        left = np.stack([(away**2).sum(-1) + 2.0 * SPREAD, one, back[:, 0], back[:, 1], -c, s], 1)
        right = np.stack(
            [np.ones(len(by)), (centre**2).sum(-1), centre[:, 0], centre[:, 1], np.cos(by[:, 2]), np.sin(by[:, 2])]
        )
        return _dear((left @ right).astype(np.float32))

    # ------------------------------------------------------------------ the way there

    def _map(self) -> None:
        """Corners for ways around the block, and how far they and the beginnings of pushes are from one another."""
        block = Polygon(OUTLINE)
        self._wall = block.buffer(RADIUS + 2.0, join_style="mitre")
        shapely.prepare(self._wall)
        self._edge = block.buffer(RADIUS + MARGIN - 0.5, join_style="mitre").exterior
        round_it = (block.buffer(RADIUS + 9.0, join_style="mitre"), block.buffer(RADIUS + 4.0, quad_segs=2))
        self._corners = np.concatenate([np.array(shape.exterior.coords[:-1]) for shape in round_it])
        self._between = self._straight(self._corners[:, None], self._corners[None])
        self._to_starts = self._straight(self._starts[:, None], self._corners[None])

    def _straight(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(...) distance of points (..., 2) where nothing is between them, else inf."""
        a, b = np.broadcast_arrays(a, b)
        blocked = shapely.crosses(self._wall, shapely.linestrings(np.stack([a, b], -2)))
        return np.where(blocked, np.inf, np.linalg.norm(a - b, axis=-1))

    def _routes(self, here: np.ndarray, open_: np.ndarray) -> _Routes:
        """The shortest ways from ``here`` (2,) past the corners that are ``open_`` (n_corners,)."""
        n, away, first = len(self._corners), None, 0.0
        if self._wall.contains(Point(here)):
            away = np.array(self._edge.interpolate(self._edge.project(Point(here))).coords[0])
            here, first = away, float(np.linalg.norm(away - here))
        graph = np.zeros((n + 1, n + 1))  # 0: no edge
        graph[:n, :n] = np.where(open_[:, None] & open_, self._between, 0.0)
        graph[n, :n] = np.where(open_, self._straight(here, self._corners), 0.0)
        graph[np.isinf(graph)] = 0.0
        distance, before = shortest_path(graph, indices=n, return_predecessors=True)
        past = distance[:n] + self._to_starts
        last = past.argmin(1)
        past, straight = past[np.arange(len(past)), last], self._straight(here, self._starts)
        return _Routes(np.minimum(straight, past) + first, straight <= past, last, before, away)

    def _ahead(self, here: np.ndarray, routes: _Routes, push: int) -> np.ndarray:
        """(2,) the point to head for on the way to where a push begins."""
        points = [self._starts[push]]
        corner = -1 if routes.direct[push] else int(routes.last[push])
        while 0 <= corner < len(self._corners):
            points.append(self._corners[corner])
            corner = int(routes.before[corner])
        if routes.away is not None:
            points.append(routes.away)
        lead = LEAD
        for point in reversed(points):
            leg = float(np.linalg.norm(point - here))
            if leg >= lead:
                return here + (point - here) * lead / leg
            here, lead = point, min(lead - leg, TURN)
        return here

    def _leave(self, agent: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Away from the block."""
        outside = agent - np.array(shapely.shortest_line(Point(agent), Polygon(outline(pose))).coords[-1])
        distance = float(np.linalg.norm(outside))
        step = outside / max(distance, 1e-6) * max(0.0, RADIUS + 12.0 - distance)
        return np.clip(agent + step, *ROOM)


def _turn(angle: Any, points: np.ndarray) -> np.ndarray:
    """Points (..., 2) turned by angles (...)."""
    c, s = np.cos(angle), np.sin(angle)
    x, y = points[..., 0], points[..., 1]
    return np.stack([c * x - s * y, s * x + c * y], -1)


def _continued(pose: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Poses (..., 3) after motions (..., 3) that are given in their frames."""
    return np.concatenate([_turn(pose[..., 2], by[..., :2]) + pose[..., :2], by[..., 2:] + pose[..., 2, None]], -1)


def _dear(squared: np.ndarray) -> np.ndarray:
    error = np.sqrt(np.maximum(squared, 0.0))
    return error + STEEP * np.minimum(error, NEAR)


def _in_room(points: np.ndarray) -> np.ndarray:
    return np.asarray(((points > ROOM[0]) & (points < ROOM[1])).all(-1))


def _contour() -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) points of the outline that the pusher can touch from outside, and the normals there."""
    points, normals = [], []
    shape = Polygon(OUTLINE)
    for a, b in zip(OUTLINE, np.roll(OUTLINE, -1, axis=0), strict=True):
        length = float(np.linalg.norm(b - a))
        normal = np.array([b[1] - a[1], a[0] - b[0]]) / length
        for u in np.linspace(4.0, length - 4.0, max(2, round(length / SPACING))):
            point = a + (b - a) * u / length
            if shape.distance(Point(point + (RADIUS + 0.1) * normal)) > RADIUS - 0.1:
                points.append(point)
                normals.append(normal)
    return np.array(points), np.array(normals)


def _pushes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every push, in the T's frame: the pusher's first position (n, 2), its heading (n, 2), the block's pose after
    each step of the physics (n, n_steps, 3)."""
    physics = Physics()
    physics._setup()
    for shape in physics.space.shapes:  # contacts are not counted here, which would take most of the time
        shape.collision_type = 1
    middle = np.array([256.0, 256.0])
    starts, headings, effects = [], [], []
    for point, normal in zip(*_contour(), strict=True):
        for slant in SLANTS:
            heading = -_turn(np.array(slant), normal)
            start = point + RADIUS * normal - MARGIN * heading
            physics.agent.position = tuple(start + middle)
            physics.agent.velocity = tuple(heading * STRIDE / physics.dt)
            physics.block.angle = 0.0  # first: it turns about the centre of mass
            physics.block.position = tuple(middle)
            physics.block.velocity, physics.block.angular_velocity = (0.0, 0.0), 0.0
            for body in (physics.agent, physics.block):
                physics.space.reindex_shapes_for_body(body)
            poses = []
            for _ in range(int(REACH / STRIDE)):
                physics.space.step(physics.dt)
                poses.append((*(np.array(physics.block.position) - middle), physics.block.angle))
            starts.append(start)
            headings.append(heading)
            effects.append(poses)
    return np.array(starts), np.array(headings), np.array(effects)
