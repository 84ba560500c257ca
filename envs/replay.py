"""Do recorded demonstrations succeed again here? See ``--help``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from data.command import READING, READING_HELP, Bar, options, run_command
from data.errors import ConfigError, ContractError, DataError
from data.opening import open_with
from data.source import Episodes
from envs.base import Env, RestorableEnv
from envs.make import is_live, make_env

USAGE = f"""python -m envs.replay PATH [n=10] [key=value ...]

Plays the actions of each demonstration in the environment that its data set names, and says how many succeed again, and
how far the simulation gets from what was recorded. The exit status is 1 if one fails that succeeded when it was
recorded (or of which nothing says whether it did).

A demonstration begins
  from its state   states[0] of a robomimic file, in its own scene (model_file) where this simulator loads it; then the
                   deviation is the largest difference of any position (metres, radians, parts of a quaternion)
  from its seed    what Deft collected; then the deviation is that of any recorded observation that is a state

Options (key=value):
  n: null        only the first n demonstrations
  scene: true    false: never the file's own scenes; objects then have the sizes that they have here
{READING_HELP}"""


class Replayed(NamedTuple):
    """One demonstration: success here and when recorded (None: not said), largest deviation, whether in its scene."""

    success: bool
    recorded: bool | None
    deviation: float
    step: int
    scene: bool


def begin(env: Env, source: Episodes, i: int, scenes: bool) -> tuple[bool, str]:
    """The start of episode ``i``: (whether in its own scene, why not where it has one)."""
    if "states" not in source.keys or not isinstance(env, RestorableEnv):
        if "seed" not in source.episode_meta_names:
            raise DataError(
                f"{source.path} has neither simulator states (data/demo_0/states) nor the seeds of its episodes, so "
                "nothing says how an episode began."
            )
        env.reset(int(source.episode_meta("seed")[i]))
        return False, ""
    start = int(source.episode_starts[i])
    state, why = source.array("states").read(start, start + 1)[0], ""
    if scenes and (scene := source.scene(i)) is not None:
        try:
            env.restore(state, scene)
            return True, ""
        except ContractError as e:
            why = str(e)
    env.restore(state)
    return False, why


def recorded_success(episode: Mapping[str, np.ndarray]) -> bool | None:
    """What the recording says itself: success, or a reward of a sparse kind."""
    if "success" in episode:
        return bool(np.any(episode["success"]))
    if "reward" in episode and set(np.unique(episode["reward"]).tolist()) <= {0.0, 1.0}:
        return bool(np.any(episode["reward"])) or None  # robomimic's machine-generated files leave them zero
    return None


def play(env: Env, episode: Mapping[str, np.ndarray], scene: bool) -> Replayed:
    """The actions of ``episode``, from where ``env`` is; compared with what was recorded before each."""
    states = isinstance(env, RestorableEnv) and "states" in episode
    keys = [] if states else [k for k, f in env.spec.obs.items() if f.kind == "state" and k in episode]
    success, worst, at = False, 0.0, 0
    for t, action in enumerate(episode["action"]):
        if states:
            assert isinstance(env, RestorableEnv)
            part = slice(1, 1 + env.n_positions)
            here, there = {"": env.sim_state()[part]}, {"": episode["states"][t][part]}
        else:
            here, there = env.observe() if keys else {}, {k: episode[k][t] for k in keys}
        for key, value in there.items():
            off = float(np.abs(here[key] - value).max())
            if off > worst:
                worst, at = off, t
        success |= env.step(action).success
    return Replayed(success, recorded_success(episode), worst, at, scene)


def replay_all(source: Episodes, n: int | None = None, scenes: bool = True, progress: Any = None) -> list[Replayed]:
    """All (or the first ``n``) episodes of ``source``, in its own environment.

    Raises:
        DataError: the data set does not name its environment, or how its episodes begin.
        ContractError: actions that the environment does not take, naming both shapes.
    """
    task = source.task
    if task is None or "suite" not in task.env_args:
        raise DataError(f"{source.path} does not say in which environment it was recorded.")
    if is_live(task.env_args):
        raise DataError(f"{source.path} was recorded on a robot, which cannot be put back to where an episode began.")
    by_state = "states" in source.keys
    keys = [k for k, f in task.obs.items() if f.kind == "state" and not by_state]
    out, told = [], False
    with closing(make_env({**task.env_args, "terminate_on_success": False, "obs": keys})) as env:
        if env.spec.action.shape != task.action.shape:
            raise ContractError(
                f"{source.path}: its actions are {task.action.shape}, those of {env.spec.name} {env.spec.action.shape}."
            )
        for i in range(min(source.n_episodes, n or source.n_episodes)):
            scene, why = begin(env, source, i, scenes)
            if why and not told:
                told = True
                print(f"note: {why} Its scenes are left out, so objects have the sizes that they have here.")
            names = {"action", "success", "reward", "states", *keys} & set(source.keys)
            out.append(play(env, source.episode(i, sorted(names)), scene))
            scenes = scenes and not why
            if progress is not None:
                progress(i + 1)
    return out


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    paths = [w for w in argv if "=" not in w]
    given = options([w for w in argv if "=" in w], {"n": None, "scene": True, **READING})
    n = given["n"]
    if len(paths) != 1:
        raise ConfigError(f"Which data set? Give one path, got {len(paths)}.")
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
        raise ConfigError(f"n={n} must be a whole number, at least 1.")
    source = open_with(paths[0], given)
    bar = Bar(f"replaying {paths[0]}", min(source.n_episodes, n or source.n_episodes))
    results = replay_all(source, n, given["scene"], bar.update)
    lost = 0
    for i, r in enumerate(results):
        if not r.success and r.recorded is not False:
            lost += 1
            said = "succeeded when recorded" if r.recorded else "not said whether it succeeded when recorded"
            print(f"episode {i} fails here ({said}); deviation {r.deviation:.2g} at step {r.step}")
    worst = max(range(len(results)), key=lambda i: results[i].deviation)
    known = [r.recorded for r in results if r.recorded is not None]
    before = f", {sum(known)} of {len(known)} when recorded" if known else ""
    scenes = f"from their states, {sum(r.scene for r in results)} in their own scenes"
    where = scenes if "states" in source.keys else "from their seeds"
    print(
        f"{sum(r.success for r in results)} of {len(results)} succeed here{before} ({where}); largest deviation "
        f"{results[worst].deviation:.2g} (episode {worst}, step {results[worst].step})"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    run_command(main, USAGE)
