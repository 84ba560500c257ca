"""Bytes: messages come back as they were, and whatever else comes in is refused in words."""

from __future__ import annotations

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.errors import DataError
from real_robot.remote.codec import DTYPES, pack, unpack

STATE = np.arange(7.0)

arrays = st.sampled_from(sorted(set(DTYPES.values()), key=str)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)
scalars = arrays.filter(lambda x: x.size).map(lambda x: x.reshape(-1)[0])
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
messages = st.recursive(plain | arrays | scalars, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=12)


def same(a, b) -> bool:
    if isinstance(a, np.float64):  # is a float, and travels as one
        a = float(a)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() and type(a) is type(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


@given(messages)
@settings(max_examples=100, deadline=None)
def test_messages_come_back_as_they_were(message):
    assert same(message, unpack(pack(message)))


def test_arrays_of_any_layout_come_back():
    x = np.arange(24.0).reshape(2, 3, 4)
    for view in (x[:, ::-1], x.T, x[0, 1:2], np.asfortranarray(x), x.astype(">f4"), x[:, :0]):
        np.testing.assert_array_equal(unpack(pack({"x": view}))["x"], view)


@pytest.mark.parametrize("x", [np.array(["a"]), np.array([1j]), np.array([None]), {1}, np.zeros(1, "f4,i4"),
                               np.datetime64("2026"), np.longdouble(1)], ids=str)  # fmt: skip
def test_what_cannot_be_sent_is_refused(x):
    with pytest.raises(DataError, match="cannot be sent"):
        pack({"x": x})


def array(**changes) -> bytes:
    return msgpack.packb({"x": {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f8", b"shape": [1], **{
        k.encode(): v for k, v in changes.items()}}})  # fmt: skip


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (pack({"x": STATE})[:-1], "malformed"),
        (pack({"x": STATE}) + b"\0", "malformed"),
        (array(dtype="|O"), "dtype '|O'"),
        (array(dtype="f4,f4"), "dtype"),
        (array(dtype="(1000000,1000000)f8"), "dtype"),
        (array(dtype=7), "dtype 7"),
        (array(dtype=["<f8"]), "dtype"),
        (array(shape=[2]), "8 bytes; expected 16"),
        (array(shape=[-1]), r"shape \[-1\]"),
        (array(shape=[True]), "shape"),
        (array(shape=[1] * 40), "shape"),
        (array(shape=[2**62, 2**62]), "expected"),
        (array(shape=[0, 2**62], data=b""), "malformed"),
        (array(shape=None), "shape None"),
        (array(data="text"), "not bytes"),
        (msgpack.packb({b"__npgeneric__": True, b"dtype": "|i1", b"data": 300}), "300 does not fit"),
        (msgpack.packb({b"__npgeneric__": True, b"dtype": "<f8", b"data": "1"}), "scalar"),
        (msgpack.packb(msgpack.ExtType(3, b"abc")), "malformed"),
        (msgpack.packb(msgpack.Timestamp(1, 1)), "malformed"),
        (b"\x91" * 100_000, "malformed"),  # a list of a list of a list ...
        (b"\xdd\xff\xff\xff\xff" * 500, "malformed"),  # lists that claim 2^32 entries
        (b"\xdf\xff\xff\xff\xff" * 500, "malformed"),
        (b"\xc6\xff\xff\xff\xff", "malformed"),
        (b"\xa4\xff\xff\xff\xff", "malformed"),  # not UTF-8
        (msgpack.packb({(1, 2): 3}), "malformed"),
    ],
)
def test_what_does_not_fit_is_told(data, why):
    with pytest.raises(DataError, match=why):
        unpack(data)


@given(st.binary(max_size=300) | st.tuples(messages.map(pack), st.data()).map(lambda x: _corrupt(*x)))
@example(b"\x81\xc4\x0b__ndarray__\xc3")
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_message_or_refused(data):
    with contextlib.suppress(DataError):
        unpack(data)


def _corrupt(message: bytes, data: st.DataObject) -> bytes:
    at, byte = data.draw(st.integers(0, len(message) - 1)), data.draw(st.integers(0, 255))
    return message[:at] + bytes([byte]) + message[at + data.draw(st.integers(0, 3)) :]
