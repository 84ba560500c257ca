"""Pictures with and without GL, and a GL that crashes."""

from __future__ import annotations

import numpy as np
import pytest

import envs.render as render
from data.errors import ConfigError
from envs.metaworld import MetaWorldEnv


@pytest.fixture(scope="module")
def env():
    env = MetaWorldEnv("door-open-v3", obs=["state"])
    env.reset(0)
    return env


def greens(picture):
    """Number of clearly green pixels (the pads of the gripper are cyan)."""
    return int((picture[..., 1].astype(int) - picture[..., [0, 2]].max(axis=-1) > 60).sum())


def test_a_crashing_gl_falls_back_to_ray_casting(monkeypatch):
    monkeypatch.delenv(render.VARIABLE, raising=False)
    tried = []

    def crash(name, code="import os; os.abort()", works=render._works):
        tried.append(name)
        return works(name, code)

    monkeypatch.setattr(render, "_works", crash)
    assert render.backend() == "raycast"
    assert tried == ["egl", "osmesa"]
    assert render.backend() == "raycast"  # kept for this process and its children, not tried again
    assert tried == ["egl", "osmesa"]


def test_a_gl_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(render, "_PROBE_SECONDS", 1)
    assert not render._works("egl", "import time; time.sleep(60)")


def test_the_variable_chooses_and_is_checked(monkeypatch):
    monkeypatch.setenv(render.VARIABLE, "raycast")
    assert render.backend() == "raycast"
    monkeypatch.setenv(render.VARIABLE, "raycst")
    with pytest.raises(ConfigError, match="'raycast'"):
        render.backend()


def test_shaded_picture(env, monkeypatch):
    monkeypatch.setenv(render.VARIABLE, "raycast")
    picture = env.render(120, 160)
    assert picture.shape == (120, 160, 3)
    assert picture.dtype == np.uint8
    red = (picture[..., 0] > 90) & (picture[..., 1] < 60)
    assert red.mean() > 0.05  # the arm
    assert 3 < greens(picture) < 300  # the goal marker
    np.testing.assert_array_equal(picture, env.render(120, 160))


def test_observations_hide_the_goal_marker(env, monkeypatch):
    monkeypatch.setenv(render.VARIABLE, "raycast")
    picture = env._picture("corner4", 120, 120, markers=False)
    assert greens(picture) == 0


def test_ray_cast_and_gl_pictures_show_the_same_scene(env, monkeypatch):
    monkeypatch.delenv(render.VARIABLE, raising=False)
    name = render.backend()
    if name == "raycast":
        pytest.skip("this machine renders without GL")
    gl = env.render(96, 96).astype(float)
    monkeypatch.setenv(render.VARIABLE, "raycast")
    rays = env.render(96, 96).astype(float)
    for picture in (gl, rays):
        picture -= picture.mean(axis=(0, 1))
    assert np.corrcoef(gl[..., 0].ravel(), rays[..., 0].ravel())[0, 1] > 0.5
    reddish = [(p[..., 0] - p[..., 2]) > 40 for p in (gl, rays)]
    assert (reddish[0] & reddish[1]).sum() / (reddish[0] | reddish[1]).sum() > 0.5
