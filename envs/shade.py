"""A shaded picture of a scene by ray casting, for machines without GL: videos and RGB observations."""

# MuJoCo is a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import mujoco
import numpy as np

from data.cloud import Camera
from envs.raycast import cast, depth_image, visible_geoms

_BACKGROUND = np.array([0.93, 0.94, 0.95])
_SUN = np.array([0.3, -0.2, 2.6])  # point light, metres, world: above the table, towards the viewer
_DEFAULT_GREY = np.array([0.5, 0.5, 0.5, 1.0], np.float32)


def shaded_image(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera: Camera,
    height: int,
    width: int,
    markers: bool = False,
    colours: np.ndarray | None = None,
) -> np.ndarray:
    """(height, width, 3) uint8: geom colours, soft light from above with shadows, smoothed edges.

    ``markers`` draws spherical sites (the goal). ``colours``: ``geom_colours(model)``, if it is at hand.
    """
    colours = geom_colours(model) if colours is None else colours
    depth, geom = depth_image(model, data, camera, height, width)
    hit = geom >= 0
    rays = camera.directions(height, width).reshape(height, width, 3)
    points = camera.position + depth[..., None] * rays
    normals = _normals(points, rays)
    colour = np.where(hit[..., None], colours[geom], _BACKGROUND)
    to_sun = _SUN - points
    to_sun /= np.linalg.norm(to_sun, axis=-1, keepdims=True)
    to_eye = -rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    diffuse = np.clip((normals * to_sun).sum(-1), 0, 1) * _sunlit(model, data, points, hit)
    facing = np.clip((normals * to_eye).sum(-1), 0, 1)  # a head lamp, so that no side is black
    half = to_sun + to_eye
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    gloss = 0.12 * np.clip((normals * half).sum(-1), 0, 1) ** 24 * (diffuse > 0)
    light = 0.34 + 0.30 * facing + 0.50 * diffuse
    picture = np.where(hit[..., None], colour * light[..., None] + gloss[..., None], colour)
    if markers:
        _draw_markers(model, data, camera, depth, picture)
    return (255.0 * np.clip(_smooth_edges(picture, geom), 0, 1) ** (1 / 1.1)).astype(np.uint8)


def geom_colours(model: mujoco.MjModel) -> np.ndarray:
    """(G, 3) in [0, 1]: a geom's own colour if it was given one, else its material's times its texture's mean."""
    colours = model.geom_rgba[:, :3].copy()
    for g in np.flatnonzero(visible_geoms(model)):
        material = model.geom_matid[g]
        if material >= 0 and np.allclose(model.geom_rgba[g], _DEFAULT_GREY):
            colours[g] = model.mat_rgba[material, :3] * _texture_mean(model, int(material))
    return colours.astype(np.float64)


def _texture_mean(model: mujoco.MjModel, material: int) -> np.ndarray:
    """(3,) mean colour of a material's texture, ones without one."""
    texture = int(np.max(model.mat_texid[material]))
    if texture < 0:
        return np.ones(3)
    start = int(model.tex_adr[texture])
    count = int(model.tex_height[texture] * model.tex_width[texture] * model.tex_nchannel[texture])
    pixels = model.tex_data[start : start + count].reshape(-1, int(model.tex_nchannel[texture]))
    return pixels[:: max(1, len(pixels) // 4096), :3].mean(axis=0) / 255.0


def _normals(points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(H, W, 3) unit normals towards the camera, from the differences of neighbouring points.

    Of the two neighbours along each axis the nearer one lies on the same surface, so edges stay sharp.
    """
    tangents = []
    for axis in (0, 1):
        ahead = np.diff(points, axis=axis, append=np.take(points, [-1], axis=axis))
        behind = np.diff(points, axis=axis, prepend=np.take(points, [0], axis=axis))
        a, b = (ahead**2).sum(-1, keepdims=True), (behind**2).sum(-1, keepdims=True)
        use_ahead = ((a < b) & (a > 0)) | (b == 0)
        tangents.append(np.where(use_ahead, ahead, behind))
    n = np.cross(tangents[0], tangents[1])
    n /= np.linalg.norm(n, axis=-1, keepdims=True) + 1e-12
    return np.where((n * rays).sum(-1, keepdims=True) > 0, -n, n)


def _sunlit(model: mujoco.MjModel, data: mujoco.MjData, points: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """(H, W) in [0.35, 1]: the share of sunlight that arrives, at half resolution and blurred for soft shadows."""
    half = points[::2, ::2]
    ray = half.reshape(-1, 3) - _SUN
    length = np.linalg.norm(ray, axis=-1)
    distance, _ = cast(model, data, _SUN, ray / length[:, None])
    blocked = (distance >= 0) & (distance < length - 0.012) & hit[::2, ::2].reshape(-1)
    light = _blur(1.0 - 0.65 * blocked.reshape(half.shape[:2]))
    return np.repeat(np.repeat(light, 2, axis=0), 2, axis=1)[: points.shape[0], : points.shape[1]]


def _blur(image: np.ndarray) -> np.ndarray:
    """3 x 3 box filter over the first two axes, borders repeated."""
    p = np.pad(image, [(1, 1), (1, 1)] + [(0, 0)] * (image.ndim - 2), mode="edge")
    rows = p[:-2] + p[1:-1] + p[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9.0


def _smooth_edges(picture: np.ndarray, geom: np.ndarray) -> np.ndarray:
    """Blend across the outlines of geoms: anti-aliasing without more rays."""
    edge = np.zeros(geom.shape, bool)
    rows, columns = geom[1:] != geom[:-1], geom[:, 1:] != geom[:, :-1]
    edge[1:] |= rows
    edge[:-1] |= rows
    edge[:, 1:] |= columns
    edge[:, :-1] |= columns
    return np.where(edge[..., None], 0.5 * picture + 0.5 * _blur(picture), picture)


def _draw_markers(
    model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, depth: np.ndarray, picture: np.ndarray
) -> None:
    """Spherical sites of the visible groups, hidden where a geom is in front; writes into ``picture``."""
    height, width = depth.shape
    spheres = (model.site_group < 3) & (model.site_rgba[:, 3] > 0) & (model.site_type == mujoco.mjtGeom.mjGEOM_SPHERE)
    for s in np.flatnonzero(spheres):
        pixel, distance = camera.project(data.site_xpos[s][None], height, width)
        (x, y), z = pixel[0], float(distance[0])
        radius = model.site_size[s, 0] * camera.focal(height) / max(z, 1e-6)
        patch = tuple(
            slice(max(0, int(middle - radius)), max(0, int(middle + radius) + 2)) for middle in (float(y), float(x))
        )
        rows, columns = np.mgrid[:height, :width][(slice(None), *patch)]
        r2 = ((columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2) / radius**2
        behind = (depth[patch] == 0) | (depth[patch] > z - model.site_size[s, 0])
        seen = (r2 < 1) & (z > 0.05) & behind
        bulge = np.sqrt(np.clip(1 - r2, 0, 1))[..., None]
        picture[patch][seen] = (model.site_rgba[s, :3] * (0.45 + 0.55 * bulge))[seen]
