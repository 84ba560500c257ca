"""Pictures of a scene: through MuJoCo's GL where the machine has it, else by ray casting.

GL libraries crash as often as they raise, so a backend is tried in a process of its own first; what was found is kept
in the environment variable ``DEFT_RENDER``, which child processes inherit and which a user can set.
"""

# MuJoCo is a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import weakref
from typing import Any

import mujoco
import numpy as np

from data.errors import ConfigError, nearest
from envs.raycast import camera_id, scene_camera
from envs.shade import geom_colours, shaded_image

BACKENDS = ("egl", "osmesa", "raycast")
VARIABLE = "DEFT_RENDER"
_PROBE_SECONDS = 60
_PROBE = "import sys; from envs.render import probe; probe(sys.argv[1])"


def backend() -> str:
    """The renderer of this process and its children: "egl", "osmesa" or "raycast".

    Raises:
        ConfigError: ``DEFT_RENDER`` names something else.
    """
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        chosen = next((name for name in ("egl", "osmesa") if _works(name)), "raycast")
        os.environ[VARIABLE] = chosen
    if chosen not in BACKENDS:
        raise ConfigError(f"{VARIABLE}={chosen} is not a renderer. {nearest(chosen, list(BACKENDS))}")
    return chosen


def probe(name: str) -> None:
    """Render one small picture with GL backend ``name``; run in a process that may die of it."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='1' rgba='1 0 0 1'/>"
        "<camera name='c' pos='0 0 4'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    picture = GLRenderer(model, data, 32, 32, name).render("c")
    if picture[16, 16, 0] <= picture[16, 16, 2]:
        raise RuntimeError(f"{name} renders, but the picture is wrong")


def _works(name: str, code: str = _PROBE) -> bool:
    """Whether ``code`` runs to its end with backend ``name`` in a fresh process."""
    path = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name, "PYTHONPATH": path, VARIABLE: name}
    try:
        done = subprocess.run([sys.executable, "-c", code, name], env=env, capture_output=True, timeout=_PROBE_SECONDS)
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode == 0


class GLRenderer:
    """MuJoCo's own renderer at one size, without shadows, reflections or multisampling (10 to 20 times faster)."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, height: int, width: int, name: str):
        self._model, self._data, self._height, self._width = model, data, height, width
        context = _context_class(name)
        self._gl: Any = context(width, height)
        self._gl.make_current()
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._mjr)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._option = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rect = mujoco.MjrRect(0, 0, width, height)
        # GL must be left before MuJoCo shuts EGL down at exit; handlers run last in, first out.
        self._free = weakref.finalize(self, _free, self._gl, self._mjr)
        self._free.atexit = False
        atexit.register(self._free)

    def render(self, camera: str, markers: bool = False) -> np.ndarray:
        """(H, W, 3) uint8; ``markers`` draws sites such as the goal."""
        self._draw(camera, markers)
        picture = np.empty((self._height, self._width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._rect, self._mjr)
        return np.ascontiguousarray(picture[::-1])

    def depth(self, camera: str) -> np.ndarray:
        """(H, W) float32, metres along the optical axis."""
        self._draw(camera, markers=False)
        z = np.empty((self._height, self._width), np.float32)
        mujoco.mjr_readPixels(None, z, self._rect, self._mjr)
        extent = self._model.stat.extent
        near, far = self._model.vis.map.znear * extent, self._model.vis.map.zfar * extent
        return np.ascontiguousarray((near / (1.0 - z[::-1] * (1.0 - near / far))).astype(np.float32))

    def _draw(self, camera: str, markers: bool) -> None:
        self._gl.make_current()
        self._view.fixedcamid = camera_id(self._model, camera)
        self._option.sitegroup[:] = (1, 1, 1, 0, 0, 0) if markers else 0
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, None, self._view, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        mujoco.mjr_render(self._rect, self._scene, self._mjr)

    def close(self) -> None:
        """Free the GL context."""
        self._free()
        atexit.unregister(self._free)


def _free(gl: Any, context: mujoco.MjrContext) -> None:
    gl.make_current()
    context.free()
    gl.free()


def _context_class(name: str) -> Any:
    """MuJoCo's off-screen GL context of backend ``name``."""
    os.environ.setdefault("PYOPENGL_PLATFORM", name)
    if name == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    return GLContext


class SceneRenderer:
    """Pictures of one scene with whatever this machine has."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData):
        self._model, self._data = model, data
        self._gl: dict[tuple[int, int], GLRenderer] = {}
        self._colours: np.ndarray | None = None

    def render(self, camera: str, height: int, width: int, markers: bool = False) -> np.ndarray:
        """(height, width, 3) uint8 from the named camera; ``markers`` draws sites such as the goal."""
        name = backend()
        if name == "raycast":
            view = scene_camera(self._model, self._data, camera)
            if self._colours is None:
                self._colours = geom_colours(self._model)
            return shaded_image(self._model, self._data, view, height, width, markers, self._colours)
        if (height, width) not in self._gl:
            self._gl[height, width] = GLRenderer(self._model, self._data, height, width, name)
        return self._gl[height, width].render(camera, markers)

    def close(self) -> None:
        """Free every GL context."""
        for renderer in self._gl.values():
            renderer.close()
        self._gl.clear()
