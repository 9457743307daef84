"""The rows of the Parquet files of a folder, from arrays of log points, repeats and evaluated tasks; the last axis is fastest."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clray.store.layout import METRICS_SCHEMA
from clray.types import HostArray


def evaluated_rows(steps: Sequence[int], repeats: Sequence[int], tasks: Sequence[int], accuracy: HostArray, loss: HostArray) -> pa.Table:
    """Rows of metrics.parquet in (L, R, E) order from (L, R, E) arrays."""
    axes = axes_of({"step": steps, "repeat": repeats, "eval_task": tasks})
    return table_of(axes | {"accuracy": accuracy.ravel(), "loss": loss.ravel()}, METRICS_SCHEMA)


def axes_of(axes: Mapping[str, Sequence[int]]) -> dict[str, pa.Array]:
    """A column for each axis: all combinations of their values."""
    return dict(zip(axes, _grid(tuple(axes), tuple(tuple(values) for values in axes.values())), strict=True))


@functools.lru_cache(maxsize=8)
def _grid(names: tuple[str, ...], axes: tuple[tuple[int, ...], ...]) -> tuple[pa.Array, ...]:
    """All combinations, last axis fastest, an array an axis. They are the same for every task, and long where tasks are many."""
    grids = np.meshgrid(*(np.asarray(values, np.int64) for values in axes), indexing="ij")
    return tuple(column(grid.ravel(), METRICS_SCHEMA.field(name).type) for name, grid in zip(names, grids, strict=True))


def table_of(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """A table with the columns and types of a schema, from NumPy arrays or columns of ``axes_of``."""
    arrays = [columns[field.name] for field in schema]
    typed = [array if isinstance(array, pa.Array) else column(array, field.type) for array, field in zip(arrays, schema, strict=True)]
    return pa.table(typed, schema)


def column(values: Sequence[Any] | HostArray, type_: pa.DataType) -> pa.Array:
    """An Arrow array of a number type or of text; None in a list is null.

    Made of buffers, since ``pa.array`` imports pandas to see whether that made the values, which takes every process a third of a second.

    Raises:
        TypeError, OverflowError: a value does not fit the type.
    """
    dtype, valid = np.dtype(type_.to_pandas_dtype()), None
    if not isinstance(values, np.ndarray):
        valid = pa.py_buffer(np.packbits(np.array([value is not None for value in values], bool), bitorder="little"))
        if pa.types.is_string(type_):
            texts = [b"" if value is None else value.encode() for value in values]
            ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
            return pa.Array.from_buffers(type_, len(texts), [valid, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])
        values = np.array([0 if value is None else value for value in values])
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{values.dtype} values are no {type_}")
    with np.errstate(invalid="ignore"):
        numbers = values.astype(dtype)
    if dtype.kind == "i" and (numbers != values).any():  # whole numbers may come as floats
        raise OverflowError(f"{values.max()} or {values.min()} is no {type_}")
    return pa.Array.from_buffers(type_, len(numbers), [valid, pa.py_buffer(numbers)])


def numbers_of(column: pa.ChunkedArray) -> HostArray:
    """A column of numbers, none of them null, as a NumPy array that cannot be written to; without pandas, see ``column``."""
    return np.from_dlpack(column.combine_chunks())
