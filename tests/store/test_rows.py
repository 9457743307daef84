"""Columns are what Arrow itself makes of the same values, without the pandas that it would import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clray.store.rows import column, numbers_of

FLOATS = st.floats(width=32)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def same(made: pa.Array, expected: pa.Array) -> bool:
    """Equal in every value, with null apart from NaN."""
    made.validate(full=True)
    return made.type == expected.type and repr(made.to_pylist()) == repr(expected.to_pylist())


@given(st.lists(st.none() | TEXTS, max_size=20))
def test_text_with_nulls_equals_arrows(values: Sequence[Any]) -> None:
    assert same(column(values, pa.string()), pa.array(values, pa.string()))


@given(st.lists(st.none() | FLOATS, max_size=20))
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_numbers_with_nulls_equal_arrows(kind: pa.DataType, values: Sequence[Any]) -> None:
    assert same(column(values, kind), pa.array(values, kind))


@given(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=20))
def test_whole_numbers_with_nulls_equal_arrows(values: Sequence[Any]) -> None:
    assert same(column(values, pa.int32()), pa.array(values, pa.int32()))


@given(st.lists(st.none() | st.integers(-9, 9) | st.integers(-9, 9).map(float), max_size=20))
def test_whole_numbers_may_be_floats(values: Sequence[Any]) -> None:
    assert same(column(values, pa.int32()), pa.array(values, pa.int32()))


@given(st.lists(FLOATS, max_size=20))
def test_a_numpy_array_keeps_nan_and_is_copied(values: list[float]) -> None:
    array = np.array(values, np.float32)
    made = column(array, pa.float32())
    before = pa.array(array.copy())
    array[:] = 7.0
    assert same(made, before)


@given(st.lists(st.lists(FLOATS, max_size=4), max_size=3))
def test_numbers_come_back_whatever_the_chunks(chunks: list[list[float]]) -> None:
    held = pa.chunked_array([pa.array(chunk, pa.float32()) for chunk in chunks], pa.float32())
    found = numbers_of(held)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, held.to_numpy())


@pytest.mark.parametrize(
    ("value", "kind"), [("three", pa.float64()), (2**31, pa.int32()), ("\ud800", pa.string()), ("3", pa.int32()), (True, pa.int32())]
)
def test_a_value_of_another_kind_is_refused(value: Any, kind: pa.DataType) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        pa.array([value], kind)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        column([value], kind)
