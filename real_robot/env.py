"""A robot's task as an environment: what fine-tuning and evaluation step through (``task=robot``).

One step is one action of a policy, in the units and at the rate of recorded data, done by the control process' own
controller: its safety layer, executor and follower stand between an action and the robot here as they do there. With
``robot=mujoco`` time is the simulation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.loader import load_config
from data.errors import ConfigError, nearest
from data.spec import FieldSpec, TaskSpec
from envs.base import Frame, StepResult, check_action
from envs.render import SceneRenderer
from real_robot.core.actions import ActionSpace
from real_robot.core.streams import chunk_dtype
from real_robot.core.types import SECOND
from real_robot.recorder.sampling import Rule
from real_robot.simulators.hand import Pick
from real_robot.simulators.lab import Lab
from real_robot.simulators.world import World

FIELDS = ("agent_pos", "cube")


class RobotEnv:
    """A simulated arm, a cube, and a disc to put it on.

    Args:
        name: of the task.
        robot: of configs/robot; one that can be simulated in place.
        obs: keys out of "agent_pos" (joint positions, gripper last) and "cube" (its position, m).
        hz: actions per second.
        space: of the actions, see ``real_robot.core.actions``.
        episode_length: steps.
        reward: "sparse", 1 at the first success.
        terminate_on_success: otherwise an episode goes on to its end.
        rule, actions: what a robot that the policy is deployed on has to know (``Rule``, ``ActionSpace``); they follow
            from the rest.

    Raises:
        ConfigError: an unknown robot, observation or reward.
    """

    def __init__(
        self,
        *,
        name: str = "robot",
        robot: str = "mujoco",
        obs: Sequence[str] = FIELDS,
        hz: float = 10.0,
        space: str = "delta",
        episode_length: int = 150,
        reward: str = "sparse",
        terminate_on_success: bool = True,
        rule: dict[str, Any] | None = None,
        actions: dict[str, Any] | None = None,
    ):
        for key in obs:
            if key not in FIELDS:
                raise ConfigError(f"A simulated robot has no observation '{key}'. {nearest(key, list(FIELDS))}")
        if reward != "sparse":
            raise ConfigError(f"reward={reward}: the cube is on the disc or it is not; sparse is all there is.")
        config = load_config("deploy", [f"robot={robot}"])
        self._lab = Lab(config)
        spec = self._lab.spec
        self._space = ActionSpace.of(spec, space, hz)
        follows = {"rule": Rule(hz=hz, space=space).to_dict(), "actions": self._space.to_dict()}
        for key, given in (("rule", rule), ("actions", actions)):
            if given is not None and given != follows[key]:
                raise ConfigError(f"{key}={given} does not fit this robot: {follows[key]}.")
        shapes = {"agent_pos": (spec.n,), "cube": (3,)}
        self.spec = TaskSpec(
            name=f"robot/{name}",
            obs={key: FieldSpec(shapes[key], "float32", "state") for key in obs},
            action=FieldSpec((spec.n,), "float32", "action"),
            action_low=self._space.low,
            action_high=self._space.high,
            control_hz=hz,
            env_args={
                "suite": "real_robot.env:RobotEnv", "name": name, "robot": robot, "obs": list(obs), "hz": hz,
                "space": space, "episode_length": episode_length, "reward": reward,
                "terminate_on_success": terminate_on_success, **follows,
            },
        )  # fmt: skip
        self._length, self._terminate = episode_length, terminate_on_success
        self._period = round(SECOND / hz)
        self._chunks = self._lab.session.create("chunk", chunk_dtype(spec.n), 16)
        self._expert = Pick(spec, **config["hand"])
        self._number = self._steps = 0
        self._succeeded = self._planned = False
        self._last = np.zeros(spec.n)
        self._renderer: SceneRenderer | None = None

    @property
    def _world(self) -> World:
        return self._lab.robot.world

    def reset(self, seed: int) -> Frame:
        """The robot at home, standing; the cube where the seed has it."""
        lab = self._lab
        lab.enable()
        self._world.reset(seed)
        lab.controller.executor.clear(lab.clock.now())
        lab.controller.follower.reset(self._world.q)
        self._last = lab.controller.follower.q.copy()
        lab.clock.advance(0.1)
        self._steps, self._succeeded, self._planned = 0, False, False
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Where the joints are to be a period from now."""
        target = self._space.decode(check_action(action, self.spec)[None].astype(np.float64), self._last)[0]
        now, lab = self._lab.clock.now(), self._lab
        self._number += 1
        record = np.zeros((), self._chunks.dtype)
        record["id"], record["t_obs"], record["due"] = self._number, now, now
        record["dt"], record["length"] = self._period / SECOND, 2
        record["actions"] = np.nan
        record["actions"][:2] = self._last, target
        self._chunks.put(record, now)
        self._last = target
        lab.clock.sleep_until(now + self._period)
        lab.enable()  # anew, where the robot ran into something: a person would have recovered it
        self._steps += 1
        success = self._world.success()
        first = success and not self._succeeded
        self._succeeded |= success
        terminated = success and self._terminate
        return StepResult(float(first), success, terminated, not terminated and self._steps >= self._length)

    def capture(self) -> Any:
        """Joint positions and the cube's."""
        return self._world.q, self._world.cube[:3]

    def observe(self, moment: Any = None) -> Frame:
        """The frame of now, or of a captured moment."""
        q, cube = self.capture() if moment is None else moment
        frame = {"agent_pos": q.astype(np.float32), "cube": cube.astype(np.float32)}
        return {key: frame[key] for key in self.spec.obs}

    def expert_action(self) -> np.ndarray:
        """Where the scripted hand leads the robot within the next period."""
        world = self._world
        if not self._planned:
            disc = np.array(world.scene.target)
            self._expert.begin(lambda: world.cube[:3], disc, world.seed, self._lab.controller.follower.q)
            self._planned = True
        for _ in range(8):
            target = self._expert.move(world.q, self._period / SECOND / 8)
        return self._space.encode(target[None], self._last[None])[0].astype(np.float32)

    def render(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8, from the front."""
        if self._renderer is None:
            self._renderer = SceneRenderer(self._world.model, self._world.data)
        return self._renderer.render("front", height, width)

    def close(self) -> None:
        """Takes the session away."""
        if self._renderer is not None:
            self._renderer.close()
        self._lab.close()
