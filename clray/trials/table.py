"""trials.parquet: one row a trial, readable by any tool while the sweep runs."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clray.config import canonical_json
from clray.errors import OutputError
from clray.store.filesystem import Storage, is_name
from clray.store.layout import TRIALS_SCHEMA, SweepLayout
from clray.store.rows import column
from clray.trials.status import TrialStatus

METRICS = ("acc", "forgetting", "forgetting_from_first", "bwt", "fwt", "learning_acc")
WRITE_EVERY_SECONDS = 5.0
WRITE_SHARE = 0.02
"""Part of the driver's time that goes into writing the table while a sweep runs. The larger the table, the rarer: what is
written in all grows with the length of the sweep, not with the square of its trials."""

_log = logging.getLogger("clray.sweep")


def row_of(trial_id: str, params: Mapping[str, Any], status: TrialStatus) -> dict[str, Any]:
    """One row as plain values."""
    result = status.result or {}
    row = {
        "trial_id": trial_id,
        "status": status.status,
        "attempts": status.attempts,
        "n_diverged": result.get("n_diverged"),
        "seconds": result.get("seconds"),
        "error": status.error or None,
        "clray": status.clray or None,
        **{f"param.{key}": value for key, value in params.items()},
    }
    for name, values in result.get("metrics", {}).items():
        row[f"{name}_mean"], row[f"{name}_sem"] = values["mean"], values["sem"]
    return row


def params_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a row, by dotted key; those it has no value for left out."""
    return {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.") and value is not None}


def to_arrow(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table: fixed columns, then ``param.*``, then metrics with mean and SEM.

    A parameter's column holds numbers where all its values are numbers, else canonical JSON text.
    """
    params = sorted({key for row in rows for key in row if key.startswith("param.")})
    extra = sorted({key for row in rows for key in row if key.endswith("_mean")} | {f"{name}_mean" for name in METRICS})
    names = [name.removesuffix("_mean") for name in extra]
    ordered = [name for name in METRICS if name in names] + [name for name in names if name not in METRICS]
    arrays = [column([row.get(field.name) for row in rows], field.type) for field in TRIALS_SCHEMA]
    columns = dict(zip(TRIALS_SCHEMA.names, arrays, strict=True))
    for key in params:
        columns[key] = _parameter_column([row.get(key) for row in rows])
    for name in ordered:
        for part in ("mean", "sem"):
            columns[f"{name}_{part}"] = column([_number(row.get(f"{name}_{part}")) for row in rows], pa.float64())
    return pa.table(columns)


def _number(value: Any) -> float | None:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else float(value)


def _parameter_column(values: Sequence[Any]) -> pa.Array:
    given = [value for value in values if value is not None]
    if given and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in given):
        return column([None if value is None else float(value) for value in values], pa.float64())
    return column([None if v is None else v if isinstance(v, str) else canonical_json(v) for v in values], pa.string())


def read_rows(storage: Storage, layout: SweepLayout) -> list[dict[str, Any]]:
    """Rows of the table on disk; none where there is none or it is damaged (it can always be made again)."""
    try:
        # Without Arrow's threads: they may still hold the file while the interpreter ends, which aborts the process.
        file = pq.ParquetFile(pa.BufferReader(storage.read_bytes(layout.trials_table)))
        rows: list[dict[str, Any]] = file.read(use_threads=False).to_pylist()
    except (FileNotFoundError, pa.ArrowException, OSError, ValueError):
        return []
    # An id becomes a path: one that is no name did not come from clray.
    return [row for row in rows if is_name(row.get("trial_id")) and isinstance(row.get("status"), str)]


class TrialsTable:
    """The table of a running sweep: kept in memory, written now and then.

    Rows of trials that are not part of the sweep any more stay, as long as their folders do.
    """

    def __init__(self, storage: Storage, layout: SweepLayout):
        self._storage = storage
        self._layout = layout
        folders = set(storage.list_names(layout.trials))
        self.rows: dict[str, dict[str, Any]] = {
            row["trial_id"]: row for row in read_rows(storage, layout) if row.get("trial_id") in folders
        }
        self._next = -math.inf
        self._written = False

    def put(self, row: dict[str, Any]) -> None:
        """Sets one row and writes the table if the last write was a while ago."""
        self.rows[row["trial_id"]] = row
        if time.monotonic() > self._next:
            self.write()

    def write(self) -> None:
        """Writes the table whole, in one step.

        Raises:
            OutputError: it cannot be written, and never could be. Later on that must not end the sweep: a full disk fails trials
                one by one, and the table is made from their files whenever the command is given again.
        """
        started = time.monotonic()
        buffer = io.BytesIO()
        pq.write_table(to_arrow(list(self.rows.values())), buffer, compression="zstd")
        try:
            self._storage.replace_bytes(self._layout.trials_table, buffer.getvalue(), new_folder=not self._written)
            self._written = True
        except OutputError as error:
            if not self._written:
                raise
            _log.warning("trials.parquet is not up to date: %s", error)
        ended = time.monotonic()
        self._next = ended + max(WRITE_EVERY_SECONDS, (ended - started) / WRITE_SHARE)
