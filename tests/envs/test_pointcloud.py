"""Ray-cast clouds against analytic geometry, GL depth images, and casting every ray."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cloud import Camera, Workspace, depth_to_cloud, even_subsample
from envs.make import make_env
from envs.metaworld import MetaWorldEnv
from envs.raycast import PointCloudSensor, cast, depth_image, make_workspace, scene_camera, visible_geoms
from envs.raytree import rebuild_mesh_trees
from envs.render import GLRenderer, backend

SCENE = """
<mujoco>
  <asset><material name="wood" rgba="0.6 0.4 0.2 1"/></asset>
  <worldbody>
    <geom type="plane" size="5 5 0.1" pos="0 0 -1"/>
    <geom name="table" type="box" size="1 1 0.05" pos="0 0 -0.05" material="wood"/>
    <geom name="ball" type="sphere" size="0.1" pos="-0.3 0.1 0.1"/>
    <geom name="box" type="box" size="0.08 0.05 0.12" pos="0.25 -0.1 0.12"/>
    <geom type="sphere" size="0.3" pos="0 0 0.3" group="3"/>
    <geom type="sphere" size="0.3" pos="0 0 0.3" rgba="1 1 1 0"/>
    <camera name="left" pos="-1.2 -1.2 1.0" xyaxes="0.7071 -0.7071 0 0.35 0.35 0.87"/>
    <camera name="right" pos="1.2 -1.2 1.0" xyaxes="0.7071 0.7071 0 -0.35 0.35 0.87"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def sensor_of(scene, n_points=400):
    model, data = scene
    workspace, fixtures = make_workspace(model, data, (-0.6, -0.6, -0.02), (0.6, 0.6, 0.5), ("wood",))
    return PointCloudSensor(model, data, ["left", "right"], n_points, workspace, fixtures)


def distance_to_shapes(points):
    """Metres to the nearer of the ball's and the box's surface."""
    ball = np.abs(np.linalg.norm(points - [-0.3, 0.1, 0.1], axis=1) - 0.1)
    q = np.abs(points - [0.25, -0.1, 0.12]) - [0.08, 0.05, 0.12]
    box = np.abs(np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0))
    return ball, box


def test_points_lie_on_the_analytic_surfaces(scene):
    points = sensor_of(scene).points()
    assert points.shape == (400, 3)
    assert points.dtype == np.float32
    ball, box = distance_to_shapes(points)
    assert np.minimum(ball, box).max() < 1e-5
    assert (ball < 1e-5).sum() > 50
    assert (box < 1e-5).sum() > 50


@pytest.mark.parametrize("size", [64, 160])
def test_depth_images_back_project_onto_the_surfaces(scene, size):
    model, data = scene
    camera = scene_camera(model, data, "left")
    depth, geom = depth_image(model, data, camera, size, size + 16)
    cloud = depth_to_cloud(depth, camera)
    shapes = [model.geom(name).id for name in ("ball", "box")]
    on_shapes = np.isin(geom.reshape(-1), shapes)
    assert on_shapes.sum() > 20
    assert np.minimum(*distance_to_shapes(cloud[on_shapes])).max() < 1e-5


def test_the_cloud_through_depth_images_shows_the_same_scene(scene):
    sensor = sensor_of(scene)
    rays, depth = sensor.points().astype(float), sensor.points_through_depth(160).astype(float)
    gap = np.linalg.norm(rays[:, None] - depth[None], axis=-1)
    for nearest in (gap.min(axis=0), gap.min(axis=1)):  # a pixel is 1 cm wide there
        assert np.percentile(nearest, 90) < 0.02
        assert nearest.max() < 0.06


def test_unread_pixels_are_left_out(scene):
    model, data = scene
    camera = scene_camera(model, data, "left")
    depth = np.array([[1.0, 0.0], [np.nan, np.inf]])
    cloud = depth_to_cloud(depth, camera)
    assert Workspace(np.full(3, -9.0), np.full(3, 9.0)).keep(cloud).tolist() == [True, False, False, False]


def test_projection_inverts_back_projection():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    camera = Camera(np.array([0.1, 0.2, 0.3]), rotation * np.sign(np.linalg.det(rotation)), 50.0)
    depth = np.random.default_rng(1).uniform(0.5, 2.0, (6, 8))
    pixel, z = camera.project(depth_to_cloud(depth, camera), 6, 8)
    rows, columns = np.mgrid[:6, :8]
    np.testing.assert_allclose(z.reshape(6, 8), depth, rtol=1e-9)
    np.testing.assert_allclose(pixel.reshape(6, 8, 2), np.stack([columns, rows], -1) + 0.5, atol=1e-9)


@pytest.mark.parametrize("task", ["door-open-v3", "pick-place-v3", "coffee-pull-v3", "sweep-into-v3"])
def test_no_ray_that_matters_is_left_out(task):
    """Every pixel whose ray would give a wanted point is among those considered."""
    env = MetaWorldEnv(task)
    env.reset(0)
    for _ in range(30):
        env.step(env.expert_action())
    sensor = env.sensor
    for view, considered in zip(sensor._views, sensor.useful_rays(), strict=True):
        camera = view.camera
        rays = camera.directions(160, 160)
        unit = rays / np.linalg.norm(rays, axis=1, keepdims=True)
        distance, geom = cast(env.model, env.data, camera.position, unit)
        wanted = (geom >= 0) & sensor.workspace.keep(camera.position + distance[:, None] * unit)
        assert wanted.any()
        assert not len(np.setdiff1d(np.flatnonzero(wanted), view.pixel[considered]))
    assert len(sensor.hits()) > 350


def test_same_seed_same_cloud_and_moving_hand_moving_cloud():
    args = {"suite": "metaworld", "name": "door-open-v3", "obs": ["pointcloud"]}
    first, second = make_env(args), make_env(args)
    second.reset(9)
    for _ in range(5):
        second.step(np.ones(4))
    a, b = first.reset(3)["pointcloud"], second.reset(3)["pointcloud"]
    np.testing.assert_array_equal(a, b)
    for _ in range(10):
        first.step(np.ones(4))
    assert not np.array_equal(first.observe()["pointcloud"], a)
    spread = np.linalg.norm(a[:, None] - a[None], axis=-1)
    np.fill_diagonal(spread, np.inf)
    assert np.percentile(spread.min(axis=1), 95) < 0.035  # no stray points


def test_rebuilt_trees_change_neither_images_nor_physics():
    plain, fast = MetaWorldEnv("coffee-pull-v3", obs=["state"]), MetaWorldEnv("coffee-pull-v3", obs=["state"])
    model = fast.model
    meshes = sorted(set(model.geom_dataid[visible_geoms(model) & (model.geom_type == 7)].tolist()))
    old = model.bvh_nodeid.copy()
    rebuild_mesh_trees(model, meshes)
    assert not np.array_equal(old, model.bvh_nodeid)
    for env in (plain, fast):
        env.reset(0)
    for _ in range(20):
        action = plain.expert_action()
        plain.step(action)
        fast.step(action)
    np.testing.assert_array_equal(plain.data.qpos, fast.data.qpos)
    for name in ("corner", "corner4"):
        images = [depth_image(e.model, e.data, scene_camera(e.model, e.data, name), 100, 100) for e in (plain, fast)]
        np.testing.assert_array_equal(images[0][1], images[1][1])
        np.testing.assert_allclose(images[0][0], images[1][0], atol=1e-6)


@pytest.mark.parametrize("task", ["door-open-v3", "hammer-v3"])
def test_rays_agree_with_gl_depth(task):
    if backend() == "raycast":
        pytest.skip("this machine renders without GL")
    env = MetaWorldEnv(task, obs=["state"])
    env.reset(0)
    for _ in range(20):
        env.step(env.expert_action())
    gl = GLRenderer(env.model, env.data, 128, 128, backend())
    for name in ("corner", "corner4"):
        camera = scene_camera(env.model, env.data, name)
        rays, _ = depth_image(env.model, env.data, camera, 128, 128)
        seen = rays > 0
        error = np.linalg.norm(depth_to_cloud(gl.depth(name), camera) - depth_to_cloud(rays, camera), axis=1)
        error = error[seen.reshape(-1)]
        assert np.median(error) < 0.002
        assert np.percentile(error, 95) < 0.01  # the rest lies on outlines
    gl.close()


@settings(max_examples=40, deadline=None)
@given(m=st.integers(0, 3000), n=st.integers(1, 600), seed=st.integers(0, 100), flat=st.booleans())
def test_even_subsample_gives_n_points_of_the_cloud(m, n, seed, flat):
    points = np.random.default_rng(seed).uniform(-1, 1, (m, 3))
    if flat:
        points = np.round(points, 1)  # many coincide
    got = even_subsample(points, n)
    assert got.shape == (n, 3)
    assert got.dtype == np.float32
    if m:
        have = {tuple(p) for p in points.astype(np.float32).tolist()}
        assert {tuple(p) for p in got.tolist()} <= have
        np.testing.assert_array_equal(got, even_subsample(points, n))
    if m <= n and m:
        assert {tuple(p) for p in got.tolist()} == have


def test_even_subsample_covers_a_small_thing_beside_a_large_one():
    rng = np.random.default_rng(0)
    dense = np.c_[rng.uniform(0, 0.1, (5000, 2)), np.zeros(5000)]
    sparse = np.c_[rng.uniform(1, 1.1, (300, 2)), np.zeros(300)]
    got = even_subsample(np.concatenate([dense, sparse]), 256)
    assert 90 < (got[:, 0] > 0.5).sum() < 160  # equal areas, nearly equal shares
