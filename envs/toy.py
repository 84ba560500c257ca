"""A point in a square that has to reach a goal: the smallest environment, for tests and as an example of ``Env``.

With an obstacle between start and goal it is a task that imitation half solves and reinforcement learning finishes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.errors import ConfigError, nearest
from data.spec import FieldSpec, TaskSpec
from envs.base import Frame, StepResult, check_action

_FIELDS = {
    "state": FieldSpec((4,), "float32", "state"),
    "agent_pos": FieldSpec((2,), "float32", "state"),
    "pointcloud": FieldSpec((16, 3), "float32", "pointcloud"),
    "rgb_top": FieldSpec((16, 16, 3), "uint8", "rgb"),  # or another size
}


class ToyEnv:
    """Position and goal in [-1, 1]^2; an action moves the point by ``speed`` times its value.

    With ``obstacle`` > 0 a disc of that radius stands in the middle, the point starts left of it and the goal is right
    of it; a move that would end inside the disc does not happen, or, with ``fragile``, is the end of the episode.

    Observations: state (position, goal), agent_pos, pointcloud (a ring around the goal), rgb_top.
    """

    def __init__(
        self,
        obs: list[str] | tuple[str, ...] = ("state", "agent_pos"),
        episode_length: int = 30,
        radius: float = 0.1,
        speed: float = 0.1,
        reward: str = "sparse",
        terminate_on_success: bool = True,
        obstacle: float = 0.0,
        either_side: bool = False,
        fragile: bool = False,
        image_size: int = 16,
        name: str = "toy",
    ):
        """A toy.

        Args:
            reward: "sparse" (1 at the first success) or "dense" (minus the distance).
            either_side: the expert passes the obstacle on a side drawn for the episode, which nobody sees beforehand;
                otherwise on the nearer one.
            fragile: the obstacle must not be touched; the expert keeps clear of it.

        Raises:
            ConfigError: an unknown observation or reward.
        """
        for key in obs:
            if key not in _FIELDS:
                raise ConfigError(f"The toy has no observation '{key}'. {nearest(key, list(_FIELDS))}")
        if reward not in ("sparse", "dense"):
            raise ConfigError(f"reward is 'sparse' or 'dense', not '{reward}'.")
        self._length, self._radius, self._speed = episode_length, radius, speed
        self._obstacle, self._either, self._fragile, self._pixels = obstacle, either_side, fragile, image_size
        self._dense, self._terminate = reward == "dense", terminate_on_success
        fields = {**_FIELDS, "rgb_top": FieldSpec((image_size, image_size, 3), "uint8", "rgb")}
        self.spec = TaskSpec(
            name=name,
            obs={key: fields[key] for key in obs},
            action=FieldSpec((2,), "float32", "action"),
            control_hz=10.0,
            env_args={
                "suite": "toy", "name": name,
                "obs": list(obs), "episode_length": episode_length, "radius": radius, "speed": speed,
                "reward": reward, "terminate_on_success": terminate_on_success, "obstacle": obstacle,
                "image_size": image_size, **({"either_side": True} if either_side else {}),
                **({"fragile": True} if fragile else {}),
            },
        )  # fmt: skip
        self._position = self._goal = np.zeros(2)
        self._steps, self._succeeded, self._side = 0, False, 0.0

    def reset(self, seed: int) -> Frame:
        """Draw position and goal."""
        rng = np.random.default_rng(seed)
        self._position, self._goal = rng.uniform(-1, 1, (2, 2))
        if self._either:  # from where both ways are free
            self._side = rng.choice([-1.0, 1.0])
            self._position[1], self._goal[1] = self._position[1] / 4, self._goal[1] / 4
        if self._obstacle:
            self._position[0], self._goal[0] = self._position[0] / 8 - 0.875, self._goal[0] / 8 + 0.875
        self._steps, self._succeeded = 0, False
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Move."""
        moved = np.clip(self._position + self._speed * check_action(action, self.spec), -1, 1)
        free = bool(np.linalg.norm(moved) >= self._obstacle)
        if free:
            self._position = moved
        self._steps += 1
        distance = float(np.linalg.norm(self._position - self._goal))
        success = distance < self._radius
        first = success and not self._succeeded
        self._succeeded |= success
        terminated = (success and self._terminate) or (self._fragile and not free)
        truncated = not terminated and self._steps >= self._length
        return StepResult(-distance if self._dense else float(first), success, terminated, truncated)

    def capture(self) -> Any:
        """The state is small: it is its own capture."""
        return self._position.copy()

    def observe(self, moment: Any = None) -> Frame:
        """The frame of now, or of a captured moment."""
        position = self._position if moment is None else moment
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        ring = self._goal + self._radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        image = np.zeros((self._pixels, self._pixels, 3), np.uint8)
        for channel, point in enumerate((position, self._goal)):
            column, row = np.floor((point * [1, -1] + 1) / 2 * (self._pixels - 0.01)).astype(int)
            image[row, column, channel] = 255
        frame = {
            "state": np.concatenate([position, self._goal]).astype(np.float32),
            "agent_pos": position.astype(np.float32),
            "pointcloud": np.concatenate([ring, np.zeros((16, 1))], axis=1).astype(np.float32),
            "rgb_top": image,
        }
        return {key: frame[key] for key in self.spec.obs}

    def expert_action(self) -> np.ndarray:
        """Straight to the goal, or past the obstacle on the nearer side."""
        towards = self._goal - self._position
        if self._obstacle and self._position[0] < (0.05 if self._either else 0.0):
            side = self._side or (1.0 if self._position[1] + self._goal[1] >= 0 else -1.0)
            clear = self._obstacle + (0.3 if self._fragile else 0.15)
            towards = np.array([0.1, side * clear]) - self._position
        return np.clip(towards / self._speed, -1, 1).astype(np.float32)

    def render(self, height: int = 96, width: int = 96) -> np.ndarray:
        """Red point, green goal."""
        rows, columns = np.mgrid[1 : -1 : height * 1j, -1 : 1 : width * 1j]
        picture = np.full((height, width, 3), 255, np.uint8)
        if self._obstacle:
            picture[columns**2 + rows**2 < self._obstacle**2] = (90, 90, 90)
        for point, colour in ((self._goal, (60, 170, 60)), (self._position, (200, 50, 50))):
            picture[(columns - point[0]) ** 2 + (rows - point[1]) ** 2 < self._radius**2] = colour
        return picture

    def close(self) -> None:
        """Nothing to give back."""
