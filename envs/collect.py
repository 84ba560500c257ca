"""Demonstrations from scripted experts, in parallel worker processes, the same whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.episodes import EpisodeStore
from data.errors import DataError
from data.source import Episodes
from envs.make import make_env
from envs.pool import EnvPool
from envs.seeds import demo_seed as demo_seed  # callers find it beside collect_demos
from envs.worker import EXPERT


def collect_demos(
    env_args: dict[str, Any],
    path: str | Path,
    n_demos: int,
    first_seed: int,
    n_workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    keep_after_success: int = 10,
    noise: float = 0.0,
) -> EpisodeStore:
    """Fill a store with the first ``n_demos`` successful episodes of seeds ``first_seed``, ``first_seed`` + 1, ...

    A store with fewer episodes is extended from where it stopped; one that has them is left as it is.

    Args:
        env_args: see ``make_env``; the suite needs a scripted expert.
        path: the store's directory.
        n_demos: episodes wanted.
        first_seed: see ``demo_seed``.
        n_workers: processes; 0 collects in this one.
        progress: called with (episodes in the store, wanted) after each.
        keep_after_success: steps recorded beyond the first success. A few show a policy what to do once it is done;
            all 200 (as some published sets have) would mostly show it standing still.
        noise: disturbance of the expert's actions, see ``demonstrate``. Shows how to recover, and leaves a policy with
            something to choose from. The store then has the expert's own actions as well, "expert_action".

    Returns:
        The store, open for appending.

    Raises:
        DataError: the store holds another task or other seeds, or the expert fails nearly always.
        ConfigError: what ``make_env`` raises, or there is no expert.
    """
    # The expert must be able to go on after its first success.
    running = {**env_args, "terminate_on_success": False}
    store = _open(env_args, path, n_demos, first_seed, noise)
    if store.n_episodes >= n_demos:
        return store
    seeds = store.episode_meta("seed") if store.n_episodes else []
    upcoming = int(seeds[-1]) + 1 if len(seeds) else first_seed
    limit = upcoming + 20 * n_demos + 50
    n = max(1, n_workers)
    with EnvPool(running, n_envs=n, n_obs_steps=1, n_workers=n, in_process=n_workers == 0) as pool:
        running_seed: dict[int, int] = {}
        done: dict[int, Any] = {}
        for env in range(n):
            pool.request(env, "demo", upcoming + env, keep_after_success, noise)
            running_seed[env] = upcoming + env
        dealt = upcoming + n
        while store.n_episodes < n_demos:
            env, episode = pool.next_reply()
            done[running_seed[env]] = episode
            pool.request(env, "demo", dealt, keep_after_success, noise)
            running_seed[env], dealt = dealt, dealt + 1
            # Episodes are stored in the order of their seeds, so the store does not depend on who was faster.
            while upcoming in done and store.n_episodes < n_demos:
                if (episode := done.pop(upcoming)) is not None:
                    store.append(episode, meta={"seed": upcoming})
                    if progress:
                        progress(store.n_episodes, n_demos)
                upcoming += 1
            if upcoming > limit:
                raise DataError(
                    f"{store.path}: the scripted expert of {env_args.get('name')} succeeded in only {store.n_episodes} "
                    f"of {upcoming - first_seed} episodes; {n_demos} were wanted. Is the episode length too short?"
                )
    return store


def _open(env_args: dict[str, Any], path: str | Path, n_demos: int, first_seed: int, noise: float) -> EpisodeStore:
    """The store at ``path``, new or fitting; building the environment here also shows its errors here."""
    env = make_env(env_args)
    task = env.spec
    env.close()
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return EpisodeStore.create(path, task, {"first_seed": first_seed, "source": "scripted expert", "noise": noise})
    store = EpisodeStore.open(path, mode="a")
    assert store.task is not None  # an appendable store has one
    if store.task.env_args != task.env_args:
        keys = sorted(set(store.task.env_args) | set(task.env_args))
        differ = [k for k in keys if store.task.env_args.get(k) != task.env_args.get(k)]
        told = ", ".join(f"{k}: {store.task.env_args.get(k)!r} there, {task.env_args.get(k)!r} here" for k in differ)
        raise DataError(f"{path} holds demonstrations of another environment ({told}). Choose another path.")
    if store.attrs.get("first_seed", first_seed) != first_seed:
        raise DataError(
            f"{path} was collected from seed {store.attrs['first_seed']}, not {first_seed}. Choose another path."
        )
    if store.attrs.get("noise", 0.0) != noise:
        raise DataError(
            f"{path} was collected with noise {store.attrs.get('noise', 0.0)}, not {noise}. Choose another path."
        )
    if noise and store.n_episodes and EXPERT not in store.fields:
        raise DataError(
            f"{path} was collected by an older version, without data/{EXPERT}. Delete it or choose another."
        )
    if store.n_episodes < n_demos and store.task.versions != task.versions:
        raise DataError(
            f"{path} was collected with {store.task.versions}; here is {task.versions}. Its {store.n_episodes} "
            "episodes can be used, but not extended. Choose another path."
        )
    return store


def replay(store: Episodes, i: int, obs: Sequence[str] = ()) -> tuple[bool, dict[str, np.ndarray]]:
    """Episode ``i`` once more: its actions, from its seed.

    Args:
        store: demonstrations that remember their environment and their seeds.
        i: the episode.
        obs: observations wanted, recorded then or not.

    Returns:
        Whether it succeeds again, and what is seen before each action, (T, *shape) by key.
    """
    if store.task is None or "seed" not in store.episode_meta_names:
        raise DataError(f"{store.path} does not say in which environment, from which seeds, it was recorded.")
    env = make_env({**store.task.env_args, "terminate_on_success": False, "obs": list(obs)})
    try:
        frame, success = env.reset(int(store.episode_meta("seed")[i])), False
        seen: dict[str, list[np.ndarray]] = {key: [] for key in obs}
        for action in store.episode(i, ["action"])["action"]:
            for key in obs:
                seen[key].append(frame[key])
            success |= env.step(action).success
            frame = env.observe()
    finally:
        env.close()
    return success, {key: np.stack(frames) for key, frames in seen.items()}
