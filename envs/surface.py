"""Small balls that cover every surface: a cheap, tight outline of where a ray can hit something."""

# MuJoCo is a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import mujoco
import numpy as np

CELL = 0.035  # metres; one ball per cell of this size that a surface passes through
_SPACING = 0.008  # metres between samples of a triangle
_PAD = _SPACING / np.sqrt(3)  # no point of a triangle is further from its samples


def surface_balls(model: mujoco.MjModel, wanted: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Cover the surfaces of the ``wanted`` geoms (G,) bool with balls.

    Returns:
        Per geom: its id, ball centres (S, 3) in the geom's own frame, radii (S,); metres. Planes are left out.
    """
    balls = []
    meshes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for g in np.flatnonzero(wanted & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE)):
        if model.geom_type[g] == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = int(model.geom_dataid[g])
            if mesh not in meshes:
                meshes[mesh] = _group(_mesh_samples(model, mesh))
            centre, radius = meshes[mesh]
        else:
            centre, radius = _box_balls(model.geom_aabb[g, :3], model.geom_aabb[g, 3:])
        balls.append((int(g), centre, radius))
    return balls


def _box_balls(centre: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Balls over the whole bounding box of a primitive (they are small; a shell would save little)."""
    counts = np.maximum(1, np.ceil(2 * half / CELL - 1e-9)).astype(int)
    steps = [(np.arange(n) + 0.5) / n * 2 - 1 for n in counts]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    return centre + grid * half, np.full(len(grid), float(np.linalg.norm(half / counts)) + 1e-4)


def _group(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A ball around the points (M, 3) of each occupied grid cell: centre (S, 3) and radius (S,)."""
    cell = np.floor((points - points.min(axis=0)) / CELL).astype(np.int64)
    key = (cell[:, 0] << 40) | (cell[:, 1] << 20) | cell[:, 2]
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    low = np.minimum.reduceat(points[order], starts, axis=0)
    high = np.maximum.reduceat(points[order], starts, axis=0)
    return (low + high) / 2, np.linalg.norm(high - low, axis=1) / 2 + _PAD


def _mesh_samples(model: mujoco.MjModel, mesh: int) -> np.ndarray:
    """Points (M, 3) on a mesh: every triangle's own barycentric grid, about ``_SPACING`` apart."""
    v0, nv = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    f0, nf = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    triangles = model.mesh_vert[v0 : v0 + nv].astype(np.float64)[model.mesh_face[f0 : f0 + nf]]  # (F, 3, 3)
    edges = np.linalg.norm(triangles - triangles[:, [1, 2, 0]], axis=-1).max(axis=1)
    cuts = np.maximum(1, np.ceil(edges / _SPACING)).astype(int)
    samples = [triangles[cuts == 1].reshape(-1, 3)]
    for k in np.unique(cuts[cuts > 1]):
        i, j = np.meshgrid(np.arange(k + 1), np.arange(k + 1), indexing="ij")
        inside = i + j <= k
        weights = np.stack([i[inside], j[inside], k - i[inside] - j[inside]], axis=-1) / k
        samples.append(np.einsum("wc,fcx->fwx", weights, triangles[cuts == k]).reshape(-1, 3))
    return np.concatenate(samples)
