"""Small Gymnasium environments, registered on import: ``task.module=tests.envs.small_gym``."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces


class Small(gymnasium.Env):
    """A point that moves; nested observations, uneven action limits, success and a measure in info."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, render_mode=None, seeded=True, unbounded=False, odd=False, key="success", limit=0.5):
        self.render_mode, self.seeded, self.key, self.limit = render_mode, seeded, key, limit
        inner = {"pos": spaces.Box(-9, 9, (2,), np.float64), "count": spaces.Box(0, 99, (1,), np.int64)}
        self.observation_space = spaces.Dict(
            {
                "robot": spaces.Dict(inner),
                "cam": spaces.Box(0, 255, (6, 8, 3), np.uint8),
                **({"odd": spaces.Discrete(3)} if odd else {}),
            }
        )
        low, high = np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32)
        self.action_space = spaces.Box(-np.inf, np.inf, (2,)) if unbounded else spaces.Box(low, high)
        self.done: list[np.ndarray] = []

    def _obs(self):
        image = np.full((6, 8, 3), self.count, np.uint8)
        return {"robot": {"pos": self.pos, "count": np.array([self.count])}, "cam": image}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        rng = self.np_random if self.seeded else np.random.default_rng()
        self.pos, self.count, self.done = rng.uniform(-1, 1, 2), 0, []
        return self._obs(), {}

    def step(self, action):
        self.done.append(action)
        self.pos += 0.1 * action  # in place: what was seen before must not follow
        self.count += 1
        info = {self.key: bool(self.pos[1] > self.limit), "height": self.pos[1], "word": "x"}
        return self._obs(), float(self.pos[1]), bool(self.pos[0] > 3), False, info

    def render(self):
        return np.full((30, 30, 3), self.count, np.uint8)


gymnasium.register("Small-v0", Small, max_episode_steps=12)
gymnasium.register("Endless-v0", Small)
