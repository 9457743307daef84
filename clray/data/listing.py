"""Fingerprints of files that the user owns: hashes over their listing, so that changed files are different data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

EDGE = 64 * 1024  # bytes


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


def edges_hash(paths: list[Path]) -> str:
    """SHA-256 (hex) over name, size, first and last 64 KiB of each file: cheap for files of any size.

    A change in the middle of a file that keeps its size goes unnoticed.
    """
    sha = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        sha.update(f"{path.name}\0{size}\n".encode())
        with path.open("rb") as file:
            sha.update(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            sha.update(file.read(EDGE))
    return sha.hexdigest()
