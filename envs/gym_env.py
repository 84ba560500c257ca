"""Any registered Gymnasium environment with Box actions: ``task=gymnasium task.id=...``.

Vectors of the observation space are states, (H, W, 3) uint8 boxes are pictures; dictionaries are flattened by
dotted names.
"""

from __future__ import annotations

import importlib
import math
import textwrap
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

from data.errors import ConfigError, ContractError, DeftError, nearest
from data.spec import FieldSpec, TaskSpec
from envs.base import Frame, StepResult, check_action
from envs.gym_spaces import flatten, items, kind

SUCCESS_KEYS = ("is_success", "success")


class GymEnv:
    """A Gymnasium environment as an ``Env``.

    Actions are in the environment's units where all dimensions have the same limits, otherwise each is scaled to
    [-1, 1] (``TaskSpec`` has one range for all).
    """

    def __init__(
        self,
        id: str | None,
        obs: Sequence[str] = ("state",),
        module: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        episode_length: int | None = None,
        reward: str = "dense",
        terminate_on_success: bool = True,
        success_key: str | None = None,
        success_threshold: float | int = 0.5,
        success_return: float | int | None = None,
        measures: Sequence[str] = (),
        action_low: float | int | None = None,
        action_high: float | int | None = None,
        control_hz: float | int | None = None,
        rebuild: bool = False,
    ):
        """Makes it, and looks at one step of it.

        Args:
            id: as registered with Gymnasium.
            obs: names of the (flattened) observation space. Where it has none of that name, "state" is all its
                vectors side by side and "rgb" all its pictures; a space that is a single box is named so as well.
            module: imported first, where that is what registers ``id``.
            kwargs: of ``gymnasium.make``.
            name: ``id``, or None.
            episode_length: control steps until the time-out; None: as registered.
            reward: "dense" is the environment's own, "sparse" 1 at the first success.
            terminate_on_success: end the episode at the first success, where the environment does not.
            success_key: the entry of ``info`` that tells success, from ``success_threshold`` on; None: "is_success" or
                "success".
            success_return: without such an entry, an episode succeeded if its rewards add up to this much at its end.
            measures: entries of ``info`` that are numbers, to be reported by evaluations.
            action_low, action_high: where the action space has no limits of its own.
            control_hz: actions per second; None: the environment's ``render_fps``, or 20.
            rebuild: make the environment anew for every episode, where its ``reset`` leaves something behind.

        Raises:
            ConfigError: what cannot be made or understood: module, id, spaces, success.
        """
        if id is None:
            raise ConfigError(
                "Say which Gymnasium environment: task.id=Pendulum-v1, with task.module=PACKAGE if that registers it."
            )
        if name not in (None, id):
            raise ConfigError(f"task.name={name}: the name of a Gymnasium environment is its task.id={id}.")
        if reward not in ("sparse", "dense"):
            raise ConfigError(f"reward is 'sparse' or 'dense' (the environment's own), not '{reward}'.")
        self.id, self._kwargs, self._length = id, dict(kwargs or {}), episode_length
        self._sparse, self._terminate, self._rebuild = reward == "sparse", terminate_on_success, rebuild
        self._key, self._threshold, self._wanted = success_key, success_threshold, success_return
        self._measures = list(measures)
        if module is not None:
            _import(module)
        self._env = self._make()
        if self._env.spec is None or self._env.spec.max_episode_steps is None:
            self.close()
            raise ConfigError(f"{id} is registered without a time limit: say task.episode_length=N.")
        self._boxes = flatten(self._env.observation_space)
        self._parts = self._choose(obs)
        self._low, self._high = self._limits(action_low, action_high)
        self._even = np.ptp(self._low) == 0 and np.ptp(self._high) == 0
        low, high = (float(self._low[0]), float(self._high[0])) if self._even else (-1.0, 1.0)
        fps = self._env.metadata.get("render_fps")
        self.spec = TaskSpec(
            name=f"gymnasium/{id}",
            obs={key: self._field(names) for key, names in self._parts.items()},
            action=FieldSpec((self._low.size,), "float32", "action"),
            action_low=low,
            action_high=high,
            control_hz=float(control_hz or fps or 20.0),
            env_args={
                "suite": "gymnasium", "id": id, "obs": list(self._parts), "module": module, "kwargs": self._kwargs,
                "episode_length": self._env.spec.max_episode_steps, "reward": reward,
                "terminate_on_success": terminate_on_success, "success_key": success_key,
                "success_threshold": success_threshold, "success_return": success_return, "measures": self._measures,
                "action_low": action_low, "action_high": action_high, "control_hz": control_hz, "rebuild": rebuild,
            },
            versions=_versions(self._env, module),
        )  # fmt: skip
        self._now: dict[str, np.ndarray] = {}
        self._return, self._succeeded, self._told = 0.0, False, False
        self._look()

    # ------------------------------------------------------------------ the door

    def reset(self, seed: int) -> Frame:
        """Begin the episode of ``seed``. Seeds of 2**31 and more are folded into 32 bits, above those below."""
        if self._rebuild:
            self._env.close()
            self._env = self._make()
        if seed >= 2**31:
            seed = 2**31 + int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)
        raw, self._info = self._env.reset(seed=seed)
        self._see(raw)
        self._return, self._succeeded, self._told = 0.0, False, False
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """Execute one (Da,) action."""
        action = check_action(action, self.spec)
        native = action
        if not self._even:
            native = np.clip(self._low + (action + 1) / 2 * (self._high - self._low), self._low, self._high)
        space = self._env.action_space
        raw, reward, terminated, truncated, self._info = self._env.step(native.astype(space.dtype).reshape(space.shape))
        self._see(raw)
        self._return += float(reward)
        success = self._success(bool(terminated or truncated))
        first = success and not self._succeeded
        self._succeeded |= success
        terminated = bool(terminated) or (success and self._terminate and self._wanted is None)
        return StepResult(
            float(first) if self._sparse else float(reward),
            success,
            terminated,
            bool(truncated) and not terminated,
            measures={key: self._number(key) for key in self._measures} or None,
        )

    def capture(self) -> Frame:
        """The present observation: Gymnasium computes one at every step."""
        return self._now

    def observe(self, moment: Any = None) -> Frame:
        """One array per key of ``spec.obs``, of now or of a moment that ``capture`` returned."""
        now = self._now if moment is None else moment
        frame = {}
        for key, names in self._parts.items():
            joined = np.concatenate([np.ravel(now[n]) for n in names]) if len(names) > 1 else now[names[0]]
            frame[key] = np.array(joined, self.spec.obs[key].dtype)
        return frame

    def render(self, height: int = 240, width: int = 240) -> np.ndarray:
        """(height, width, 3) uint8: the environment's ``rgb_array``, in that size.

        One that cannot be rendered is a grey picture that says why: a film is not worth a training run.
        """
        try:
            if "rgb_array" not in self._env.metadata.get("render_modes", ()):
                raise gymnasium.error.DependencyNotInstalled("it has no render mode rgb_array")
            picture = np.asarray(self._env.render(), np.uint8)
        except gymnasium.error.DependencyNotInstalled as e:
            picture = np.full((240, 240, 3), 128, np.uint8)
            for i, line in enumerate(textwrap.wrap(f"{self.id} cannot be rendered: {e}", 30)):
                cv2.putText(picture, line, (4, 20 + 18 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255))
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)

    def close(self) -> None:
        """Closes it."""
        self._env.close()

    # ------------------------------------------------------------------ how it is understood

    def _make(self) -> gymnasium.Env:
        options: dict[str, Any] = {"disable_env_checker": True, **self._kwargs}
        if self._length is not None:
            options["max_episode_steps"] = self._length
        try:
            registered = gymnasium.spec(self.id)
            options.setdefault("render_mode", "rgb_array")
            try:
                return gymnasium.make(registered, **options)
            except TypeError:  # takes no render_mode
                if "render_mode" in self._kwargs or options.pop("render_mode") is None:
                    raise
                return gymnasium.make(registered, **options)
        except gymnasium.error.UnregisteredEnv as e:
            known = nearest(self.id, list(gymnasium.registry))
            raise ConfigError(
                f"{e} {known if len(known) < 200 else ''} A package registers its own: task.module=PACKAGE."
            ) from e
        except (gymnasium.error.Error, TypeError, ImportError) as e:
            raise ConfigError(f"{self.id} cannot be made with task.kwargs={self._kwargs}: {e}") from e

    def _choose(self, wanted: Sequence[str]) -> dict[str, list[str]]:
        """Which boxes make up each observation."""
        vectors = [n for n, s in self._boxes.items() if kind(s) == "state"]
        pictures = [n for n, s in self._boxes.items() if kind(s) == "rgb"]
        chosen: dict[str, list[str]] = {}
        for key in wanted:
            if key in self._boxes:
                if kind(self._boxes[key]) is None:
                    raise ConfigError(
                        f"{self.id}: observation '{key}' is {self._boxes[key]}; only boxes that are vectors (D,) or "
                        "uint8 pictures (H, W, 3) are understood. A gymnasium wrapper can make it one."
                    )
                chosen[key] = [key]
            elif key == "state" and vectors:
                chosen[key] = vectors
            elif key == "rgb" and pictures:
                chosen |= {name: [name] for name in pictures}
            else:
                told = ", ".join(f"{name or 'it'}: {space}" for name, space in self._boxes.items())
                raise ConfigError(
                    f"{self.id} has no observation '{key}' among {{{told}}}. Choose with obs.keys=[...]: vectors (D,) "
                    "and uint8 pictures (H, W, 3) are understood, 'state' is all vectors, 'rgb' all pictures."
                )
        return chosen

    def _field(self, names: list[str]) -> FieldSpec:
        shape = self._boxes[names[0]].shape
        assert shape is not None
        if kind(self._boxes[names[0]]) == "rgb":
            return FieldSpec(tuple(shape), "uint8", "rgb")
        return FieldSpec((sum(math.prod(self._boxes[n].shape or ()) for n in names),), "float32", "state")

    def _limits(self, low: float | int | None, high: float | int | None) -> tuple[np.ndarray, np.ndarray]:
        """(Da,) each: of the action space, or as given where it has none."""
        space = self._env.action_space
        if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype or object, np.floating):
            raise ConfigError(f"{self.id} takes actions of {space}; policies here act in a Box of real numbers.")
        out = []
        for bound, given in ((space.low, low), (space.high, high)):
            bound = np.array(bound, np.float32).ravel()
            if given is not None:
                bound[~np.isfinite(bound)] = given
            out.append(bound)
        if not np.isfinite(out).all() or (out[0] >= out[1]).any():
            raise ConfigError(
                f"{self.id} takes actions of {space}, which has no (sensible) limits: say which it needs with "
                "task.action_low=-1 task.action_high=1."
            )
        return out[0], out[1]

    def _see(self, raw: Any) -> None:
        needed = {name for names in self._parts.values() for name in names}
        self._now = {name: np.array(value) for name, value in items(raw, self._boxes) if name in needed}

    def _success(self, over: bool) -> bool:
        if self._wanted is not None:
            return over and self._return >= self._wanted
        keys = [self._key] if self._key is not None else SUCCESS_KEYS
        found = next((key for key in keys if key in self._info), None)
        self._told |= found is not None
        if over and not self._told:
            raise ContractError(
                f"{self.id}: an episode ended and info never had {list(keys)}, only {list(self._info)}."
            )
        return found is not None and self._number(found) >= self._threshold

    def _number(self, key: str) -> float:
        try:
            return float(np.asarray(self._info[key]).item())
        except (KeyError, TypeError, ValueError) as e:
            told = repr(self._info[key]) if key in self._info else f"missing, there are {sorted(self._info)}"
            raise ContractError(f"{self.id}: info['{key}'] should be a number and is {told}.") from e

    def _look(self) -> None:
        """One step: whether success is told, measures are there, and the seed is all that an episode depends on."""
        frames, middle = [], (self.spec.action_low + self.spec.action_high) / 2
        try:
            for _ in range(2):
                frames.append(self.reset(0))
                self.step(np.full(self.spec.action.shape, middle))
        except DeftError:
            raise
        except Exception as e:
            gl = " Set MUJOCO_GL=egl or osmesa, whichever this machine has." if "GL" in str(e) else ""
            raise ConfigError(f"{self.id} fails at its first step: {type(e).__name__}: {e}.{gl}") from e
        if self._wanted is None and self._key is None and not self._told:
            threshold = getattr(self._env.spec, "reward_threshold", None)
            hint = f" (registered reward_threshold: {threshold})" if threshold is not None else ""
            raise ConfigError(
                f"{self.id} does not tell success: its info has {sorted(self._info) or 'nothing'}. Say what success "
                f"is: task.success_return=R, rewards that add up to at least R at the end of an episode{hint}; or "
                "task.success_key=ENTRY [task.success_threshold=0.5], an entry of info."
            )
        if any(not np.array_equal(frames[0][key], frames[1][key]) for key in frames[0]):
            raise ConfigError(
                f"{self.id}: two resets with the same seed differ. Set task.rebuild=true, which makes it anew for "
                "every episode, or seed it fully in its reset."
                if not self._rebuild
                else f"{self.id} does not follow its seed, not even when made anew: seed it fully in its reset."
            )


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as e:
        raise ConfigError(f"task.module={module} cannot be imported: {e}. Is its package installed?") from e


def _versions(env: gymnasium.Env, module: str | None) -> dict[str, str]:
    versions = {"gymnasium": gymnasium.__version__}
    package = (module or type(env.unwrapped).__module__).split(".")[0]
    for distribution in packages_distributions().get(package, ()):
        try:
            versions[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return versions
