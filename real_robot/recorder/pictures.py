"""Records with pictures as bytes: how the recorder makes them small, and back.

jpeg     rgb, quality 1 to 100
png      rgb, lossless, several times dearer in time and bytes
png16    depth in whole units (1 mm by default): off by at most half a unit; beyond 65535 units, negative or not
         finite is 0, unknown. Lossless from there on
raw      as it is
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import ConfigError, DataError, nearest
from real_robot.core.ring import describe_dtype, parse_dtype

_LENGTH = struct.Struct("<I")
_CODECS = {"rgb": ("jpeg", "png", "raw"), "depth": ("png16", "raw")}


@dataclass(frozen=True)
class Encoding:
    """How pictures are kept.

    Attributes:
        image: jpeg, png or raw.
        quality: of jpeg.
        depth: png16 or raw.
        depth_unit: m, of png16.
    """

    image: str = "jpeg"
    quality: int = 95
    depth: str = "png16"
    depth_unit: float = 0.001

    def __post_init__(self) -> None:
        for name, value, known in (("image", self.image, _CODECS["rgb"]), ("depth", self.depth, _CODECS["depth"])):
            if value not in known:
                raise ConfigError(f"recorder: {name}={value} is not known. {nearest(str(value), list(known))}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"recorder: quality={self.quality} must lie in 1 to 100.")
        if not self.depth_unit > 0:
            raise ConfigError(f"recorder: depth_unit={self.depth_unit} must be positive (m).")

    def of(self, dtype: np.dtype) -> dict[str, dict[str, Any]]:
        """What becomes of the pictures of a record: {"rgb": {"codec": "jpeg", ...}}; the other fields stay."""
        out: dict[str, dict[str, Any]] = {}
        for name in dtype.names or ():
            base, shape = dtype[name].base, dtype[name].shape
            if name == "rgb" and base == np.uint8 and len(shape) == 3 and shape[2] == 3:
                out[name] = {"codec": self.image, **({"quality": self.quality} if self.image == "jpeg" else {})}
            elif name == "depth" and base == np.float32 and len(shape) == 2:
                out[name] = {"codec": self.depth, **({"unit": self.depth_unit} if self.depth == "png16" else {})}
        return out


@dataclass(frozen=True)
class Layout:
    """What a record's bytes mean.

    Attributes:
        dtype: of the ring's record.
        pictures: by field, see ``Encoding.of``.
        head: the fields that are no pictures, packed; a record without fields has one, "value".
    """

    dtype: np.dtype
    pictures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    head: np.dtype = field(init=False)

    def __post_init__(self) -> None:
        names = self.dtype.names
        fields = [(n, self.dtype[n]) for n in names if n not in self.pictures] if names else [("value", self.dtype)]
        object.__setattr__(self, "head", np.dtype(fields))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"dtype": describe_dtype(self.dtype), "pictures": {k: dict(v) for k, v in self.pictures.items()}}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Layout:
        """Inverse of ``to_dict``."""
        return cls(parse_dtype(d["dtype"]), d["pictures"])

    def pack(self, data: NDArray[Any]) -> bytes:
        """A record of the ring -> bytes: the head, then each picture with its length before it."""
        if not self.pictures:
            return data.tobytes()
        head = np.zeros((), self.head)
        for name in self.head.names or ():
            head[name] = data[name]
        parts = [head.tobytes()]
        for name, how in self.pictures.items():
            coded = encode(data[name], how)
            parts += [_LENGTH.pack(len(coded)), coded]
        return b"".join(parts)

    def picture(self, payload: bytes | memoryview, name: str) -> NDArray[Any]:
        """One picture of a record: (H, W, 3) uint8 or (H, W) float32 m."""
        at = self.head.itemsize
        for key, how in self.pictures.items():
            (length,) = _LENGTH.unpack_from(payload, at)
            at += _LENGTH.size
            if key == name:
                return decode(payload[at : at + length], how, self.dtype[name])
            at += length
        raise DataError(f"A record has no picture '{name}'. {nearest(name, list(self.pictures))}")


def encode(picture: NDArray[Any], how: Mapping[str, Any]) -> bytes:
    """A picture as the bytes of its codec."""
    import cv2

    codec = how["codec"]
    if codec == "raw":
        return picture.tobytes()
    if codec == "png16":
        # Rounding in float64: 0.5 units is the largest error, whatever the distance.
        units = np.rint(np.nan_to_num(picture.astype(np.float64), nan=0, posinf=0, neginf=0) / how["unit"])
        whole = np.where((units >= 0) & (units <= 65535), units, 0).astype(np.uint16)
        ok, coded = cv2.imencode(".png", whole, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    else:
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        jpeg = codec == "jpeg"
        options = [cv2.IMWRITE_JPEG_QUALITY, how["quality"]] if jpeg else [cv2.IMWRITE_PNG_COMPRESSION, 1]
        ok, coded = cv2.imencode(".jpg" if jpeg else ".png", bgr, options)
    if not ok:
        raise DataError(f"A picture {picture.shape} {picture.dtype} could not be encoded as {codec}.")
    return coded.tobytes()


def decode(coded: bytes | memoryview, how: Mapping[str, Any], dtype: np.dtype) -> NDArray[Any]:
    """Inverse of ``encode``; ``dtype`` with the picture's shape."""
    import cv2

    codec, base, shape = how["codec"], dtype.base, dtype.shape
    if codec == "raw":
        return np.frombuffer(coded, base).reshape(shape).copy()
    flags = cv2.IMREAD_UNCHANGED if codec == "png16" else cv2.IMREAD_COLOR
    found = cv2.imdecode(np.frombuffer(coded, np.uint8), flags)
    if found is None or found.shape != shape:
        raise DataError(f"A picture cannot be decoded: {codec}, expected {shape}.")
    if codec == "png16":
        return (found * np.float64(how["unit"])).astype(np.float32)
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def fit(
    picture: NDArray[Any], crop: str | tuple[int, int, int, int] = "none", size: tuple[int, int] | None = None
) -> NDArray[Any]:
    """Cut and shrink a picture as a policy wants it; the same function when it is trained and when it is deployed.

    Args:
        picture: (H, W, 3) uint8, or (H, W) depth, which is never mixed from several pixels.
        crop: none; square: the largest one in the middle; or (top, left, height, width).
        size: (H', W').

    Raises:
        ConfigError: a crop that does not lie in the picture.
    """
    import cv2

    h, w = picture.shape[:2]
    if crop == "square":
        side = min(h, w)
        crop = ((h - side) // 2, (w - side) // 2, side, side)
    if crop != "none":
        top, left, height, width = (int(c) for c in crop)
        if min(top, left) < 0 or min(height, width) < 1 or top + height > h or left + width > w:
            raise ConfigError(f"crop={crop} (top, left, height, width) does not lie in a picture of {h} x {w}.")
        picture = picture[top : top + height, left : left + width]
    if size is not None and tuple(size) != picture.shape[:2]:
        shrinks = size[0] <= picture.shape[0] and size[1] <= picture.shape[1]
        method = cv2.INTER_NEAREST if picture.ndim == 2 else cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        picture = cv2.resize(picture, (size[1], size[0]), interpolation=method)
    return np.ascontiguousarray(picture)
