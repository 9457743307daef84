"""Fingerprints of files that the user owns: hashes over their listing, so that changed files are different data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


def walk_files(folder: Path, relative: str = "") -> Iterator[tuple[str, int]]:
    """(path relative to ``folder``, bytes) of every file below it. Hidden files and folders are left out; links are followed."""
    with os.scandir(folder / relative) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir():
                yield from walk_files(folder, name)
            else:
                yield name, entry.stat().st_size


def listing_hash(files: list[tuple[str, int]]) -> str:
    """SHA-256 (hex) over (relative path, bytes) of files, in sorted order."""
    sha = hashlib.sha256()
    for name, size in sorted(files):
        sha.update(f"{name}\0{size}\n".encode())
    return sha.hexdigest()


def content_hash(paths: list[Path], memory: Path) -> str:
    """SHA-256 (hex) over name and content of each file.

    Args:
        memory: a folder in which the hash of each file is remembered, for as long as its size and times stay: files of gigabytes are
            read once a machine.
    """
    sha = hashlib.sha256()
    for path in sorted(paths):
        sha.update(f"{path.name}\0{_remembered(path, memory)}\n".encode())
    return sha.hexdigest()


def _remembered(path: Path, memory: Path) -> str:
    path = path.resolve()
    facts = path.stat()
    now = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    note = memory / f"{hashlib.sha256(str(path).encode()).hexdigest()[:20]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(note.read_text())
        if known["file"] == now and isinstance(known["sha256"], str):
            return known["sha256"]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # without a cache it is read again
        memory.mkdir(parents=True, exist_ok=True)
        part = note.with_name(f".{note.name}.{os.getpid()}")
        part.write_text(json.dumps({"path": str(path), "file": now, "sha256": found}))
        part.replace(note)
    return found
