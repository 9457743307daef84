"""A folder in a bucket, or whatever else fsspec gives access to.

What ``create_bytes`` rests on: s3fs sends ``If-None-Match: *`` and gcsfs ``ifGenerationMatch=0`` for
``pipe_file(mode="create")``, both answered with 412 where the object exists; ``memory://`` checks and writes, here under a lock.
Servers that ignore the condition are found by ``check_writable`` before any work is done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clray.errors import OutputError
from clray.store.filesystem import BLOCK_BYTES, Storage, hide_credentials, join_path, output_error, unknown_protocol
from clray.store.patience import Patient

# fsspec reads some of these as patterns or versions, whatever the call.
_BAD_IN_ROOT = re.compile(r"[*?\[\]{}#\\\s]|::|/\.{0,2}/|/\.{1,2}$")
_INSTALL = {
    "s3": "pip install 'clray[s3]'",
    "s3a": "pip install 'clray[s3]'",
    "gs": "pip install 'clray[gcs]'",
    "gcs": "pip install 'clray[gcs]'",
}
_S3_OPTIONS: dict[str, Any] = {
    # Parts of an upload that s3fs holds in memory at once (50 MB each; its default is 10).
    "max_concurrency": 3,
    # Longer outages are waited for by ``Patient``, which knows what a command can bear.
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"mode": "standard", "max_attempts": 3}},
}
_OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3_OPTIONS, "s3a": _S3_OPTIONS}
_RETRY_VARIABLES = ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE")
_CONFLICT_TRIES = 6
_memory_lock = threading.RLock()
"""fsspec's memory file system lists a dictionary that other threads may change meanwhile."""


class ObjectStorage(Storage):
    """See ``Storage``. Credentials and endpoints come from the environment (``AWS_ENDPOINT_URL_S3``, ``FSSPEC_S3_...``)."""

    is_local = False

    def __init__(self, url: str) -> None:
        protocol, _, rest = url.partition("://")
        self.protocol = protocol.lower()
        self.root = f"{self.protocol}://{rest.rstrip('/')}"
        shown = hide_credentials(self.root)
        if not rest.strip("/") or _BAD_IN_ROOT.search(rest.rstrip("/")):
            raise OutputError(
                f"{shown} cannot be an output: give a bucket and a folder without spaces, patterns, '..' or a query, "
                f"such as {self.protocol}://bucket/folder"
            )
        filesystem, self._base = _connect(self.protocol, self.root)
        self._fs: Any = Patient(filesystem, shown)

    def check_reachable(self) -> None:
        with self._fs.hasty():
            self.exists("sweep.yaml")

    def check_writable(self) -> None:
        with self._fs.hasty():
            self._probe()

    def _probe(self) -> None:
        probe = f".probe-{secrets.token_hex(8)}"
        # A name of this length is nobody else's: one that is there is ours, and only the reply was lost.
        with contextlib.suppress(FileExistsError):
            self.create_bytes(probe, b"1")
        try:
            self.create_bytes(probe, b"2")
        except FileExistsError:
            return
        finally:
            self.remove_file(probe)
        raise OutputError(
            f"{self.display} overwrites objects that were to be created only (it ignores If-None-Match), so two drivers could "
            "overwrite each other's results. Update the server, or choose another --output"
        )

    def read_bytes(self, path: str) -> bytes:
        with self._explained("read", path, FileNotFoundError):
            return bytes(self._fs.cat_file(self._full(path)))

    def read_blocks(self, path: str, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        n_bytes = self.size(path)
        for start in range(0, n_bytes, block_bytes):
            with self._explained("read", path, FileNotFoundError):
                block = bytes(self._fs.cat_file(self._full(path), start=start, end=min(start + block_bytes, n_bytes)))
            yield block

    def exists(self, path: str) -> bool:
        # Not fs.exists: that answers False for some errors.
        with self._explained("look at", path):
            try:
                self._fs.info(self._full(path))
            except FileNotFoundError:
                return False
            return True

    def size(self, path: str) -> int:
        with self._explained("look at", path, FileNotFoundError):
            info = self._fs.info(self._full(path))
            if info["type"] != "file":
                raise FileNotFoundError(errno.ENOENT, "not a file", self.shown(path))
            return int(info["size"])

    def list_names(self, folder: str) -> list[str]:
        full = self._folder(folder)
        with self._explained("list", folder):
            try:
                listed = self._fs.ls(full, detail=False)
            except FileNotFoundError:
                return []
        below = (name.rstrip("/").removeprefix(full) for name in listed if name.startswith(full + "/"))
        return sorted({name.strip("/") for name in below} - {""})

    def list_files(self, folder: str) -> dict[str, int]:
        full = self._folder(folder)
        with self._explained("list", folder):
            try:
                found = self._fs.find(full, detail=True)
            except FileNotFoundError:
                return {}
        start = full + "/"
        return {
            name[len(start) :]: int(info["size"])
            for name, info in sorted(found.items())
            if name.startswith(start) and info["type"] == "file" and not name.endswith("/")
        }

    def replace_bytes(self, path: str, data: bytes, new_folder: bool = True) -> None:
        del new_folder
        with self._explained("write", path):
            self._fs.pipe_file(self._full(path), data)

    def create_bytes(self, path: str, data: bytes) -> None:
        full = self._full(path)
        with self._explained("write", path, FileExistsError):
            for attempt in range(_CONFLICT_TRIES):
                try:
                    self._fs.pipe_file(full, data, mode="create")
                    return
                except Exception as error:
                    if isinstance(error, FileExistsError) or _answered(error, 412, "PreconditionFailed"):
                        raise FileExistsError(errno.EEXIST, "there is an object", self.shown(path)) from error
                    # Two creations at the same moment: S3 asks the loser to try again, and then says 412.
                    if attempt + 1 == _CONFLICT_TRIES or not _answered(error, 409, "ConditionalRequestConflict"):
                        raise
                time.sleep(0.1 * 2**attempt)

    def append_bytes(self, path: str, data: bytes, new_folder: bool = True) -> None:
        del new_folder
        try:
            before = self.read_bytes(path)
        except FileNotFoundError:
            before = b""
        self.replace_bytes(path, before + data)

    def put_file(self, local: str | os.PathLike[str], path: str) -> None:
        with self._explained("write", path):
            if self.protocol == "memory":
                # Its put_file leaves empty folders behind when the file is removed again.
                self._fs.pipe_file(self._full(path), Path(local).read_bytes())
            else:
                self._fs.put_file(os.fspath(local), self._full(path))

    def local_path(self, path: str) -> Path:
        raise ValueError(f"{self.shown(path)} is not a local file")

    def remove_file(self, path: str) -> None:
        with self._explained("remove", path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._full(path))

    def remove_tree(self, path: str) -> None:
        join_path(path)
        for name in self.list_files(path):
            self.remove_file(f"{path}/{name}")
        self.remove_file(path)

    def move_folder(self, path: str, new_path: str, head: str) -> None:
        names = sorted(self.list_files(path), key=lambda name: name != head)
        if not names:
            raise FileNotFoundError(errno.ENOENT, "no such folder", self.shown(path))
        if self.list_files(new_path):
            raise FileExistsError(errno.EEXIST, "there is a folder", self.shown(new_path))
        for name in reversed(names):
            with self._explained("move", path):
                self._fs.cp_file(self._full(f"{path}/{name}"), self._full(f"{new_path}/{name}"))
        for name in names:
            self.remove_file(f"{path}/{name}")

    def _full(self, path: str) -> str:
        return f"{self._base}/{join_path(path)}"

    def _folder(self, folder: str) -> str:
        return self._full(folder) if folder else self._base

    @contextlib.contextmanager
    def _explained(self, action: str, path: str, *passed: type[OSError]) -> Iterator[None]:
        try:
            with _memory_lock if self.protocol == "memory" else contextlib.nullcontext():
                yield
        except Exception as error:  # clients raise all sorts: botocore and aiohttp errors are no OSErrors
            if isinstance(error, (OutputError, *passed)):
                raise
            if isinstance(error, FileNotFoundError):
                message = f"cannot {action} {self.shown(path)}: {error}. Create the bucket first, or check its name in --output"
                raise OutputError(message) from error
            raise output_error(error, action, self.shown(path)) from error


def _connect(protocol: str, root: str) -> tuple[Any, str]:
    import fsspec
    from fsspec.core import url_to_fs

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        how = _INSTALL.get(protocol, str(error))
        raise OutputError(f"{hide_credentials(root)} needs a package that is not installed: {how}") from error
    except ValueError as error:
        raise unknown_protocol(protocol) from error
    configured = fsspec.config.conf.get(protocol, {})
    options = {key: value for key, value in _OPTIONS.get(protocol, {}).items() if key not in configured}
    if any(name in os.environ for name in _RETRY_VARIABLES) and "config_kwargs" in options:
        options["config_kwargs"] = {key: value for key, value in options["config_kwargs"].items() if key != "retries"}
    try:
        # Cached listings would hide what other processes wrote.
        filesystem, base = url_to_fs(root, use_listings_cache=False, **options)
    except Exception as error:
        raise output_error(error, "open", hide_credentials(root)) from error
    return filesystem, str(base).rstrip("/")


def _answered(error: BaseException | None, status: int, code: str) -> bool:
    """Whether the store answered a request with this status. s3fs keeps the answer in the cause of its own errors."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            if response.get("Error", {}).get("Code") in (code, str(status)):
                return True
            if response.get("ResponseMetadata", {}).get("HTTPStatusCode") == status:
                return True
        if getattr(error, "code", None) == status:
            return True
        error = error.__cause__
    return False
