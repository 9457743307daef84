"""Reads committed folders. What COMMIT.json does not name does not exist, whatever lies in the folder.

Files that are read whole are checked against their checksum on the way. Arrays that are mapped into memory are checked by size,
shape and dtype; ``verify`` reads everything.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Collection
from tokenize import TokenError
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from clray.store.commit import Commit, DamagedError, FileEntry, parse_commit
from clray.store.filesystem import Storage
from clray.store.layout import COMMIT, SCHEMAS, TrialLayout, folder_order, is_folder_name

NPY_ERRORS = (ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, TokenError, BadZipFile)
"""What NumPy raises on files that are no .npy file."""

OnBytes: TypeAlias = Callable[[int], None]


def read_plain_yaml(storage: Storage, path: str) -> dict[str, Any]:
    """A YAML 1.2 table as plain data; empty where it is missing or damaged."""
    try:
        return plain_yaml(storage.read_bytes(path).decode())
    except (FileNotFoundError, UnicodeDecodeError):
        return {}


def plain_yaml(text: str) -> dict[str, Any]:
    """The same of a text."""
    try:
        data = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except (YAMLError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def read_commit(storage: Storage, trial: TrialLayout, folder: str) -> Commit | None:
    """The commit of a folder; None where it is not committed.

    Raises:
        DamagedError: COMMIT.json is there but not what was written.
        OutputError: the storage cannot be read, or a later version of clray wrote the folder.
    """
    try:
        data = storage.read_bytes(trial.commit(folder))
    except FileNotFoundError:
        return None
    path = trial.folder(folder)
    return parse_commit(data, path, storage.shown(path))


def committed_folders(storage: Storage, trial: TrialLayout) -> list[str]:
    """Names of the committed folders: initial, tasks by number, joint. Their content is not looked at."""
    if storage.is_local:
        names = [name for name in storage.list_names(trial.base) if is_folder_name(name) and storage.exists(trial.commit(name))]
    else:
        # One listing instead of a request for each folder.
        parts = [path.split("/") for path in storage.list_files(trial.base)]
        names = [part[0] for part in parts if len(part) == 2 and part[1] == COMMIT and is_folder_name(part[0])]
    return sorted(names, key=folder_order)


def verify(
    storage: Storage, trial: TrialLayout, commit: Commit, *, checksums: bool | Collection[str] = True, on_bytes: OnBytes = lambda n: None
) -> list[str]:
    """What is wrong with a committed folder.

    Args:
        checksums: also read every byte of all files, or of those with these names; otherwise only look for missing files and
            wrong sizes.
        on_bytes: called with the size of each block that was read.

    Returns:
        One sentence for each problem, empty where all is well. Old state that was pruned is no problem.
    """
    present = storage.list_files(trial.folder(commit.folder))
    problems = []
    for name, entry in commit.files.items():
        shown = storage.shown(commit.file(name))
        n_bytes = present.get(entry.key)
        if n_bytes is not None and n_bytes != entry.n_bytes:
            problems.append(f"{shown} has {n_bytes} bytes instead of {entry.n_bytes}")
            continue
        read = n_bytes is not None and (checksums if isinstance(checksums, bool) else name in checksums)
        found = _sha256(storage, commit.file(name), on_bytes) if read else entry.sha256
        if n_bytes is None or found is None:  # the second: removed since it was listed, as old state is
            if not entry.transient:
                problems.append(f"{shown} is missing")
        elif found != entry.sha256:
            problems.append(f"{shown} has another sha256 than when it was written")
    return problems


def read_file(storage: Storage, commit: Commit, name: str) -> bytes:
    """A file of a committed folder, checked against its checksum.

    Raises:
        KeyError: the commit has no such file.
        DamagedError: the file is missing (which includes pruned state) or not what was written.
    """
    entry = commit.files[name]
    path = commit.file(name)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise _damaged(storage, path, "is missing") from error
    if len(data) != entry.n_bytes:
        raise _damaged(storage, path, f"has {len(data)} bytes instead of {entry.n_bytes}")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _damaged(storage, path, "has another sha256 than when it was written")
    return data


def read_table(storage: Storage, commit: Commit, name: str) -> pa.Table:
    """A table of a committed folder; raises as ``read_file`` does."""
    data = read_file(storage, commit, name)
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)  # Arrow's threads can abort the process at its end
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(storage, commit.file(name), f"is not a Parquet file ({error})") from error
    if name in SCHEMAS and not table.schema.equals(SCHEMAS[name]):
        raise _damaged(storage, commit.file(name), "has other columns than clray writes")
    return table


def open_array(storage: Storage, commit: Commit, name: str) -> np.ndarray:
    """An array of a committed folder, read-only; mapped into memory on a local disk, else read whole.

    Raises:
        KeyError: the commit has no such file.
        DamagedError: the file is missing or not what was written.
    """
    entry = commit.files[name]
    path = commit.file(name)
    if not storage.is_local:
        array = _array_in(storage, path, read_file(storage, commit, name))
    else:
        try:
            n_bytes = storage.size(path)
        except FileNotFoundError as error:
            raise _damaged(storage, path, "is missing") from error
        if n_bytes != entry.n_bytes:
            # Pages beyond the end of a mapped file would kill the process.
            raise _damaged(storage, path, f"has {n_bytes} bytes instead of {entry.n_bytes}")
        try:
            array = np.load(storage.local_path(path), mmap_mode="r", allow_pickle=False)
        except NPY_ERRORS as error:
            raise _damaged(storage, path, f"is not a .npy file ({error})") from error
    _check_array(storage, path, array, entry)
    return array


def _array_in(storage: Storage, path: str, data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        if fortran_order or dtype.hasobject:
            raise ValueError("not an array that clray writes")
        return np.frombuffer(data, dtype, count=math.prod(shape), offset=file.tell()).reshape(shape)
    except NPY_ERRORS as error:
        raise _damaged(storage, path, f"is not a .npy file ({error})") from error


def _check_array(storage: Storage, path: str, array: np.ndarray, entry: FileEntry) -> None:
    if not isinstance(array, np.ndarray):
        raise _damaged(storage, path, "is not a .npy file")
    if array.shape != entry.shape or array.dtype.name != entry.dtype:
        raise _damaged(storage, path, f"has {array.dtype.name} {array.shape} instead of {entry.dtype} {entry.shape}")


def _sha256(storage: Storage, path: str, on_bytes: OnBytes) -> str | None:
    digest = hashlib.sha256()
    try:
        for block in storage.read_blocks(path):
            digest.update(block)
            on_bytes(len(block))
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def _damaged(storage: Storage, path: str, what: str) -> DamagedError:
    return DamagedError(f"{storage.shown(path)} {what}: running the same command again writes what is missing anew")
