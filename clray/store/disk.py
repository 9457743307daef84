"""A folder on a disk that this machine has mounted.

Every write goes to a temporary dot-name first, is flushed to the disk, and gets its name in one step; then the folder is
flushed as well, since on Linux a new name is durable only after that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from clray.store.filesystem import BLOCK_BYTES, TEMPORARY_PREFIX, TRASH_PREFIX, Storage, join_path, output_error

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS}
_OCCUPIED = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


class LocalStorage(Storage):
    """See ``Storage``."""

    is_local = True

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))

    def check_writable(self) -> None:
        with self._explained("write to", ""):
            os.makedirs(self.root, exist_ok=True)
            os.unlink(_write_temporary(os.path.join(self.root, "probe"), b"clray"))

    def read_bytes(self, path: str) -> bytes:
        with self._explained("read", path, FileNotFoundError):
            return self.local_path(path).read_bytes()

    def read_blocks(self, path: str, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        with self._explained("read", path, FileNotFoundError), open(self.local_path(path), "rb", buffering=0) as file:
            while block := file.read(block_bytes):
                yield block

    def exists(self, path: str) -> bool:
        with self._explained("look at", path):
            try:
                os.stat(self.local_path(path))
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def size(self, path: str) -> int:
        with self._explained("look at", path, FileNotFoundError):
            return os.stat(self.local_path(path)).st_size

    def list_names(self, folder: str) -> list[str]:
        with self._explained("list", folder):
            try:
                return sorted(os.listdir(self.local_path(folder) if folder else self.root))
            except FileNotFoundError:
                return []

    def list_files(self, folder: str) -> dict[str, int]:
        top = str(self.local_path(folder)) if folder else self.root
        files: dict[str, int] = {}
        with self._explained("list", folder):
            for parent, _, names in os.walk(top, onerror=_raise_unless_gone):
                for name in names:
                    full = os.path.join(parent, name)
                    # A file may vanish between the listing and the look at it.
                    with contextlib.suppress(FileNotFoundError):
                        files[os.path.relpath(full, top).replace(os.sep, "/")] = os.lstat(full).st_size
        return files

    def replace_bytes(self, path: str, data: bytes, new_folder: bool = True) -> None:
        with self._explained("write", path):
            final = self._with_parents(path) if new_folder else str(self.local_path(path))
            temporary = _write_temporary(final, data)
            with _removed_on_error(temporary):
                os.replace(temporary, final)
            sync_folder(os.path.dirname(final))

    def create_bytes(self, path: str, data: bytes) -> None:
        with self._explained("write", path, FileExistsError):
            final = self._with_parents(path)
            temporary = _write_temporary(final, data)
            with _removed_on_error(temporary):
                if not _link(temporary, final):
                    _claim_and_replace(temporary, final)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            sync_folder(os.path.dirname(final))

    def append_bytes(self, path: str, data: bytes, new_folder: bool = True) -> None:
        with self._explained("write", path), open(self._with_parents(path) if new_folder else self.local_path(path), "ab") as file:
            file.write(data)

    def put_file(self, local: str | os.PathLike[str], path: str) -> None:
        with self._explained("write", path):
            final = self._with_parents(path)
            temporary = _temporary_name(final)
            with _removed_on_error(temporary):
                shutil.copyfile(local, temporary)
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, final)
            sync_folder(os.path.dirname(final))

    def local_path(self, path: str) -> Path:
        return Path(self.root, join_path(path))

    def remove_file(self, path: str) -> None:
        with self._explained("remove", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.local_path(path))

    def remove_tree(self, path: str) -> None:
        target = self.local_path(path)
        # First another name, in one step: who still works in the folder can no longer publish half of it.
        trash = target.with_name(TRASH_PREFIX + secrets.token_hex(8))
        with self._explained("remove", path):
            try:
                os.rename(target, trash)
            except (FileNotFoundError, NotADirectoryError):
                return
            if trash.is_dir() and not trash.is_symlink():
                # What cannot be removed now (NFS keeps files that somebody has open) goes with the next cleaning.
                shutil.rmtree(trash, ignore_errors=True)
            else:
                os.unlink(trash)

    def move_folder(self, path: str, new_path: str, head: str) -> None:
        del head  # a rename is one step
        with self._explained("move", path, FileNotFoundError, FileExistsError):
            new = self._with_parents(new_path)
            if os.path.lexists(new):
                raise FileExistsError(errno.EEXIST, "there is something", new)
            rename_folder(str(self.local_path(path)), new)

    def _with_parents(self, path: str) -> str:
        final = self.local_path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        return str(final)

    @contextlib.contextmanager
    def _explained(self, action: str, path: str, *passed: type[OSError]) -> Iterator[None]:
        try:
            yield
        except passed:
            raise
        except OSError as error:
            raise output_error(error, action, self.shown(path)) from error


def rename_folder(old: str, new: str) -> None:
    """Rename a folder onto a name that must be free, and make that durable.

    ``rename`` replaces a folder only if that is empty. All folders that count hold at least one file, so none of them can
    be replaced, and the flags of ``renameat2``, which network file systems often lack, are not needed.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno in _OCCUPIED and os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, "the name is taken", new) from error
        raise
    sync_folder(os.path.dirname(new))


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable; file systems that cannot do that are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _temporary_name(final: str) -> str:
    return os.path.join(os.path.dirname(final), TEMPORARY_PREFIX + secrets.token_hex(8))


def _write_temporary(final: str, data: bytes) -> str:
    temporary = _temporary_name(final)
    with _removed_on_error(temporary), open(temporary, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


@contextlib.contextmanager
def _removed_on_error(temporary: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _link(temporary: str, final: str) -> bool:
    """Give a finished file its final name unless that is taken. False where the file system has no hard links."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        # Over NFS the reply to a link that worked can be lost, and its repetition then fails.
        if not os.path.samestat(os.stat(temporary), os.stat(final)):
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return False
    return True


def _claim_and_replace(temporary: str, final: str) -> None:
    """For file systems without hard links: claim the name with an empty file, then replace it in one step.

    A process that dies in between leaves an empty file, which all readers refuse.
    """
    os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    os.replace(temporary, final)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
