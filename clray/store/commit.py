"""COMMIT.json: written last, it makes a folder count and says what must be in it.

    {"format": 1, "attempt": "001-9f3c2a", "nonce": "...", "config": "...", "clray": "0.1.0", "folder": "task_003",
     "time": "2026-01-31T12:00:00+00:00",
     "files": {"representations.npy": {"shape": [10, 8, 5, 20, 256], "dtype": "float32", "bytes": 8192128, "sha256": "..."}, ...},
     "checksum": "..."}

A file's entry has ``shape`` and ``dtype`` (arrays), ``rows`` (tables), ``key`` where the file does not lie under its own name
(object stores), and ``transient`` where it may be gone, since it is kept for the last tasks only. ``checksum`` is the sha256 of
the document without it (``json.dumps`` with sorted keys and no spaces), so a flipped bit in here is noticed as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clray.errors import OutputError
from clray.store.filesystem import join_path
from clray.store.layout import COMMIT
from clray.store.sealed import checksum_of

FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedError(OutputError):
    """A committed folder is not what its COMMIT.json says; ``upkeep.set_aside`` moves it out of the way."""


@dataclass(frozen=True)
class FileEntry:
    """What is known of one file of a committed folder.

    Attributes:
        key: path relative to the folder; the name itself on a local disk.
        n_bytes: size.
        sha256: of the whole file, hexadecimal.
        shape: of an array, else None.
        dtype: NumPy's name of an array's dtype, else None.
        rows: of a table, else None.
        transient: the file may have been removed on purpose.
    """

    key: str
    n_bytes: int
    sha256: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    rows: int | None = None
    transient: bool = False

    def to_json(self, name: str) -> dict[str, Any]:
        """The entry as it stands in COMMIT.json under ``name``."""
        entry: dict[str, Any] = {} if self.key == name else {"key": self.key}
        if self.shape is not None:
            entry |= {"shape": list(self.shape), "dtype": self.dtype}
        if self.rows is not None:
            entry["rows"] = self.rows
        entry |= {"bytes": self.n_bytes, "sha256": self.sha256}
        return entry | {"transient": True} if self.transient else entry


@dataclass(frozen=True)
class Commit:
    """One committed folder.

    Attributes:
        path: the folder, relative to the storage's root.
        folder: its name, e.g. ``task_003``.
        attempt: which attempt wrote it.
        nonce: unique to this commit.
        config: hash of the experiment that wrote it.
        time: ISO 8601, UTC.
        files: name -> entry.
        clray: the version that wrote it; empty where that is not known.
        width: lanes of the program that computed it. Programs of different widths may round differently.
    """

    path: str
    folder: str
    attempt: str
    nonce: str
    config: str
    time: str
    files: Mapping[str, FileEntry]
    clray: str = ""
    width: int | None = None

    def file(self, name: str) -> str:
        """The path of a file, relative to the storage's root. Raises KeyError for names that are not in this commit."""
        return join_path(self.path, self.files[name].key)

    def to_bytes(self) -> bytes:
        """The content of COMMIT.json."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "attempt": self.attempt,
            "nonce": self.nonce,
            "config": self.config,
            "clray": self.clray,
            "folder": self.folder,
            "time": self.time,
            "files": {name: entry.to_json(name) for name, entry in self.files.items()},
        } | ({} if self.width is None else {"width": self.width})
        document["checksum"] = checksum_of(document)
        return json.dumps(document, indent=1).encode() + b"\n"


def parse_commit(data: bytes, path: str, shown: str) -> Commit:
    """Read and check the content of a COMMIT.json.

    Args:
        data: the file.
        path: its folder, relative to the storage's root.
        shown: the folder for messages.

    Raises:
        DamagedError: it is not a COMMIT.json of this folder, or not the one that was written.
        OutputError: a later version of clray wrote it.
    """
    try:
        document = json.loads(data)
        # The checksum comes first in every format, so a flipped bit never reads as a later version.
        if document.pop("checksum") != checksum_of(document):
            raise ValueError("its checksum is wrong")
        if isinstance(document["format"], int) and document["format"] > FORMAT:
            raise OutputError(f"{shown} was written by a later version of clray (format {document['format']}): update clray")
        return _checked(document, path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DamagedError(f"{shown}/{COMMIT} is damaged ({reason}): running the same command again writes this folder anew") from error


def _checked(document: dict[str, Any], path: str) -> Commit:
    folder = document["folder"]
    if folder != path.rpartition("/")[2]:
        raise ValueError(f"it belongs to the folder {folder!r}")
    texts = {key: document[key] for key in ("attempt", "nonce", "config", "time")} | {"clray": document.get("clray", "")}
    if not all(isinstance(text, str) for text in texts.values()) or document["format"] != FORMAT:
        raise ValueError("a value has another type")
    width = document.get("width")
    if width is not None and (type(width) is not int or width < 1):
        raise ValueError("width is no number of lanes")
    files = {name: _checked_entry(name, entry) for name, entry in document["files"].items()}
    return Commit(path=path, folder=folder, files=files, width=width, **texts)


def _checked_entry(name: str, entry: dict[str, Any]) -> FileEntry:
    try:
        if "/" in name or name == COMMIT:
            raise ValueError(f"{name!r} is not a file of a folder")
        join_path(name)
        key = join_path(entry.get("key", name))
    except OutputError as error:
        raise ValueError(str(error)) from error
    shape = entry.get("shape")
    numbers = [entry["bytes"], *(shape or []), *([entry["rows"]] if "rows" in entry else [])]
    if not all(type(number) is int and number >= 0 for number in numbers) or not _SHA256.fullmatch(entry["sha256"]):
        raise ValueError(f"the entry of {name!r} is not valid")
    if (shape is None) != ("dtype" not in entry) or not isinstance(entry.get("dtype", ""), str):
        raise ValueError(f"the entry of {name!r} is not valid")
    return FileEntry(
        key=key,
        n_bytes=entry["bytes"],
        sha256=entry["sha256"],
        shape=None if shape is None else tuple(shape),
        dtype=entry.get("dtype"),
        rows=entry.get("rows"),
        transient=entry.get("transient") is True,
    )
