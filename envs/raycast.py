"""Depth, geom ids and point clouds of a MuJoCo scene by ray casting: no GL, the same on every machine.

A ray sees what a camera sees: geoms of the visible groups (0 to 2) that are not transparent.
"""

# MuJoCo is a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import mujoco
import numpy as np

from data.cloud import Camera, Workspace, depth_to_cloud, even_subsample
from data.errors import ConfigError, nearest
from envs.surface import surface_balls

VISIBLE_GROUPS = np.array([1, 1, 1, 0, 0, 0], dtype=np.uint8)
_BLOCK = 2  # pixels, side of the squares in which the outlines of things are painted
_TILE = 4  # pixels, side of the squares that one scouting ray speaks for
_FAR = 20.0  # metres; beyond it a ray has hit nothing


def camera_id(model: mujoco.MjModel, name: str) -> int:
    """Index of camera ``name``. Raises ConfigError with the nearest names."""
    i = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if i < 0:
        known = [model.camera(k).name for k in range(model.ncam)]
        raise ConfigError(f"There is no camera '{name}' in this scene. {nearest(name, known)}")
    return i


def scene_camera(model: mujoco.MjModel, data: mujoco.MjData, name: str) -> Camera:
    """The named camera where it is now."""
    i = camera_id(model, name)
    return Camera(data.cam_xpos[i].copy(), data.cam_xmat[i].reshape(3, 3).copy(), float(model.cam_fovy[i]))


def cast(
    model: mujoco.MjModel, data: mujoco.MjData, origin: np.ndarray, unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cast rays from ``origin`` (3,) along ``unit`` (M, 3): distance (M,) in metres (-1 for a miss), geom id (M,)."""
    m = len(unit)
    distance, geom = np.empty(m), np.empty(m, np.int32)
    if m:
        flat = np.ascontiguousarray(unit, dtype=np.float64).reshape(-1)
        mujoco.mj_multiRay(model, data, origin, flat, VISIBLE_GROUPS, 1, -1, geom, distance, m, _FAR)
    return distance, geom


def depth_image(
    model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) float32, metres along the optical axis, 0 where nothing is hit; and the geom id (H, W), -1 there."""
    rays = camera.directions(height, width)
    length = np.linalg.norm(rays, axis=1)  # rays are scaled to depth 1, so depth = distance / length
    distance, geom = cast(model, data, camera.position, rays / length[:, None])
    depth = np.where(geom >= 0, distance / length, 0.0).astype(np.float32)
    return depth.reshape(height, width), geom.reshape(height, width)


def visible_geoms(model: mujoco.MjModel) -> np.ndarray:
    """(G,) bool: what a camera sees. Transparent geoms (alpha 0) and the collision groups are not."""
    material = model.geom_matid
    alpha = model.geom_rgba[:, 3].copy()
    has = material >= 0
    alpha[has] = np.maximum(alpha[has], model.mat_rgba[material[has], 3])  # as mj_ray has it
    return (model.geom_group < 3) & (alpha > 0)


def make_workspace(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    fixture_materials: tuple[str, ...] = (),
) -> tuple[Workspace, np.ndarray]:
    """A box without the fixtures (static geoms of these materials: table, walls); and which geoms (G,) those are."""
    materials = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_MATERIAL, name) for name in fixture_materials]
    static = model.body_weldid[model.geom_bodyid] == 0
    fixture = np.isin(model.geom_matid, [i for i in materials if i >= 0]) & static & visible_geoms(model)
    boxes = np.flatnonzero(fixture & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE))
    axes = data.geom_xmat[boxes].reshape(-1, 3, 3)
    centre = data.geom_xpos[boxes] + np.einsum("gij,gj->gi", axes, model.geom_aabb[boxes, :3])
    half = model.geom_aabb[boxes, 3:]
    # Only fixtures that reach into the box cost time.
    reach = np.einsum("gij,gj->gi", np.abs(axes), half) + 0.01
    near = ((centre + reach > low) & (centre - reach < high)).all(axis=1)
    space = Workspace(np.asarray(low, float), np.asarray(high, float), centre[near], axes[near].copy(), half[near])
    return space, fixture


class PointCloudSensor:
    """A fixed number of points on everything inside the workspace, seen from static named cameras.

    Each camera has a pixel grid, and a pixel's ray is cast only if it can matter: it passes through the workspace
    (known in advance) and close by some part of a geom that is there now (small balls that cover every surface,
    ``surface_balls``). Rays are cast in two rounds, evenly dithered over those pixels: a thin scouting round, then as
    many more as are needed, where scouting found something. A depth camera with that grid would see the same points.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        cameras: list[str],
        n_points: int,
        workspace: Workspace,
        fixtures: np.ndarray,
        resolution: int = 160,
    ):
        """``resolution``: pixels along a side of each camera; ``fixtures``: (G,) bool, geoms that are never wanted.

        Raises:
            ConfigError: unknown camera, or one that moves.
        """
        self.model, self.data, self.n_points, self.workspace = model, data, n_points, workspace
        self.cameras = []
        for name in cameras:
            if model.body_weldid[model.cam_bodyid[camera_id(model, name)]] != 0:
                raise ConfigError(f"Camera '{name}' moves; point clouds need static cameras.")
            self.cameras.append(scene_camera(model, data, name))
        self._views = [_View(camera, resolution, workspace) for camera in self.cameras]
        self._balls = surface_balls(model, visible_geoms(model) & ~fixtures)
        ids = np.array([ball[0] for ball in self._balls], dtype=np.int64)
        self._bounds = ids, model.geom_aabb[ids, :3], model.geom_aabb[ids, 3:]

    def points(self) -> np.ndarray:
        """(P, 3) float32 metres, world."""
        return even_subsample(self.hits(), self.n_points)

    def points_through_depth(self, resolution: int) -> np.ndarray:
        """(P, 3) float32 metres, world: as ``points``, but from whole depth images, as a depth camera gives them."""
        images = [depth_image(self.model, self.data, c, resolution, resolution)[0] for c in self.cameras]
        clouds = np.concatenate([depth_to_cloud(d, c) for d, c in zip(images, self.cameras, strict=True)])
        return even_subsample(clouds[self.workspace.keep(clouds)], self.n_points)

    def hits(self) -> np.ndarray:
        """(M, 3) metres, world: hits inside the workspace, all cameras together; M is about ``n_points``."""
        useful = self.useful_rays()
        scout = 0.6 * self.n_points / max(sum(len(r) for r in useful), 1)
        values = [view.dither[r] for view, r in zip(self._views, useful, strict=True)]
        now = [r[v < scout] for r, v in zip(useful, values, strict=True)]
        found, kept = self._cast(now)
        # Around a ray that saw nothing wanted (another arm link in front, bare table) no more rays are spent.
        rest = []
        for view, ray, value, tried, good in zip(self._views, useful, values, now, kept, strict=True):
            tile = np.ones(view.n_tiles, bool)
            tile[view.tile[tried]] = False
            tile[view.tile[tried[good]]] = True
            rest.append(ray[(value >= scout) & tile[view.tile[ray]]])
        missing, spare = self.n_points - len(found), sum(len(r) for r in rest)
        if missing <= 0 or spare == 0:
            return found
        # Three of four such rays are expected to hit, but time is bounded. Their dither values lie in [scout, 1).
        more = min(missing / 0.75, 1.5 * self.n_points - sum(len(r) for r in now))
        limit = scout + (1.0 - scout) * min(1.0, more / spare)
        chosen = [r[view.dither[r] < limit] for view, r in zip(self._views, rest, strict=True)]
        return np.concatenate([found, self._cast(chosen)[0]])

    def useful_rays(self) -> list[np.ndarray]:
        """For each camera, which of its view's rays could hit a wanted surface in the workspace."""
        low, high = self.workspace.low, self.workspace.high
        ids, middle, bound = self._bounds
        axes = self.data.geom_xmat.reshape(-1, 3, 3)
        position, turn = self.data.geom_xpos[ids], axes[ids]
        middle = np.einsum("gij,gj->gi", turn, middle) + position
        bound = np.einsum("gij,gj->gi", np.abs(turn), bound)
        reaching = np.flatnonzero(((middle + bound > low) & (middle - bound < high)).all(axis=1)).tolist()
        if not reaching:
            return [np.zeros(0, np.int64) for _ in self._views]
        centre = np.concatenate([self._balls[i][1] @ turn[i].T + position[i] for i in reaching])
        radius = np.concatenate([self._balls[i][2] for i in reaching])
        gap = np.maximum(low - centre, centre - high).max(axis=1)
        near = gap <= radius
        centre, radius = centre[near], radius[near]
        return [view.covered(centre, radius) for view in self._views]

    def _cast(self, rays: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Cast these rays: hits in the workspace (M, 3) of all cameras; and per camera, which rays gave them."""
        clouds, geoms = [], []
        for view, ray in zip(self._views, rays, strict=True):
            unit = view.unit[ray]
            distance, geom = cast(self.model, self.data, view.camera.position, unit)
            clouds.append(view.camera.position + distance[:, None] * unit)
            geoms.append(geom)
        points = np.concatenate(clouds)
        kept = (np.concatenate(geoms) >= 0) & self.workspace.keep(points)
        return points[kept], np.split(kept, np.cumsum([len(g) for g in geoms])[:-1])


class _View:
    """The rays of one camera that pass through the workspace, in an order that keeps neighbours together.

    Attributes:
        pixel: (R,) flat pixel index; unit: (R, 3); dither: (R,) in [0, 1), the rays below q are an even fraction q of
            any region; tile: (R,) square of ``_TILE`` pixels, one of ``n_tiles``.
    """

    def __init__(self, camera: Camera, resolution: int, workspace: Workspace):
        self.camera, self._resolution = camera, resolution
        rays = camera.directions(resolution, resolution)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        rows, columns = np.divmod(np.flatnonzero(_meets_box(camera.position, rays, workspace)), resolution)
        # Rays next to each other meet the same triangles, which are then still in the cache.
        order = np.lexsort((columns, rows, columns // 8, rows // 8))
        rows, columns = rows[order], columns[order]
        self.pixel = rows * resolution + columns
        self.unit = rays[self.pixel]
        self.dither = (0.7548776662466927 * columns + 0.5698402909980532 * rows) % 1.0  # R2, low discrepancy
        tiles = -(-resolution // _TILE)
        self.tile, self.n_tiles = rows // _TILE * tiles + columns // _TILE, tiles * tiles
        self._side = -(-resolution // _BLOCK) + 1
        self._block = rows // _BLOCK * self._side + columns // _BLOCK

    def covered(self, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """The rays that may touch one of these balls (S), a few too many."""
        pixel, depth = self.camera.project(centre, self._resolution, self._resolution)
        if (depth < radius + 1e-3).any():  # a ball around or behind the camera has no bounded image
            return np.arange(len(self.pixel))
        # The image of a ball is an ellipse; its half axis is below focal * r / (depth - r) times the ray's slant.
        focal, middle = self.camera.focal(self._resolution), 0.5 * self._resolution
        offset = pixel - middle
        slant = np.sqrt(1.0 + (offset[:, 0] ** 2 + offset[:, 1] ** 2) / focal**2)
        reach = (focal * slant * radius / (depth - radius))[:, None]
        # Paint the S rectangles at once, by blocks of pixels: +1 and -1 at their corners, then sum up.
        side = self._side
        low = ((pixel - reach) / _BLOCK).clip(0, side - 1).astype(np.int64)
        high = ((pixel + reach) / _BLOCK + 1).clip(0, side - 1).astype(np.int64)
        (c0, r0), (c1, r1) = low.T, high.T
        begin = np.bincount(np.concatenate([r0 * side + c0, r1 * side + c1]), minlength=side * side)
        end = np.bincount(np.concatenate([r0 * side + c1, r1 * side + c0]), minlength=side * side)
        mask = (begin - end).reshape(side, side).cumsum(axis=0).cumsum(axis=1) > 0
        return np.flatnonzero(mask.reshape(-1)[self._block])


def _meets_box(origin: np.ndarray, unit: np.ndarray, box: Workspace) -> np.ndarray:
    """(M,) bool: rays (slab test) that pass through the workspace box."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t0, t1 = (box.low - origin) / unit, (box.high - origin) / unit
    near = np.nanmax(np.minimum(t0, t1), axis=1)
    far = np.nanmin(np.maximum(t0, t1), axis=1)
    return (far >= near) & (far > 0)
