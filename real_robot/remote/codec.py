"""The bytes of the openpi protocol: msgpack in which a NumPy array is a map of data, dtype and shape.

    array   {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}
    scalar  {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}

What comes in may come from anybody: nothing in it is ever executed, dtypes are those of a list, and sizes are checked
before anything is made of them.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from data.errors import DataError

ITEMS = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}  # bytes by kind of dtype
DTYPES = {f"{order}{kind}{n}": np.dtype(f"{order}{kind}{n}") for kind in ITEMS for n in ITEMS[kind] for order in "<>|="}
MAX_ENTRIES = 1 << 16  # of a list or a map, which are made before their entries have been seen
MAX_DIMS = 32
_MARKS = (b"__ndarray__", b"__npgeneric__")


def pack(message: Any) -> bytes:
    """``message`` may hold dicts with str keys, lists, str, bytes, numbers, None, and arrays and scalars of ``ITEMS``.

    Raises:
        DataError: it holds something else.
    """
    try:
        packed = msgpack.packb(message, default=_pack_array)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise DataError(f"This message cannot be sent: {e}.") from e
    assert packed is not None
    return packed


def _pack_array(x: Any) -> Any:
    if not isinstance(x, (np.ndarray, np.generic)):
        raise TypeError(f"a {type(x).__name__} is neither plain data nor a NumPy array")
    if x.dtype.str not in DTYPES:
        raise TypeError(f"an array of dtype {x.dtype} (numbers and booleans of up to 8 bytes can be sent)")
    if isinstance(x, np.generic):
        return {b"__npgeneric__": True, b"data": x.item(), b"dtype": x.dtype.str}
    data = np.ascontiguousarray(x).data if x.size else b""
    return {b"__ndarray__": True, b"data": data, b"dtype": x.dtype.str, b"shape": x.shape}


def unpack(data: bytes) -> Any:
    """Inverse of ``pack``; tuples come back as lists, arrays as read-only views of ``data``'s copy.

    Raises:
        DataError: these are not the bytes of such a message.
    """
    try:
        return msgpack.unpackb(
            data,
            object_hook=_unpack_array,
            ext_hook=_refuse_extension,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=0,
        )
    except DataError:
        raise
    except Exception as e:  # msgpack raises all kinds: ValueError, TypeError, its own, UnicodeDecodeError
        reason = str(e) or type(e).__name__
        raise DataError(f"The message is malformed: {len(data)} bytes that are not msgpack ({reason}).") from e


def _refuse_extension(code: int, data: bytes) -> Any:
    raise DataError(f"The message is malformed: it holds an extension type ({code}).")


def _unpack_array(x: dict[Any, Any]) -> Any:
    if not any(mark in x for mark in _MARKS):
        return x
    data, shape, name = x.get(b"data"), x.get(b"shape"), x.get(b"dtype")
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise DataError(f"The message is malformed: an array of dtype {_short(name)}; {', '.join(_names())} are known.")
    if b"__npgeneric__" in x:
        return _scalar(dtype, data)
    if not isinstance(data, bytes):
        raise DataError(f"The message is malformed: an array whose data are {_short(data)}, not bytes.")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(type(n) is int and n >= 0 for n in shape):
        raise DataError(f"The message is malformed: an array of shape {_short(shape)}.")
    size = dtype.itemsize
    for n in shape:
        size *= n
    if size != len(data):
        raise DataError(
            f"The message is malformed: an array of shape {_short(shape)} and dtype {dtype} with {len(data)} bytes; "
            f"expected {_short(size)}."
        )
    return np.frombuffer(data, dtype).reshape(shape) if size else np.empty(shape, dtype)


def _scalar(dtype: np.dtype, value: Any) -> np.generic:
    fits = {"b": bool, "i": int, "u": int, "f": float}[dtype.kind]
    if type(value) is not fits:
        raise DataError(f"The message is malformed: a scalar of dtype {dtype} with the value {_short(value)}.")
    if fits is int and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        raise DataError(f"The message is malformed: {value} does not fit a {dtype}.")
    return dtype.type(value)


def _names() -> list[str]:
    return sorted({str(dtype.newbyteorder("=")) for dtype in DTYPES.values()})


def _short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 80 else f"{text[:77]}..."
