"""robomimic's HDF5 files, read in place: every robomimic, and what MimicGen, LIBERO and others write like it.

    data                        attributes: env_args (JSON: env_name, type, env_kwargs, env_version), total
    data/demo_<k>               one episode; attributes: num_samples, model_file, ...
    data/demo_<k>/obs/<key>     (T, *shape)  -> <key>
    data/demo_<k>/actions       (T, Da)      -> "action"
    data/demo_<k>/rewards, dones, states, actions_abs, action_dict/<key>, ...
                                             -> "reward", "done", "states", "actions_abs", "action_dict.<key>", ...
    mask/<name>                 names of the episodes that belong to a filter key -> episode_meta("mask_<name>")

``next_obs`` is not shown, and the scene's XML (model_file) by ``scene`` only. What the file does not say is as
``data.guess`` has it; the control rate is robosuite's ``control_freq`` in ``env_args``. Files that Deft wrote also hold
our own metadata.

Episodes are in the order of their numbers. Read with h5py (extra "hdf5").
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from data import checks
from data.errors import DataError
from data.formats.hdf5_rows import MAX_UNPACKED, Hdf5Rows, Piece, open_hdf5, text
from data.guess import guess_task
from data.source import Episodes, Rows
from data.zarr_read import reason

EXTRAS = {"actions": "action", "rewards": "reward", "dones": "done"}
OURS = "deft"  # attribute of data/ in files that Deft wrote
_DEMO = re.compile(r"\D*(\d+)")
_MAGIC = b"\x89HDF\r\n\x1a\n"
_ROBOSUITE = 1


def is_hdf5(path: Path) -> bool:
    """By its signature, which may lie behind a user block of 512, 1024, ... bytes."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        at = 0
        while at + len(_MAGIC) <= size:
            f.seek(at)
            if f.read(len(_MAGIC)) == _MAGIC:
                return True
            at = max(512, 2 * at)
    return False


class RobomimicEpisodes(Episodes):
    """A file; see the module."""

    format = "robomimic"

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(path) as file:
            try:
                self._read_outline(file)
            except DataError:
                raise
            except Exception as e:  # h5py says what is corrupt by exceptions of every kind
                raise DataError(f"{path} cannot be read: {reason(e)}. It is cut off or corrupt; copy it again.") from e

    def scene(self, i: int) -> str | None:
        """The attribute ``model_file`` of episode ``i``."""
        with open_hdf5(self.path) as file:
            xml = file[f"data/{self.demos[i]}"].attrs.get("model_file")
        return None if xml is None else text(xml)

    def _read_outline(self, file: Any) -> None:
        data = _group(file, "data", self.path)
        names = sorted((n for n in data if _group_at(data, n) is not None), key=_number)
        if not names:
            raise DataError(f"{self.path}: the group data holds no episodes; expected data/demo_0, data/demo_1, ...")
        self.demos: list[str] = names
        pieces: dict[str, list[Piece]] = {}
        lengths = []
        for i, name in enumerate(names):
            found = self._episode(data[name], f"data/{name}")
            if i and (odd := set(found) ^ set(pieces)):
                key = sorted(odd)[0]
                has, lacks = (name, names[0]) if key in found else (names[0], name)
                raise DataError(f"{self.path}: data/{has} has '{key}', data/{lacks} has not; all must hold the same.")
            for key, piece in found.items():
                first = pieces.setdefault(key, [piece])[0]
                if i == 0:
                    continue
                if (piece.shape[1:], piece.dtype) != (first.shape[1:], first.dtype):
                    raise DataError(
                        f"{self.path}: {piece.name} is {piece.shape} {piece.dtype}, but {first.name} is {first.shape} "
                        f"{first.dtype}; all but the first number must be the same in all episodes."
                    )
                pieces[key].append(piece)
            lengths.append(next(iter(found.values())).shape[0])
        self.episode_ends = np.cumsum(np.array(lengths, np.int64))
        self._arrays: dict[str, Rows] = {k: Hdf5Rows(self.path, p, self.episode_ends) for k, p in pieces.items()}
        self._episode_meta = {**_numbers([data[n].attrs for n in names]), **self._masks(file)}
        ours = _json(data.attrs, OURS, self.path)
        self.env_args = _json(data.attrs, "env_args", self.path)
        if ours is not None:
            self._ours(ours)
            return
        self.attrs, meta = {}, self.env_args or {}
        kwargs = meta.get("env_kwargs")
        hz = kwargs.get("control_freq", 0) if isinstance(kwargs, dict) else 0
        version = meta.get("env_version") if meta.get("type") == _ROBOSUITE else None
        versions = {"robosuite": str(version)} if version else {}
        name = str(meta.get("env_name") or self.path.stem)
        self.task = guess_task(
            self,
            f"robomimic/{name}",
            extras=[k for k in self._arrays if k not in self._observed],
            control_hz=float(hz) if isinstance(hz, (int, float)) else 0.0,
            env_args={"suite": "robomimic", "env_args": meta} if meta else {},
            versions=versions,
        )

    def _episode(self, demo: Any, where: str) -> dict[str, Piece]:
        """The arrays of one episode by the names they are shown under."""
        obs = _group_at(demo, "obs")
        if obs is None:
            raise DataError(
                f"{self.path}: {where} has no group obs, only {sorted(demo)}. A recording of simulator states becomes "
                "a data set by robomimic's script dataset_states_to_obs.py."
            )
        if "actions" not in demo:
            raise DataError(f"{self.path}: {where} has no actions, only {sorted(demo)}; expected (T, Da).")
        found = self._pieces(obs, f"{where}/obs")
        self._observed = set(found)
        if not found:
            raise DataError(f"{self.path}: {where}/obs is empty; expected observations (T, *shape).")
        for key, piece in self._pieces(demo, where).items():
            name = EXTRAS.get(key, key)
            found[f"robomimic.{name}" if name in found else name] = piece
        parts = _group_at(demo, "action_dict")
        if parts is not None:
            found |= {f"action_dict.{k}": p for k, p in self._pieces(parts, f"{where}/action_dict").items()}
        n = found["action"].shape[0] if found["action"].shape else 0
        for key in list(found):
            piece = found[key]
            if piece.dtype.kind not in "biuf":
                if key in self._observed or key == "action":
                    raise DataError(f"{self.path}: {piece.name} is {piece.dtype}, expected numbers (T, *shape).")
                del found[key]  # texts and the like are nothing to learn from
            elif not piece.shape or piece.shape[0] != n or 0 in piece.shape:
                if key in self._observed or key in ("action", "reward", "done"):
                    raise DataError(
                        f"{self.path}: {piece.name} has shape {piece.shape}, but {where}/actions has {n} steps; "
                        "expected (T, *shape) with the same T >= 1."
                    )
                del found[key]
            elif piece.bytes > max(MAX_UNPACKED, 1100 * piece.stored):
                raise DataError(
                    f"{self.path}: {piece.name} takes {piece.stored} bytes in the file, but claims to unpack to "
                    f"{piece.bytes / 1e9:.1f} GB {piece.shape}. It was never filled, or is made to exhaust memory."
                )
        return found

    def _pieces(self, group: Any, where: str) -> dict[str, Piece]:
        import h5py

        opened = {k: group.get(k) for k in group}
        return {k: Piece(d, self.path, f"{where}/{k}") for k, d in opened.items() if isinstance(d, h5py.Dataset)}

    def _masks(self, file: Any) -> dict[str, np.ndarray]:
        out, number = {}, {n: i for i, n in enumerate(self.demos)}
        masks = _group_at(file, "mask")
        for name in masks if masks is not None else ():
            assert masks is not None
            chosen = np.zeros(len(self.demos), bool)
            if _group_at(masks, name) is not None or masks[name].size > 16 * len(self.demos) + 1024:
                raise DataError(f"{self.path}: mask/{name} is not a list of episodes.")
            for demo in np.asarray(masks[name][()]).reshape(-1).tolist():
                if (word := text(demo)) not in number:
                    raise DataError(f"{self.path}: mask/{name} names the episode '{word}', which data/ has not.")
                chosen[number[word]] = True
            out[f"mask_{name}"] = chosen
        return out

    def _ours(self, ours: dict[str, Any]) -> None:
        self.task = checks.read_task(self.path, ours)
        self.attrs = {k: v for k, v in ours.items() if k not in ("task", "derived", "episode_meta")}
        for key in ours.get("derived", ()):  # what robomimic wants and the source did not have
            self._arrays.pop(key, None)
        if self.task is not None:
            checks.check_arrays(self.path, self.task, self._outline())


def _number(name: str) -> tuple[int, str]:
    found = _DEMO.fullmatch(name)
    return (int(found[1]) if found and len(found[1]) < 19 else 1 << 62, name)


def _group_at(parent: Any, name: str) -> Any | None:
    import h5py

    found = parent.get(name)
    return found if isinstance(found, h5py.Group) else None


def _group(file: Any, name: str, path: Path) -> Any:
    found = _group_at(file, name)
    if found is None:
        raise DataError(
            f"{path} is an HDF5 file without the group {name}, only {sorted(file)[:8]}. Expected robomimic's layout: "
            "data/demo_0/{obs/<key>, actions}."
        )
    return found


def _json(attrs: Any, name: str, path: Path) -> dict[str, Any] | None:
    if name not in attrs:
        return None
    try:
        value = json.loads(text(attrs[name]))
        assert isinstance(value, dict)
    except (ValueError, TypeError, AssertionError, RecursionError) as e:
        raise DataError(f"{path}: the attribute {name} of data is not a JSON object ({reason(e)}).") from e
    return value


def _numbers(attrs: list[Any]) -> dict[str, np.ndarray]:
    """Numeric attributes that all episodes have, (n_episodes, ...)."""
    out = {}
    for name in attrs[0]:
        if name == "num_samples" or not all(name in a for a in attrs):
            continue
        values = [np.asarray(a[name]) for a in attrs]
        if len({(v.shape, v.dtype.kind) for v in values}) == 1 and values[0].dtype.kind in "biuf":
            out[name] = np.stack(values)
    return out
