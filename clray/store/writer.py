"""Writes a folder of results and commits it, and the small files of a trial.

    with FolderCommit(storage, trial, "task_003", "001-9f3c2a", config_hash) as folder:
        folder.write_table("metrics.parquet", table)
        folder.write_array("representations.npy", (L, R, E, S, H), np.float32, blocks)

Leaving the block without an exception commits: readers see the whole folder or, after any failure, none of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clray import __version__
from clray.errors import OutputError
from clray.store.commit import Commit, FileEntry
from clray.store.filesystem import Storage, join_path, output_error
from clray.store.hashed_file import HashedFile
from clray.store.layout import COMMIT, SCHEMAS, TRANSIENT, TrialLayout
from clray.store.staging import LocalStaging, ObjectStaging, vanished

ARRAY_KINDS = "biufc"
"""NumPy kinds that a .npy file keeps without pickling and reads back as what they were."""


class FolderCommit:
    """One folder on its way to being committed; a context manager, used once. Several threads may write files of it at once.

    Attributes:
        commit: what was committed; None before that.
    """

    def __init__(
        self,
        storage: Storage,
        trial: TrialLayout,
        folder: str,
        attempt: str,
        config_hash: str,
        transient: Collection[str] = TRANSIENT,
        width: int | None = None,
    ) -> None:
        """Nothing is written yet.

        Args:
            storage: where the sweep lies.
            trial: the trial's paths.
            folder: ``initial``, ``task_003``, ``joint``.
            attempt: text that no other process uses, e.g. ``001-9f3c2a``.
            config_hash: of the experiment; readers can tell results of another one.
            transient: files that may be removed later on purpose; any other that is gone is damage.
            width: see ``Commit``.

        Raises:
            OutputError: a name that cannot be a file name.
        """
        join_path(trial.folder(folder), attempt)
        if "/" in attempt or "/" in folder:
            raise OutputError(f"folder {folder!r} and attempt {attempt!r} must be single names")
        self._storage = storage
        self._path = trial.folder(folder)
        self._folder = folder
        self._attempt = attempt
        self._config = config_hash
        self._transient = transient
        self._width = width
        self._files: dict[str, FileEntry] = {}
        # Half a file must not be published even if the caller carries on after an error.
        self._unfinished: set[str] = set()
        self._staging = (LocalStaging if storage.is_local else ObjectStaging)(storage, trial, folder, attempt)
        self.commit: Commit | None = None

    def __enter__(self) -> FolderCommit:
        self._staging.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._staging.drop()
            return
        try:
            self._commit()
        except BaseException:
            self._staging.drop()
            raise

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file.

        Args:
            name: e.g. ``metrics.parquet``; the names of the layout have fixed columns.
            table: its rows.

        Raises:
            ValueError: the columns are not those of the layout.
            OutputError: the disk failed.
        """
        if name in SCHEMAS and not table.schema.equals(SCHEMAS[name]):
            raise ValueError(f"{name} has the columns\n{SCHEMAS[name]}\nnot\n{table.schema}")
        with self._writing(name) as file:
            pq.write_table(table, file, compression="zstd")
        self._done(name, file, rows=table.num_rows)

    def write_array(self, name: str, shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray]) -> None:
        """Write a .npy file in slices; the whole array is never in memory.

        Args:
            name: e.g. ``representations.npy``.
            shape: of the whole array.
            dtype: bool, integer, float or complex; the blocks must have it.
            blocks: the array's elements in C order, cut anywhere, e.g. ``[L0, ...]`` slices of its first axis.

        Raises:
            ValueError: the blocks have too few or too many elements, or another dtype.
            OutputError: the disk failed.
        """
        dtype = _file_dtype(dtype)
        expected = math.prod(shape)
        n_elements = 0
        with self._writing(name) as file:
            file.write(npy_header(shape, dtype))
            for block in blocks:
                if block.dtype != dtype:
                    raise ValueError(f"{name} has dtype {dtype}, but a block has {block.dtype}")
                n_elements += block.size
                if n_elements > expected:
                    break
                if block.size:
                    file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
            if n_elements != expected:
                more = " or more" if n_elements > expected else ""
                raise ValueError(f"{name} has shape {shape}, {expected} elements, but the blocks have {n_elements}{more}")
        self._done(name, file, shape=tuple(int(n) for n in shape), dtype=dtype.name)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write any other file."""
        self.write_parts(name, [data])

    def write_parts(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write any other file from pieces, e.g. ``state.msgpack``."""
        with self._writing(name) as file:
            for part in parts:
                file.write(part)
        self._done(name, file)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[HashedFile]:
        if "/" in join_path(name) or name == COMMIT or name in self._files:
            raise ValueError(f"{name!r} cannot be written here, or was already")
        path = self._staging.path(name)
        self._unfinished.add(name)
        try:
            file = HashedFile(path, self._staging.direct)
        except FileNotFoundError as error:
            raise vanished(self._storage, self._path) from error
        except OSError as error:
            raise output_error(error, "write", path) from error
        try:
            yield file
            file.finish()
        finally:
            file.close()

    def _done(self, name: str, file: HashedFile, **facts: Any) -> None:
        self._staging.file_done(name, file.n_bytes)
        key = self._staging.key(name)
        self._files[name] = FileEntry(key, file.n_bytes, file.sha256.hexdigest(), transient=name in self._transient, **facts)
        self._unfinished.remove(name)

    def _commit(self) -> None:
        if self._unfinished:
            raise RuntimeError(f"{self._path} is not committed: {', '.join(sorted(self._unfinished))} was not written whole")
        commit = Commit(
            path=self._path,
            folder=self._folder,
            attempt=self._attempt,
            nonce=secrets.token_hex(16),
            config=self._config,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            files=dict(sorted(self._files.items())),
            clray=__version__,
            width=self._width,
        )
        self._staging.publish(commit.to_bytes())
        self.commit = commit


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The first bytes of a .npy file, before the elements in C order."""
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(int(n) for n in shape)}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    """A small array as the content of a .npy file."""
    dtype = _file_dtype(array.dtype)
    return npy_header(array.shape, dtype) + np.ascontiguousarray(array, dtype).tobytes()


def write_once(storage: Storage, path: str, data: bytes) -> None:
    """Write a file that is the same in every attempt; one that is there already must be equal.

    Raises:
        OutputError: the file that is there differs.
    """
    try:
        storage.create_bytes(path, data)
        return
    except FileExistsError:
        present = storage.read_bytes(path)
    if present != data:
        raise OutputError(
            f"{storage.shown(path)} is there but differs from what this experiment needs: it was written by another version or for "
            "another experiment, or is damaged. Move the trial's folder away, or choose another --output"
        )


def write_json_create(storage: Storage, path: str, value: Mapping[str, Any]) -> None:
    """Create a JSON file that must not exist yet; a ``nonce`` is added, to know it from somebody else's.

    Raises:
        FileExistsError: somebody else's is there.
        OutputError: the output failed.
    """
    data = json.dumps({**value, "nonce": secrets.token_hex(16)}, indent=1).encode() + b"\n"
    try:
        storage.create_bytes(path, data)
    except (FileExistsError, OutputError) as error:
        # A retried request may have met our own file, and one that failed may have arrived all the same.
        present: bytes | None = None
        with contextlib.suppress(FileNotFoundError, OutputError):
            present = storage.read_bytes(path)
        if present is None:
            raise
        if present != data:
            raise FileExistsError(f"{storage.shown(path)} was written by somebody else") from error


def _file_dtype(dtype: Any) -> np.dtype[Any]:
    dtype = np.dtype(dtype)
    if dtype.kind not in ARRAY_KINDS:
        raise ValueError(f"dtype {dtype} cannot be kept in a .npy file: convert it, e.g. to float32")
    return dtype.newbyteorder("<")
