"""What was computed from results, kept as Parquet under ``report/metrics/`` and used again while its sources are unchanged.

A table carries, as metadata of its schema, the key of what it was computed from: the commits and the version of the
computation. Another key means: compute it again.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from clray.errors import UserError
from clray.store.filesystem import Storage, join_path

FOLDER = "report/metrics"
KEY = b"clray.key"


class MeasureStore:
    """The computed tables of one sweep.

    Args:
        storage: the sweep's folder.
        writable: False keeps nothing (results in a folder that others own).
    """

    def __init__(self, storage: Storage, writable: bool = True):
        self._storage = storage
        self._writable = writable

    def load(self, path: str, key: str | None) -> pa.Table | None:
        """The table under ``path``; None where there is none, it is damaged, or it has another key (None: any key)."""
        try:
            table = pq.read_table(io.BytesIO(self._storage.read_bytes(join_path(FOLDER, path))))
        except (FileNotFoundError, pa.ArrowException, OSError):
            return None
        found = (table.schema.metadata or {}).get(KEY, b"").decode()
        return table if key is None or found == key else None

    def save(self, path: str, key: str, table: pa.Table) -> None:
        """Keeps a table. A folder that cannot be written is no reason to fail: the next report computes it again."""
        if not self._writable:
            return
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: key.encode()}), buffer, compression="zstd")
        try:
            self._storage.replace_bytes(join_path(FOLDER, path), buffer.getvalue())
        except UserError:
            self._writable = False

    def get(self, path: str, key: str, compute: Callable[[], pa.Table]) -> pa.Table:
        """The table under ``path``, computed where it is not there or has another key."""
        table = self.load(path, key)
        if table is None:
            table = compute()
            self.save(path, key, table)
        return table
