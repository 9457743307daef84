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
    return tuple(_column(grid.ravel(), METRICS_SCHEMA.field(name).type) for name, grid in zip(names, grids, strict=True))


def table_of(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """A table with the columns and types of a schema, from NumPy arrays or columns of ``axes_of``."""
    arrays = [columns[field.name] for field in schema]
    typed = [array if isinstance(array, pa.Array) else _column(array, field.type) for array, field in zip(arrays, schema, strict=True)]
    return pa.table(typed, schema)


def _column(values: HostArray, type_: pa.DataType) -> pa.Array:
    return pa.array(values.astype(type_.to_pandas_dtype()), type_)
