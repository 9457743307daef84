"""One small interface over local disks and object stores; all that the store asks of either.

Paths are relative to the root of a ``Storage``, with ``/`` between names. Names are limited to letters, digits, ``.``,
``_`` and ``-``, so that no name from a config, a commit file or a parameter tree can lead out of the root or be taken for a
pattern.

Two writes are enough for everything else: ``replace_bytes`` (readers see the old content or the new) and ``create_bytes``
(exactly one of several writers succeeds, and nobody sees half a file).
"""

from __future__ import annotations

import abc
import errno
import functools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from clray.errors import OutputError, did_you_mean

BLOCK_BYTES = 8 * 2**20
TEMPORARY_PREFIX = ".tmp-"
TRASH_PREFIX = ".trash-"

_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,254}")
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Keys of S3 may have a slash in them, and buckets have no port.
_CREDENTIALS = (
    (re.compile(r"""(?i)\b((?:s3a?|s3n|gs|gcs|az|abfss?|oss)://)[^\s'"@/:]+:[^\s'"@]*@"""), r"\1"),
    (re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*://)[^\s'"/@:]*:[^\s'"/@]*@"""), r"\1"),
    (re.compile(r"""([A-Za-z][A-Za-z0-9+.-]*://)[^\s'"/@:]+@"""), r"\1"),
    (re.compile(r"""(?i)([?&][\w.-]*(?:token|secret|passw|key|signature|credential|sig|auth)[\w.-]*=)[^&\s'"]+"""), r"\1***"),
)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def join_path(*parts: str) -> str:
    """Join names to a relative path that stays below the root.

    Args:
        parts: names, or relative paths with ``/`` between names.

    Raises:
        OutputError: a name is empty, ``.``, ``..``, too long, or has other characters than letters, digits, ``._-``.
    """
    names = [name for part in parts for name in part.split("/")]
    for name in names:
        if not is_name(name):
            raise OutputError(
                f"{'/'.join(parts)!r} cannot be a path in the output: {name!r} is not a valid name. Names have 1 to 255 letters, "
                "digits, '.', '_' or '-', do not begin with '-', and are not '.' or '..'"
            )
    return "/".join(names)


def is_name(text: object) -> bool:
    """Whether a text can be one name of a path; see ``join_path``. Names that were read from files are asked."""
    return isinstance(text, str) and _is_name(text)


@functools.lru_cache(maxsize=4096)
def _is_name(text: str) -> bool:
    return text not in (".", "..") and bool(_NAME.fullmatch(text))


def output_error(error: BaseException, action: str, where: str | os.PathLike[str]) -> OutputError:
    """The message for a failed operation: what failed, why, how to go on.

    Args:
        error: what the operating system or the client library raised.
        action: a verb, e.g. ``write``.
        where: the path or URL, free of credentials.
    """
    number = getattr(error, "errno", None)
    if number in _NO_SPACE:
        return OutputError(
            f"cannot {action} {where}: no space left ({_free_bytes(os.fspath(where))} bytes free, or the quota is used up). Free "
            "some space and run the same command again, which resumes from the last commit, or choose another --output"
        )
    if isinstance(error, PermissionError) or number in _NOT_ALLOWED:
        reason = hide_credentials(str(error))
        return OutputError(
            f"cannot {action} {where}: not allowed ({reason}). Check permissions and credentials, or choose another --output"
        )
    there = os.fspath(where)
    if number == errno.ENOTDIR and "://" not in there and os.path.isfile(file := existing_part(there)):
        of_sweep = action == "read" and os.path.dirname(there) == file
        instead = "give the folder of one sweep, such as results/quickstart" if of_sweep else "move it away, or choose another --output"
        return OutputError(f"cannot {action} {where}: {file} is a file, not a folder; {instead}")
    reason = hide_credentials(str(error)) or type(error).__name__
    return OutputError(f"cannot {action} {where}: {reason}. Once that works again, the same command resumes from the last commit")


def existing_part(path: str) -> str:
    """The longest beginning of a local path that is there."""
    path = os.path.abspath(path)
    while path != os.path.dirname(path) and not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _free_bytes(path: str) -> int | str:
    if "://" in path:
        return "an unknown number of"
    try:
        return shutil.disk_usage(existing_part(path)).free
    except OSError:
        return "an unknown number of"


class Storage(abc.ABC):
    """A root folder on a disk or in a bucket. Make one with ``Storage.of``; it can be pickled.

    Attributes:
        is_local: whether files have a path that other programs can open.
        root: absolute path or URL.
    """

    is_local: bool
    root: str

    @staticmethod
    def of(url_or_path: str | os.PathLike[str]) -> Storage:
        """The storage at a local path or an fsspec URL. Nothing is read or written yet (see ``check_writable``).

        Args:
            url_or_path: a path, ``file://``, ``s3://bucket/folder``, ``gs://bucket/folder``, ``memory://folder`` (this process
                only), or another protocol that fsspec knows.

        Raises:
            OutputError: an unknown protocol, a client library that is not installed, or a URL that cannot be a root.
        """
        text = os.fspath(url_or_path)
        if not text or "\0" in text:
            raise OutputError(f"{text!r} is not a path: give a folder, or a URL such as s3://bucket/folder")
        match = _PROTOCOL.match(text)
        if has_password(text):
            raise OutputError(
                f"{hide_credentials(text)}: give no password or key in the URL, where other users of the machine would see it. "
                "Use the store's own configuration: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws for s3://, "
                "GOOGLE_APPLICATION_CREDENTIALS for gs://, FSSPEC_<PROTOCOL>_<OPTION> for others"
            )
        if match and match.group(1).lower() not in ("file", "local"):
            from clray.store.objects import ObjectStorage

            return ObjectStorage(text)
        if not match and (re.match(rf"({'|'.join(known_protocols())}):", text) or "://" in text):
            raise OutputError(
                f"{hide_credentials(text)!r} is neither a path nor a URL: a URL begins with the protocol and '://', such as "
                "s3://bucket/folder"
            )
        from clray.store.disk import LocalStorage

        return LocalStorage(text[match.end() :] if match else text)

    def child(self, *names: str) -> Storage:
        """The storage of a folder below this one."""
        return Storage.of(f"{self.root}/{join_path(*names)}")

    @property
    def display(self) -> str:
        """The root for messages and logs, without user names and passwords."""
        return hide_credentials(self.root)

    def shown(self, path: str) -> str:
        """One path for messages, without credentials."""
        return f"{self.display}/{path}" if path else self.display

    def __repr__(self) -> str:
        return f"Storage({self.display!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return Storage.of, (self.root,)

    def check_reachable(self) -> None:  # noqa: B027 - a disk needs no asking
        """Ask an object store once: OutputError if it does not answer within seconds. Other calls wait longer for it."""

    @abc.abstractmethod
    def check_writable(self) -> None:
        """Write and remove a probe; OutputError says what is wrong with the output."""

    @abc.abstractmethod
    def read_bytes(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError where there is none."""

    @abc.abstractmethod
    def read_blocks(self, path: str, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        """The file in order, never more than ``block_bytes`` in memory. Raises FileNotFoundError."""

    @abc.abstractmethod
    def exists(self, path: str) -> bool:
        """Whether a file or folder is there. An unreachable store is an error, not "no"."""

    @abc.abstractmethod
    def size(self, path: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""

    @abc.abstractmethod
    def list_names(self, folder: str) -> list[str]:
        """Sorted names of files and folders in a folder; empty where it does not exist. ``""`` is the root."""

    @abc.abstractmethod
    def list_files(self, folder: str) -> dict[str, int]:
        """All files below a folder, however deep: path relative to the folder -> bytes."""

    @abc.abstractmethod
    def replace_bytes(self, path: str, data: bytes, new_folder: bool = True) -> None:
        """Write a file whole: readers see what was there before or all of ``data``, and it survives a power cut.

        Args:
            new_folder: make the file's folder where there is none. Without it a write that is late, after somebody removed the
                results, is an OutputError and brings nothing back (object stores have no folders, so there it changes nothing).
        """

    @abc.abstractmethod
    def create_bytes(self, path: str, data: bytes) -> None:
        """Write a file that must not exist yet. Of several writers one succeeds, the others get FileExistsError.

        A request that is retried after a lost reply meets its own file and gets FileExistsError too, so put something unique
        into ``data`` and read it back to know whose it is.
        """

    @abc.abstractmethod
    def append_bytes(self, path: str, data: bytes, new_folder: bool = True) -> None:
        """Add to the end of a log. On object stores the log is read and put whole: one writer, rarely."""

    @abc.abstractmethod
    def put_file(self, local: str | os.PathLike[str], path: str) -> None:
        """Copy a local file to ``path`` in pieces, replacing what is there."""

    @abc.abstractmethod
    def local_path(self, path: str) -> Path:
        """Where the file lies on this machine. Raises ValueError on object stores."""

    @abc.abstractmethod
    def remove_file(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""

    @abc.abstractmethod
    def remove_tree(self, path: str) -> None:
        """Remove a folder or file and all below; nothing happens where there is none."""

    @abc.abstractmethod
    def move_folder(self, path: str, new_path: str, head: str) -> None:
        """Give a folder another name.

        Args:
            head: the file of the folder without which it does not count; where a move takes several steps, its removal
                from the old place comes before that of the other files.

        Raises:
            FileExistsError: there is something under the new name.
            FileNotFoundError: there is nothing under the old name.
        """


def hide_credentials(text: str) -> str:
    """A text without ``user:password@`` in URLs, and without the values of parameters such as ``?token=``; the rest stays.

    For messages, logs and files. A user name alone is left out of the URL as well.
    """
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text


def has_password(url: str) -> bool:
    """Whether a URL carries a password or key in front of its host or bucket."""
    return any(pattern.search(url) for pattern, _ in _CREDENTIALS[:2])


def known_protocols() -> list[str]:
    """What can stand before ``://`` in an output."""
    return ["file", "gs", "memory", "s3"]


def unknown_protocol(protocol: str) -> OutputError:
    """The error for a URL that no file system answers to."""
    return OutputError(f"no file system is known for {protocol}://: {did_you_mean(protocol, known_protocols())}, or a plain path")
