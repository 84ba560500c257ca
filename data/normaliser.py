"""Statistics of a data set and the maps they define; part of the policy, saved in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from data.chunks import ChunkDataset
from data.errors import ConfigError, DataError, nearest
from data.source import Episodes

Mode = Literal["minmax", "meanstd", "identity"]
STATISTICS = ("min", "max", "mean", "std")


class Normaliser(nn.Module):
    """Per key an affine map of the last dimension: ``(x - centre) / scale``.

    "minmax" maps the range seen in the data to [-1, 1], "meanstd" to zero mean and unit variance, "identity" changes
    nothing. A dimension with (almost) no range is only shifted: its constant goes to 0 and comes back exactly. Of
    actions such a dimension is also scaled by ``range_eps``: it stays within that of its constant, whatever comes out
    of a network.

    Buffers, all float32 (D,), named ``<key>/centre``, ``/scale``, ``/min``, ``/max``, ``/mean``, ``/std`` (a "." in a
    key is written "%2E"; "identity" has none). Together with ``modes`` they are the whole state.
    """

    def __init__(
        self, modes: dict[str, str], statistics: dict[str, dict[str, Tensor]], range_eps: float = 1e-4
    ) -> None:
        """From statistics.

        Args:
            modes: {key: "minmax" | "meanstd" | "identity"}.
            statistics: {key: {"min", "max", "mean", "std": (D,)}} for every key that is not "identity".
            range_eps: a dimension whose range (data units) is below this, or below a millionth of its values, is
                taken for constant.
        """
        super().__init__()
        self.modes = dict(modes)
        for key, mode in modes.items():
            _check_mode(key, mode)
            if mode == "identity":
                continue
            if key not in statistics:
                raise DataError(f"No statistics for key '{key}'. {nearest(key, list(statistics))}")
            s = {name: statistics[key][name].double() for name in STATISTICS}
            largest = torch.maximum(s["max"].abs(), s["min"].abs())
            constant = s["max"] - s["min"] < (largest * 1e-6).clamp(min=range_eps)  # float32 resolves 1e-7
            if mode == "minmax":
                centre, scale = (s["max"] + s["min"]) / 2, (s["max"] - s["min"]) / 2
            else:
                centre, scale = s["mean"], s["std"]
            s["centre"] = torch.where(constant, s["min"], centre)
            # What a network adds to an action that never varied must not move the robot; an observation that never
            # varied may do so later.
            still = torch.full_like(scale, range_eps if key == "action" else 1.0)
            s["scale"] = torch.where(constant, still, scale)
            for name, value in s.items():
                self.register_buffer(_buffer(key, name), value.float())

    @classmethod
    def fit(
        cls,
        source: Episodes | ChunkDataset,
        modes: dict[str, str],
        episodes: np.ndarray | None = None,
        range_eps: float = 1e-4,
    ) -> Normaliser:
        """Statistics of ``episodes`` (None: all of the source's), in one pass and a few megabytes.

        Per last dimension; a point cloud's channels and a picture's colours therefore each have one number, and a
        depth image (H, W) has one in all. "identity" keys are not read.

        Raises:
            DataError: an unknown key, no data, a value that is not finite (naming episode and step).
        """
        store = source if isinstance(source, Episodes) else source.store
        if episodes is None and not isinstance(source, Episodes):
            episodes = source.episodes
        for key, mode in modes.items():
            _check_mode(key, mode)
            store.array(key)  # a misspelt key fails before the long pass
        wanted = [k for k, m in modes.items() if m != "identity"]
        return cls(modes, {k: _statistics(store, k, episodes) for k in wanted}, range_eps)

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], modes: dict[str, str], prefix: str = "") -> Normaliser:
        """Rebuild from ``state_dict()`` and the modes alone; ``prefix`` as in a parent's state, "normaliser.".

        Raises:
            DataError: the state lacks a buffer.
        """
        new = cls({}, {})
        new.modes = dict(modes)
        for key, mode in modes.items():
            _check_mode(key, mode)
            for name in (*STATISTICS, "centre", "scale") if mode != "identity" else ():
                buffer = _buffer(key, name)
                if prefix + buffer not in state:
                    raise DataError(
                        f"The normaliser's state has no '{prefix + buffer}'. {nearest(buffer, list(state))}"
                    )
                new.register_buffer(buffer, state[prefix + buffer].clone())
        return new

    @classmethod
    def from_maps(cls, maps: Mapping[str, tuple[Tensor, Tensor]], modes: Mapping[str, str]) -> Normaliser:
        """Of maps that were fitted elsewhere.

        Args:
            maps: (centre, scale), (D,) each and in data units, for every key that is not "identity". The range that
                comes out as [-1, 1] then stands for "min" and "max", centre and scale for "mean" and "std".
            modes: as usual.
        """
        new = cls({}, {})
        new.modes = dict(modes)
        for key, (centre, scale) in maps.items():
            values = {"min": centre - scale, "max": centre + scale, "mean": centre, "std": scale}
            for name, value in {**values, "centre": centre, "scale": scale}.items():
                new.register_buffer(_buffer(key, name), value.float().clone())
        return new

    def shrink(self, key: str, dims: Sequence[int], factor: float) -> None:
        """Normalised values of these dimensions become 1 / ``factor`` of what they were.

        What only opens or closes then lies close together for a sampler's last few steps (RTI-DP's "scale").

        Raises:
            ConfigError: a dimension that the key has not, or a factor below 1.
        """
        scale = self.statistic(key, "scale")
        if factor < 1 or any(not -len(scale) <= d < len(scale) for d in dims):
            raise ConfigError(f"'{key}' has {len(scale)} dimensions; {list(dims)} / {factor} cannot be shrunk.")
        scale[list(dims)] *= factor

    def change_units(self, key: str, scale: np.ndarray, offset: np.ndarray) -> None:
        """Data units become others, x' = scale * x + offset, (D,) each; what is normalised stays what it was.

        Raises:
            DataError: the key has no statistics, or another number of dimensions.
        """
        centre = self.statistic(key, "centre")
        if scale.shape != tuple(centre.shape) or offset.shape != tuple(centre.shape) or not np.all(scale):
            raise DataError(f"'{key}' has {len(centre)} dimensions; units for {scale.shape} do not fit.")
        by, plus = torch.from_numpy(scale), torch.from_numpy(offset)
        old = {name: self.statistic(key, name).double().cpu() for name in (*STATISTICS, "centre", "scale")}
        ends = torch.stack([by * old["min"] + plus, by * old["max"] + plus])
        new = {"min": ends.amin(0), "max": ends.amax(0), "std": by.abs() * old["std"], "scale": by * old["scale"]}
        new |= {name: by * old[name] + plus for name in ("mean", "centre")}
        for name, value in new.items():
            self.statistic(key, name).copy_(value.float())

    @property
    def keys(self) -> list[str]:
        """Keys it knows."""
        return list(self.modes)

    def statistic(self, key: str, name: str) -> Float[Tensor, " D"]:
        """ "min", "max", "mean", "std", "centre" or "scale" of a key, (D,) in data units."""
        self._mode(key)
        buffer = _buffer(key, name)
        if buffer not in self._buffers:
            raise DataError(f"The normaliser holds no {name} of '{key}' (mode '{self.modes[key]}').")
        return self.get_buffer(buffer)

    def normalise(self, key: str, x: Shaped[Tensor, "... D"]) -> Shaped[Tensor, "... D"]:
        """Data units to normalised; integers become float32 unless the mode is "identity"."""
        if self._mode(key) == "identity":
            return x
        x = x if x.is_floating_point() else x.float()
        return (x - self.get_buffer(_buffer(key, "centre"))) / self.get_buffer(_buffer(key, "scale"))

    def unnormalise(self, key: str, x: Shaped[Tensor, "... D"]) -> Shaped[Tensor, "... D"]:
        """Inverse of ``normalise``."""
        if self._mode(key) == "identity":
            return x
        return x * self.get_buffer(_buffer(key, "scale")) + self.get_buffer(_buffer(key, "centre"))

    def _mode(self, key: str) -> str:
        if key not in self.modes:
            raise DataError(
                f"The normaliser does not know the key '{key}'. {nearest(key, self.keys)} Known: {self.keys}."
            )
        return self.modes[key]


def _buffer(key: str, name: str) -> str:
    return f"{key.replace('%', '%25').replace('.', '%2E')}/{name}"


def _check_mode(key: str, mode: str) -> None:
    if mode not in get_args(Mode):
        raise ConfigError(f"Unknown normalisation '{mode}' for key '{key}'. {nearest(mode, list(get_args(Mode)))}")


def _statistics(store: Episodes, key: str, episodes: np.ndarray | None) -> dict[str, Tensor]:
    """Min, max, mean and standard deviation per last dimension (D,)."""
    field = store.fields[key]
    # First per element of a row, which sums along time and is fast; points and pixels are joined at the end.
    size = int(np.prod(field.shape, dtype=np.int64))
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    n, mean, m2 = 0, np.zeros(size), np.zeros(size)
    for start, stop, block in store.finite_blocks(key, episodes):
        rows = np.zeros((1, size)) if block is None else block.reshape(len(block), size)
        low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
        for a in range(0, len(rows), step := max(1, (1 << 18) // size)):  # the float64 copies stay small
            x = rows[a : a + step].astype(np.float64)
            k = len(x) if block is not None else stop - start
            part_mean = x.mean(0)
            x -= part_mean
            # Joining two parts' sums of squares, as in Chan, Golub & LeVeque 1983.
            delta = part_mean - mean
            m2 += np.square(x, out=x).sum(0) + np.square(delta) * (n * k / (n + k))
            mean += delta * (k / (n + k))
            n += k
    if n == 0:
        raise DataError(f"{store.path}: there is no data to normalise '{key}' by (no episodes).")
    width = 1 if field.kind == "depth" or not field.shape else field.shape[-1]
    means = mean.reshape(-1, width)
    mean = means.mean(0)
    variance = (m2.reshape(-1, width) / n + np.square(means - mean)).mean(0)
    values = {
        "min": low.reshape(-1, width).min(0),
        "max": high.reshape(-1, width).max(0),
        "mean": mean,
        "std": np.sqrt(variance),
    }
    return {name: torch.from_numpy(v) for name, v in values.items()}
