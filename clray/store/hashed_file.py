"""A new file that counts and hashes what goes into it.

Large files bypass the page cache where the file system can do that (``O_DIRECT``): the data are not read again soon, so keeping
them costs a copy and memory, and on a machine that trains on all cores it costs training time. While one buffer is on its way
to the disk the next one is filled and hashed. Measured in benchmarks/NOTES.md.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from clray.store.filesystem import output_error

BUFFER_BYTES = 2048 * 2**10
DIRECT_BYTES = 64 * 2**10
"""Less than this goes through the page cache."""

ALIGNMENT = 4096
"""Direct writes start and end at multiples of a block of the disk; no disk has larger ones."""

_of_thread = threading.local()
_disk = ThreadPoolExecutor(8, "clray-disk")  # threads start when there is something to write


class HashedFile:
    """A file that must not exist yet, written front to back by one thread; one such file is open in a thread at a time.

    Attributes:
        sha256: of what was written, right after ``finish``.
        n_bytes: written so far.
        closed: whether it is closed.
    """

    def __init__(self, path: Path, direct: bool = True) -> None:
        """Create the file.

        Args:
            direct: whether large writes may bypass the page cache; not for a file that is read again at once.

        Raises:
            OSError: it exists, or cannot be made.
        """
        self._path = path
        self._direct = direct
        self._fd = _create(path)
        self._buffer, self._spare = _buffers()
        self._filled = 0
        self._under_way: Future[None] | None = None
        self.sha256 = hashlib.sha256()
        self.n_bytes = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        """Append; returns the number of bytes.

        Raises:
            OutputError: the disk failed.
        """
        source = memoryview(data).cast("B")
        n_bytes, start = len(source), 0
        while start < n_bytes:
            part = source[start : start + BUFFER_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            start += len(part)
            if self._filled == BUFFER_BYTES:
                self._empty()
        self.n_bytes += n_bytes
        return n_bytes

    def flush(self) -> None:
        """Nothing: what is buffered is written with what follows."""

    def tell(self) -> int:
        """Bytes written so far."""
        return self.n_bytes

    def finish(self) -> None:
        """Write what is left and close. The file is durable once it has been synced.

        Raises:
            OutputError: the disk failed.
        """
        filled, self._filled = memoryview(self._buffer)[: self._filled], 0
        self.sha256.update(filled)
        self._wait()
        with self._explained():  # nothing is left to do meanwhile, so no other thread is asked
            self._send(filled)
        self.close()

    def close(self) -> None:
        """Close without a guarantee; ``finish`` comes first where all went well."""
        if not self.closed:
            self.closed = True
            if self._under_way is not None:
                wait([self._under_way])  # the number of the file must not be used again before that
            with contextlib.suppress(OSError):
                os.close(self._fd)

    def _empty(self) -> None:
        filled = memoryview(self._buffer)[: self._filled]
        self.sha256.update(filled)
        self._wait()
        self._under_way = _disk.submit(self._send, filled)
        self._buffer, self._spare, self._filled = self._spare, self._buffer, 0

    def _wait(self) -> None:
        if self._under_way is not None:
            with self._explained():
                try:
                    self._under_way.result()
                finally:
                    if self._under_way.done():  # not so where somebody interrupted the waiting
                        self._under_way = None

    def _send(self, filled: memoryview) -> None:
        aligned = len(filled) // ALIGNMENT * ALIGNMENT if self._direct and len(filled) >= DIRECT_BYTES else 0
        if aligned and _set_direct(self._fd, True):
            start = os.lseek(self._fd, 0, os.SEEK_CUR)
            try:
                self._write_all(filled[:aligned])
            except OSError as error:
                if error.errno != errno.EINVAL:  # this disk has larger blocks after all, or took a part of one
                    raise
            finally:
                _set_direct(self._fd, False)
            filled = filled[os.lseek(self._fd, 0, os.SEEK_CUR) - start :]
        self._write_all(filled)

    def _write_all(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise output_error(error, "write", self._path) from error


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)


def _buffers() -> tuple[mmap.mmap, mmap.mmap]:
    """Page-aligned memory, kept for the next file of this thread: touching fresh memory costs as much as filling it."""
    if not hasattr(_of_thread, "buffers"):
        _of_thread.buffers = mmap.mmap(-1, BUFFER_BYTES), mmap.mmap(-1, BUFFER_BYTES)
    return _of_thread.buffers


def _set_direct(fd: int, on: bool) -> bool:
    """Switches direct writing; whether it is what was asked for."""
    try:
        import fcntl

        flag = os.O_DIRECT
        known = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, known | flag if on else known & ~flag)
    except (ImportError, AttributeError, OSError):
        return False  # not on this system, or not on this file system
    return True
