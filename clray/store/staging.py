"""The two ways to make a folder visible all at once.

On a local disk the folder is written beside its final place and renamed. On an object store, which cannot rename, its files
are put under the attempt's own keys, where no reader looks, until a COMMIT.json that names them is created.

Every step is a method of its own: a process may die, and the disk may fill up, between any two of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from clray.errors import AlreadyCommittedError, OutputError
from clray.store.disk import rename_folder, sync_folder
from clray.store.filesystem import Storage, join_path, output_error
from clray.store.layout import COMMIT, TrialLayout


class LocalStaging:
    """``task_003.tmp-<attempt>/``, renamed to ``task_003``.

    Attributes:
        where: the staging folder for messages.
        direct: whether its files stay where they are written, so that large ones need not pass through the page cache.
    """

    direct = True

    def __init__(self, storage: Storage, trial: TrialLayout, folder: str, attempt: str) -> None:
        self._storage = storage
        self._final = trial.folder(folder)
        self._staging = trial.staging(folder, attempt)
        self._commit = trial.commit(folder)
        self._path = storage.local_path(self._staging)
        self.where = storage.shown(self._staging)

    def open(self) -> None:
        """Make the empty staging folder; no other step makes folders, so nothing comes back after a cleaning."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.mkdir()
        except FileExistsError as error:
            raise OutputError(f"{self.where} exists: an attempt of the same name writes or wrote this folder") from error
        except OSError as error:
            raise output_error(error, "make", self.where) from error

    def key(self, name: str) -> str:
        """Where the file will lie, relative to the final folder."""
        return name

    def path(self, name: str) -> Path:
        """Where to write the file now."""
        return self._path / name

    def file_done(self, name: str, n_bytes: int) -> None:
        """Nothing to do: all files are flushed together, which costs the disk one journal entry instead of one a file."""

    def publish(self, commit: bytes) -> None:
        """Make the folder visible.

        Args:
            commit: the content of COMMIT.json, unique to this commit.

        Raises:
            AlreadyCommittedError: the folder is committed by somebody else.
            OutputError: the disk failed, or something that is not committed occupies the name.
        """
        if _present(self._storage, self._commit) is not None:
            raise AlreadyCommittedError(self._storage.shown(self._final))
        try:
            self._write_commit(commit)
            self._sync_staging()
            self._rename()
        except OSError as error:
            # Over NFS the reply to a rename that worked can be lost. What is there now tells.
            present = _present(self._storage, self._commit)
            if present == commit:
                return
            if present is not None:
                raise AlreadyCommittedError(self._storage.shown(self._final)) from error
            if isinstance(error, FileNotFoundError):
                raise vanished(self._storage, self._staging) from error
            if isinstance(error, FileExistsError):
                message = f"{self._storage.shown(self._final)} exists but is not committed: move it away and run the same command again"
                raise OutputError(message) from error
            raise output_error(error, "write", self.where) from error

    def drop(self) -> None:
        """Remove what was written, as far as possible; never raises."""
        shutil.rmtree(self._path, ignore_errors=True)

    def _write_commit(self, commit: bytes) -> None:
        with open(self._path / COMMIT, "xb") as file:
            file.write(commit)

    def _sync_staging(self) -> None:
        for path in self._path.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(str(self._path))

    def _rename(self) -> None:
        rename_folder(str(self._path), str(self._storage.local_path(self._final)))


class ObjectStaging:
    """``task_003/<attempt>/<file>``, named by ``task_003/COMMIT.json``, which is created last.

    Each file is written to the local temporary folder first (``TMPDIR``), then put whole and removed there, so the
    files that are being written need local space.
    """

    direct = False

    def __init__(self, storage: Storage, trial: TrialLayout, folder: str, attempt: str) -> None:
        self._storage = storage
        self._attempt = attempt
        self._final = trial.folder(folder)
        self._keys = trial.keys(folder, attempt)
        self._commit = trial.commit(folder)
        self._local: Path | None = None
        self._put: dict[str, int] = {}
        # While it is unknown whether COMMIT.json arrived (or will: a request may be under way), its files must stay.
        self._undecided = False
        self.where = storage.shown(self._keys)

    def open(self) -> None:
        """Make the local folder, and make sure that the attempt's keys are free."""
        if self._storage.list_files(self._keys):
            raise OutputError(f"{self.where} exists: an attempt of the same name writes or wrote this folder")
        try:
            self._local = Path(tempfile.mkdtemp(prefix="clray-"))
        except OSError as error:
            raise output_error(error, "make a temporary folder in", tempfile.gettempdir()) from error

    def key(self, name: str) -> str:
        """Where the file will lie, relative to the final folder."""
        return f"{self._attempt}/{name}"

    def path(self, name: str) -> Path:
        """Where to write the file now."""
        assert self._local is not None
        return self._local / name

    def file_done(self, name: str, n_bytes: int) -> None:
        """Put the file and free the local space."""
        self._put[name] = n_bytes
        self._put_file(name)
        with contextlib.suppress(OSError):
            self.path(name).unlink()

    def publish(self, commit: bytes) -> None:
        """Make the folder visible; see ``LocalStaging.publish``."""
        if _present(self._storage, self._commit) is not None:
            raise AlreadyCommittedError(self._storage.shown(self._final))
        self._check_put()
        self._undecided = True
        failure: OutputError | None = None
        try:
            self._create_commit(commit)
        except FileExistsError:
            pass  # ours, if the reply to the first of several requests was lost
        except OutputError as error:
            failure = error
        present = _present(self._storage, self._commit)
        if present is None:
            raise failure or OutputError(f"{self._storage.shown(self._commit)} vanished after it was written: run the same command again")
        self._undecided = False
        if present != commit:
            raise AlreadyCommittedError(self._storage.shown(self._final)) from failure
        self._remove_local()

    def drop(self) -> None:
        """Remove what was written, as far as possible; never raises."""
        self._remove_local()
        if self._undecided:
            return
        with contextlib.suppress(Exception):
            for name in self._put:
                self._storage.remove_file(join_path(self._keys, name))

    def _put_file(self, name: str) -> None:
        self._storage.put_file(self.path(name), join_path(self._keys, name))

    def _check_put(self) -> None:
        found = self._storage.list_files(self._keys)
        if found != self._put:
            wrong = sorted(name for name, n_bytes in self._put.items() if found.get(name) != n_bytes)
            raise OutputError(f"{self.where}: {', '.join(wrong) or 'files'} did not arrive whole. Run the same command again")

    def _create_commit(self, commit: bytes) -> None:
        self._storage.create_bytes(self._commit, commit)

    def _remove_local(self) -> None:
        if self._local is not None:
            shutil.rmtree(self._local, ignore_errors=True)


def vanished(storage: Storage, path: str) -> OutputError:
    """The error for a folder that was removed while it was written."""
    return OutputError(
        f"{storage.shown(path)} was removed while it was written: another driver took over this trial, or somebody cleaned up. "
        "Nothing was committed; the same command resumes from the last commit"
    )


def _present(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return None
