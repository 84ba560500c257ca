"""The table that a simulated robot stands on: a cube to be put on a disc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco as _mujoco
import numpy as np

from data.errors import ConfigError

mujoco: Any = _mujoco  # its compiled members are unknown to type checkers

MODELS = Path(__file__).parent.parent / "models"


@dataclass(frozen=True)
class Scene:
    """Sizes and places in the robot's frame, m; the table's top is z = 0.

    Attributes:
        cube: edge.
        cube_x, cube_y: where the cube's middle may lie at the start of an episode.
        cube_yaw: and how far it may be turned, rad.
        target: middle of the disc.
        target_radius: of the disc; a cube whose middle lies on it counts.
    """

    cube: float = 0.04
    cube_x: tuple[float, float] = (0.38, 0.54)
    cube_y: tuple[float, float] = (-0.22, -0.04)
    cube_yaw: float = 0.3
    target: tuple[float, float] = (0.46, 0.16)
    target_radius: float = 0.05

    def place(self, seed: int) -> np.ndarray:
        """(7,) pose of the cube at the start of episode ``seed``: position, quaternion w first."""
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(*self.cube_x), rng.uniform(*self.cube_y)
        yaw = rng.uniform(-self.cube_yaw, self.cube_yaw)
        return np.array([x, y, self.cube / 2, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])


def model_path(model: str | Path) -> Path:
    """A MJCF file, or one of those that come with Deft ("ur5e").

    Raises:
        ConfigError: there is none.
    """
    for path in (Path(model), MODELS / f"{model}.xml"):
        if path.is_file():
            return path
    raise ConfigError(
        f"There is no model {model}: give a MJCF file, or one of {sorted(p.stem for p in MODELS.glob('*.xml'))}."
    )


def build(robot: Path, scene: Scene) -> Any:
    """``MjModel`` of robot, table, cube (body "cube", free joint) and disc, with cameras "front" and "top"."""
    spec = mujoco.MjSpec.from_file(str(robot))
    spec.visual.quality.shadowsize = 0  # shadows cost 20 times the picture without a graphics card
    spec.visual.quality.offsamples = 0
    world = spec.worldbody
    box, cylinder = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
    # contype 2, conaffinity 3: table and cube meet each other and robots of either bit
    hits = {"contype": 2, "conaffinity": 3}
    world.add_geom(
        name="table", type=box, size=[0.8, 0.8, 0.02], pos=[0.3, 0, -0.02], rgba=[0.82, 0.76, 0.66, 1], **hits
    )
    half = scene.cube / 2
    disc = [scene.target_radius, 0.0005, 0]
    world.add_geom(name="target", type=cylinder, size=disc, pos=[*scene.target, 0.0005], contype=0, conaffinity=0,
                   rgba=[0.15, 0.6, 0.25, 1])  # fmt: skip
    cube = world.add_body(name="cube", pos=[*np.mean([scene.cube_x, scene.cube_y], axis=1), half])
    cube.add_freejoint(name="cube")
    cube.add_geom(name="cube", type=box, size=[half] * 3, mass=1200 * scene.cube**3, rgba=[0.8, 0.15, 0.1, 1],
                  friction=[1.0, 0.02, 0.001], condim=4, **hits)  # fmt: skip
    middle = np.array([*np.mean([np.mean([scene.cube_x, scene.cube_y], axis=1), scene.target], axis=0), 0.05])
    far = 2.5 * max(0.3, float(np.ptp(scene.cube_y)), abs(scene.target[1] - scene.cube_y[0]))
    for name, away in (("front", [0.75, 0, 0.66]), ("top", [0.01, 0, 1.0])):
        away = np.array(away) / np.linalg.norm(away)
        x = np.cross([0, 0, 1.0], away)
        x /= np.linalg.norm(x)
        world.add_camera(name=name, pos=middle + far * away, xyaxes=[*x, *np.cross(away, x)], fovy=40)
    world.add_light(pos=[0.3, -0.5, 2], dir=[0, 0.2, -1])
    return spec.compile()
