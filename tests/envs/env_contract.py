"""What every environment has to do; a test class inherits ``EnvContract`` and says which environment it is about."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from data.errors import ContractError
from data.spec import TaskSpec
from envs.base import Env
from envs.make import make_env


class EnvContract:
    """Inherit, with ``env_args`` of an environment whose episodes last ``steps`` random actions or end by success."""

    env_args: ClassVar[dict[str, Any]]
    steps = 8

    @pytest.fixture(scope="class")
    def env(self):
        env = make_env(self.env_args)
        yield env
        env.close()

    def actions(self, env, n=None, seed=0):
        low, high = env.spec.action_low, env.spec.action_high
        shape = (n or self.steps, *env.spec.action.shape)
        return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)

    def trace(self, env, seed):
        """Everything of an episode under given actions, bit by bit."""
        out = [{key: value.tobytes() for key, value in env.reset(seed).items()}]
        for action in self.actions(env):
            result = env.step(action)
            out.append((result, {key: value.tobytes() for key, value in env.observe().items()}))
            if result.terminated or result.truncated:
                break
        return out

    def test_frames_are_as_the_spec_says_and_it_rebuilds_the_environment(self, env):
        assert isinstance(env, Env)
        frame = env.reset(3)
        again = make_env(TaskSpec.from_dict(env.spec.to_dict()).env_args)
        repeated = again.reset(3)
        again.close()
        assert again.spec == env.spec
        assert list(frame) == list(env.spec.obs)
        for key, field in env.spec.obs.items():
            assert (frame[key].shape, frame[key].dtype) == (field.shape, np.dtype(field.dtype))
            np.testing.assert_array_equal(frame[key], repeated[key])

    def test_an_episode_is_a_function_of_its_seed(self, env):
        first = self.trace(env, 11)
        others = [self.trace(env, seed) for seed in (12, 2**31 + 5, 2**40 + 7)]
        assert self.trace(env, 11) == first
        assert len({str(t[0]) for t in (first, *others)}) == 4

    def test_looking_and_filming_change_nothing(self, env):
        quiet = self.trace(env, 4)
        env.reset(4)
        moments, frames = [], []
        for i, action in enumerate(self.actions(env)):
            result = env.step(action)
            moments.append(env.capture())
            frames.append(env.observe())
            assert env.render(24, 32).shape == (24, 32, 3)
            for moment, frame in zip(moments, frames, strict=True):
                for key, value in env.observe(moment).items():
                    np.testing.assert_array_equal(value, frame[key])
            assert quiet[i + 1] == (result, {key: value.tobytes() for key, value in env.observe().items()})
            if result.terminated or result.truncated:
                break

    def test_an_episode_ends_and_says_how(self, env):
        env.reset(5)
        for _ in range(10_000):
            result = env.step(self.actions(env, 1)[0])
            if result.terminated or result.truncated:
                break
        assert result.terminated != result.truncated

    def test_bad_actions_are_named(self, env):
        env.reset(0)
        good = self.actions(env, 1)[0]
        with pytest.raises(ContractError, match="shape"):
            env.step(np.concatenate([good, good]))
        with pytest.raises(ContractError, match="not finite"):
            env.step(np.full_like(good, np.nan))
