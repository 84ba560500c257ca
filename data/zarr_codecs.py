"""What a chunk's bytes may decode to, judged before they are decoded, and codecs that zarr does not bring.

Decoders trust what a chunk says about itself: Blosc would read on behind a file that is cut off, and all of them would
unpack a few kilobytes into as many gigabytes.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from typing import Any

import numcodecs
from numcodecs.abc import Codec
from numcodecs.compat import ndarray_copy

HEAD = 32  # bytes of a chunk that ``damage`` looks at
UNPACKED = ("zlib", "gzip", "bz2", "lzma")  # codecs that say nothing beforehand: ``damage`` needs all bytes
MAX_CHUNK = 1 << 30


def damage(codec: str, head: bytes, size: int, n_bytes: int) -> str:
    """What is wrong with an encoded chunk; "" if nothing, or nothing that can be seen.

    Args:
        codec: numcodecs' id; "" for none.
        head: its first ``HEAD`` bytes; all of it for ``UNPACKED``.
        size: its length.
        n_bytes: what it should decode to.
    """
    if codec == "blosc":
        return blosc_damage(head, size, n_bytes)
    decoded = None
    if codec == "lz4" and len(head) >= 4:
        decoded = struct.unpack("<I", head[:4])[0]
    elif codec == "zstd":
        decoded = _zstd_size(head)
    elif codec in UNPACKED:
        decoded = _unpacked(codec, head, n_bytes + 1)
    elif codec == "":
        decoded = size
    if decoded is not None and decoded != n_bytes:
        more = "more than " if decoded > n_bytes and codec in UNPACKED else ""
        return f"it decodes to {more}{min(decoded, n_bytes) if more else decoded} bytes, expected {n_bytes}"
    return ""


def blosc_damage(head: bytes, size: int, n_bytes: int) -> str:
    """``damage`` of a Blosc buffer."""
    if len(head) < 16:
        return f"the file has {size} bytes, not even a header"
    decoded, _, encoded = struct.unpack("<III", head[4:16])
    if encoded != size:
        return f"the file has {size} bytes where its header says {encoded}"
    if decoded != n_bytes:
        return f"its header says {decoded} decoded bytes, expected {n_bytes}"
    return ""


def _zstd_size(head: bytes) -> int | None:
    """Content size of a Zstandard frame (RFC 8878, 3.1.1.1); None where the frame does not say."""
    if len(head) < 18 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    flags = head[4]
    at = 5 + (0 if flags & 32 else 1) + (0, 1, 2, 4)[flags & 3]
    width = (1 if flags & 32 else 0, 2, 4, 8)[flags >> 6]
    if not width:
        return None
    return int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)


def _unpacked(codec: str, data: bytes, most: int) -> int | None:
    """Bytes it unpacks to, counted up to ``most``; None where it does not unpack (zarr then says why)."""
    try:
        if codec in ("zlib", "gzip"):
            return len(zlib.decompressobj(47).decompress(data, most))
        return len((bz2.BZ2Decompressor() if codec == "bz2" else lzma.LZMADecompressor()).decompress(data, most))
    except (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError):
        return None


class JpegXL(Codec):
    """UMI's pictures: one JPEG-XL image a chunk. Reads only."""

    codec_id = "imagecodecs_jpegxl"

    def __init__(self, **config: Any) -> None:
        self.config = config

    def get_config(self) -> dict[str, Any]:
        """As in .zarray."""
        return {"id": self.codec_id, **self.config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> JpegXL:
        """Takes what any version of imagecodecs has written; decoding depends on none of it."""
        return cls(**{k: v for k, v in config.items() if k != "id"})

    def encode(self, buf: Any) -> Any:
        """Not possible."""
        raise NotImplementedError("Deft does not write JPEG-XL.")

    def decode(self, buf: Any, out: Any = None) -> Any:
        """(H, W, C) uint8."""
        try:
            import imagecodecs
        except ImportError as e:
            raise RuntimeError("JPEG-XL pictures need imagecodecs: pip install 'deft[umi]'") from e
        image = imagecodecs.jpegxl_decode(bytes(buf), numthreads=1)
        return ndarray_copy(image, out)


numcodecs.register_codec(JpegXL)
