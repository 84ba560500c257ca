"""PushT (Florence et al. 2021, Chi et al. 2023): a disc pushes a T onto its outline; gym-pusht's physics.

Success is a coverage of the goal above 0.95, as in gym-pusht; coverage itself is reported as a measure beside it.
"""

# An extra, which a type checker may not find.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from data.errors import ConfigError, nearest
from data.spec import FieldSpec, TaskSpec
from envs.base import Frame, StepResult, check_action

try:
    from gym_pusht.envs.pusht import PushTEnv as Physics

    from envs.pusht_planner import PushPlanner
except ImportError as e:
    raise ConfigError(f"task=pusht needs gym-pusht, which cannot be imported ({e}): pip install 'deft[pusht]'.") from e

OBS_KEYS = ("state", "agent_pos", "keypoints", "rgb")


class _Moment(NamedTuple):
    step: int
    agent: tuple[float, float]
    pose: tuple[float, float, float]  # of the block: x, y, angle


class PushTEnv:
    """PushT as an ``Env``: 10 actions a second, each (2,) where the pusher should go, in [0, 512] pixels."""

    def __init__(
        self,
        obs: Sequence[str] = ("state",),
        episode_length: int = 300,
        reward: str = "sparse",
        terminate_on_success: bool = True,
        image_size: int = 96,
        name: str = "pusht",
    ):
        """PushT.

        Args:
            obs: any of state (pusher x, y; block x, y, angle in [0, 2 pi)), agent_pos (2,), keypoints (16,) of the
                block, rgb.
            episode_length: control steps until the time-out.
            reward: "sparse" is 1 at the first success, else 0; "dense" is coverage / 0.95, at most 1, at every step.
            terminate_on_success: end the episode at the first success.
            image_size: side of the picture, pixels.
            name: pusht.

        Raises:
            ConfigError: an unknown observation or reward.
        """
        fields = {
            "state": FieldSpec((5,), "float32", "state"),
            "agent_pos": FieldSpec((2,), "float32", "state"),
            "keypoints": FieldSpec((16,), "float32", "state"),
            "rgb": FieldSpec((image_size, image_size, 3), "uint8", "rgb"),
        }
        for key in obs:
            if key not in fields:
                raise ConfigError(f"PushT has no observation '{key}'. {nearest(key, list(fields))}")
        if reward not in ("sparse", "dense"):
            raise ConfigError(f"reward is 'sparse' or 'dense', not '{reward}'.")
        if name != "pusht":
            raise ConfigError(f"There is one PushT: task.name=pusht, not '{name}'.")
        self._physics = Physics(obs_type="state")
        self._physics.reset(seed=0)
        self._canvas: Any = None
        self._planner: PushPlanner | None = None
        self._dense, self._terminate, self._length = reward == "dense", terminate_on_success, episode_length
        self.spec = TaskSpec(
            name="pusht",
            obs={key: fields[key] for key in obs},
            action=FieldSpec((2,), "float32", "action"),
            action_low=0.0,
            action_high=512.0,
            control_hz=float(self._physics.control_hz),
            env_args={
                "suite": "pusht", "name": name, "obs": list(obs), "episode_length": episode_length, "reward": reward,
                "terminate_on_success": terminate_on_success, "image_size": image_size,
            },
            versions={"gym-pusht": version("gym-pusht"), "pymunk": version("pymunk")},
        )  # fmt: skip
        self._steps, self._succeeded = 0, False

    def reset(self, seed: int) -> Frame:
        """Begin the episode of ``seed``."""
        self._physics.reset(seed=seed)
        self._steps, self._succeeded = 0, False
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Send the pusher towards (2,) a position."""
        _, reward, success, _, info = self._physics.step(check_action(action, self.spec).astype(np.float64))
        self._steps += 1
        success, first = bool(success), bool(success) and not self._succeeded
        self._succeeded |= success
        terminated = success and self._terminate
        truncated = not terminated and self._steps >= self._length
        coverage = {"coverage": float(info["coverage"])}
        return StepResult(float(reward if self._dense else first), success, terminated, truncated, measures=coverage)

    def capture(self) -> _Moment:
        """Poses of pusher and block."""
        block = self._physics.block
        return _Moment(self._steps, tuple(self._physics.agent.position), (*block.position, block.angle))

    def observe(self, moment: Any = None) -> Frame:
        """One array per key of ``spec.obs``, of now or of a moment that ``capture`` returned."""
        moment = moment or self.capture()
        frame = {}
        for key, field in self.spec.obs.items():
            if key == "state":
                value = np.array([*moment.agent, *moment.pose[:2], moment.pose[2] % (2 * np.pi)])
            elif key == "agent_pos":
                value = np.array(moment.agent)
            elif key == "keypoints":
                value = self._posed(moment).get_keypoints(self._posed(moment)._block_shapes).ravel()
            else:
                value = self._picture(moment, *field.shape[:2])
            frame[key] = value.astype(field.dtype)
        return frame

    def render(self, height: int = 240, width: int = 240) -> np.ndarray:
        """(height, width, 3) uint8 picture."""
        return self._picture(self.capture(), height, width)

    def expert_action(self) -> np.ndarray:
        """(2,) float32: the planner's next position, see ``PushPlanner``."""
        physics = self._physics
        if self._planner is None:
            self._planner = PushPlanner(physics.goal_pose, physics.success_threshold)
        pose = np.array([*physics.block.position, physics.block.angle])
        action = self._planner.action(np.array(physics.agent.position), pose)
        return np.clip(action, 0.0, 512.0).astype(np.float32)

    def close(self) -> None:
        """Nothing to give back."""

    def _posed(self, moment: _Moment) -> Physics:
        """Another world in which things stand as they did; posing this one would change its last digits."""
        if self._canvas is None:
            canvas = Physics(obs_type="state")
            canvas.reset(seed=0)
            self._canvas = canvas
        canvas = self._canvas
        canvas.agent.position = moment.agent
        canvas.block.angle = moment.pose[2]
        canvas.block.position = moment.pose[:2]
        canvas.space.reindex_shapes_for_body(canvas.agent)
        canvas.space.reindex_shapes_for_body(canvas.block)
        return canvas

    def _picture(self, moment: _Moment, height: int, width: int) -> np.ndarray:
        canvas = self._posed(moment)
        picture = canvas._get_img(canvas._draw(), width=width, height=height)
        return np.asarray(picture, np.uint8)
