"""State survives packing to the last bit, and damaged bytes never do more than raise."""

from __future__ import annotations

import math
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clray.store.checkpoint import VIEWED_BYTES, CorruptStateError, pack_state, packed_parts, unpack_state

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64", "complex64"]
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
LEAVES = st.one_of(ARRAYS, st.integers(-(2**63), 2**64 - 1), st.floats(), st.booleans())
PATHS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda path: not path.startswith("__msgpack"))
EXAMPLE = {"head.kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "count": np.uint32(7), "step": 3, "rate": 0.1}


def same_bits(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray):
        return (
            isinstance(right, np.ndarray) and left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
        )
    if isinstance(left, float):
        return isinstance(right, float) and struct.pack("d", left) == struct.pack("d", right)
    return type(left) is type(right) and left == right


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(PATHS, LEAVES, max_size=5))
def test_round_trip_is_exact(state: dict) -> None:
    restored = unpack_state(pack_state(state))
    assert restored.keys() == state.keys()
    assert all(same_bits(state[path], restored[path]) for path in state)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.5, -0.0, np.nan, np.inf], ml_dtypes.bfloat16),
        np.array(1.5, ml_dtypes.bfloat16),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.float32)[::2],
        np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32),
        np.zeros((0, 3), np.int32),
    ],
    ids=["bfloat16", "bfloat16 scalar", "transposed", "strided", "NaN payloads", "empty"],
)
def test_odd_arrays_round_trip(array: np.ndarray) -> None:
    assert same_bits(np.ascontiguousarray(array).reshape(array.shape), unpack_state(pack_state({"a": array}))["a"])


def test_numpy_scalars_become_arrays_without_axes() -> None:
    restored = unpack_state(pack_state({"a": np.uint32(7)}))["a"]
    assert isinstance(restored, np.ndarray)
    assert restored.shape == ()
    assert restored.dtype == np.uint32


def test_other_byte_orders_keep_their_values() -> None:
    restored = unpack_state(pack_state({"a": np.array([1, 2], ">i4")}))["a"]
    np.testing.assert_array_equal(restored, np.array([1, 2], np.int32), strict=True)


def test_the_state_that_is_packed_stays_as_it_is() -> None:
    state = dict(EXAMPLE)
    pack_state(state)
    assert all(state[path] is EXAMPLE[path] for path in EXAMPLE)


def test_arrays_above_the_limit_of_a_piece_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    from flax import serialization

    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    assert same_bits(array, unpack_state(pack_state({"a": array}))["a"])


@pytest.mark.parametrize(
    "value", [np.array([None]), np.array(["text"]), "text", None, [1, 2], {"a": 1}, object(), np.datetime64("2026-01-01")]
)
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        pack_state({"a": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("state", [{"": 1}, {"__msgpack_chunked_array__": 1}, {"a": 2**64}, {1: 1}])
def test_paths_and_numbers_out_of_range_are_refused(state: dict) -> None:
    with pytest.raises(ValueError, match=r"cannot be a path|64 bits"):
        pack_state(state)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_or_give_numbers(data: st.DataObject) -> None:
    packed = bytearray(pack_state(EXAMPLE))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(packed)))
    try:
        state = unpack_state(bytes(packed[:cut]))
    except CorruptStateError:
        return
    assert all(isinstance(value, (np.ndarray, int, float)) for value in state.values())


@pytest.mark.parametrize("data", [b"", b"\x00", b"junk", pickle.dumps({"a": 1}), b"\x93\x01\x02\x03", b"\xc0", math.pi.hex().encode()])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptStateError):
        unpack_state(data)


LARGE = {
    "as it lies": np.arange(2**15, dtype=np.float32).reshape(2, -1, 64),
    "transposed": np.arange(2**15, dtype=np.float32).reshape(128, 256).T,
    "bfloat16": np.arange(2**16, dtype=np.float32).astype(ml_dtypes.bfloat16),
    "just large": np.zeros(VIEWED_BYTES, np.uint8),
    "just small": np.zeros(VIEWED_BYTES - 1, np.uint8),
    "small": np.arange(3),
    "number": 7,
}


def test_large_arrays_are_packed_as_flax_packs_them_without_a_copy() -> None:
    parts = list(packed_parts(LARGE))
    assert b"".join(parts) == serialization.msgpack_serialize(dict(LARGE))
    views = [np.frombuffer(part, np.uint8) for part in parts if isinstance(part, memoryview)]
    assert [view.size for view in views] == [
        LARGE[path].nbytes for path in sorted(LARGE) if path in ("as it lies", "transposed", "bfloat16", "just large")
    ]
    assert sum(np.shares_memory(view, LARGE["as it lies"]) for view in views) == 1


def test_arrays_that_flax_cuts_into_pieces_come_back_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 2**16)
    restored = unpack_state(pack_state(LARGE))
    assert all(
        same_bits(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value, restored[path]) for path, value in LARGE.items()
    )
