"""One door to data sets of every format: ``open_episodes(path)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError
from data.formats.diffusion_policy import DiffusionPolicyEpisodes
from data.formats.lerobot import LeRobotEpisodes, is_lerobot
from data.formats.robomimic import RobomimicEpisodes, is_hdf5
from data.selection import View, masked
from data.source import Episodes


def open_episodes(
    path: str | Path,
    *,
    keys: Mapping[str, str | Sequence[str]] | None = None,
    hz: float | None = None,
    mask: str | None = None,
    actions: str | None = None,
) -> Episodes:
    """A data set, read-only and in place; its format is told by its content, not by its name.

    Args:
        path: Deft's zarr; Diffusion Policy's or UMI's, as a directory, a .zip or a folder in one; robomimic's HDF5;
            LeRobot's folder.
        keys: {name here: key there, or several whose vectors are joined}, such as {"state": ["robot0_eef_pos",
            "object"], "action": "actions_abs"}; all other keys keep their names.
        hz: actions per second, where the format does not say.
        mask: only the episodes of this filter key.
        actions: "absolute": see ``View``.

    Raises:
        DataError: nothing there, no format that is known, or a data set that is damaged or does not hold what is asked
            for; names file and key.
    """
    source = _open(Path(path))
    if keys or hz is not None or mask is not None or actions is not None:
        episodes = masked(source, mask) if mask is not None else None
        return View(source, keys=keys, hz=hz, episodes=episodes, actions=actions)
    return source


def open_with(path: str | Path, options: Mapping[str, Any]) -> Episodes:
    """``open_episodes`` with the ``keys``, ``hz``, ``mask`` and ``actions`` of a user, where any.

    Raises:
        ConfigError: one of the wrong kind; and what ``open_episodes`` raises.
    """
    keys, hz = options.get("keys"), options.get("hz")
    if keys is not None and not isinstance(keys, Mapping):
        raise ConfigError(f"keys={keys} must be of the form {{name: key, name: [key, key]}}.")
    if hz is not None and (not isinstance(hz, (int, float)) or isinstance(hz, bool)):
        raise ConfigError(f"hz={hz} must be a number of actions per second.")
    rate, words = None if hz is None else float(hz), {k: options.get(k) for k in ("mask", "actions")}
    return open_episodes(path, keys=keys, hz=rate, **{k: None if v is None else str(v) for k, v in words.items()})


def _open(path: Path) -> Episodes:
    if is_lerobot(path):
        return LeRobotEpisodes(path)
    if path.is_file() and is_hdf5(path):
        return RobomimicEpisodes(path)
    if path.is_file() and path.suffix.lower() in (".hdf5", ".h5"):
        size = path.stat().st_size
        raise DataError(f"{path} ({size} bytes) is not an HDF5 file, whatever its name says; copy it again.")
    store = EpisodeStore.open(path)
    return store if store.task is not None else DiffusionPolicyEpisodes(path)
