"""A file system of a few hundred kilobytes that really runs full; mounted where the tests may mount, else they are skipped."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: Path):
        self.path = path

    def resize(self, kilobytes: int) -> None:
        """Gives the disk another size; what is on it stays."""
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(self.path)], check=True)

    def fill(self, leave_kilobytes: int = 0) -> Path:
        """Fills it with one file except for so much, and returns the file."""
        ballast = self.path / "ballast"
        n_bytes = shutil.disk_usage(self.path).free - 1024 * leave_kilobytes
        with ballast.open("wb") as file:
            file.write(bytes(max(0, n_bytes)))
        return ballast


@contextmanager
def mounted(path: Path, kilobytes: int) -> Iterator[SmallDisk]:
    """Mounts a disk of this size in an empty folder."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
