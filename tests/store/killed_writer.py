"""Run as a program: children that commit a folder and die by SIGKILL, each at its step. See test_commit_killed.py.

Usage: killed_writer.py URL STEP [URL STEP ...], where STEP is ``before:<method>`` or ``after:<method>`` of the staging class, or
``block`` (in the middle of an array). The children are forked, since each fresh interpreter would take a second to import.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from clray.store import layout, staging
from clray.store.filesystem import Storage
from clray.store.writer import FolderCommit


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(method: Callable[..., Any], when: str) -> Callable[..., Any]:
    def wrapped(self: Any, *args: Any) -> Any:
        if when == "before":
            die()
        result = method(self, *args)
        die()
        return result

    return wrapped


def blocks(step: str) -> Iterator[np.ndarray]:
    for _ in range(3):
        yield np.full((2, 4, 5), 1.0, np.float32)
        if step == "block":
            die()


def write_and_die(url: str, step: str) -> None:
    storage = Storage.of(url)
    kind = staging.LocalStaging if storage.is_local else staging.ObjectStaging
    when, _, name = step.partition(":")
    if name:
        setattr(kind, name, dying(getattr(kind, name), when))
    steps = np.arange(6, dtype=np.int32)
    ones = np.ones(6, np.float32)
    table = pa.table([steps, steps.astype(np.int16), steps, ones, ones], schema=layout.METRICS_SCHEMA)
    with FolderCommit(storage, layout.SweepLayout().trial("t_0123456789"), "task_000", "001-dead", "confighash") as commit:
        commit.write_table(layout.METRICS, table)
        commit.write_array("weights.head.kernel.npy", (3, 2, 4, 5), np.float32, blocks(step))
        commit.write_bytes(layout.STATE, b"state 1.0")


def main(arguments: list[str]) -> int:
    if any(url.startswith("s3:") for url in arguments):
        import s3fs  # noqa: F401 - once for all children
    for url, step in zip(arguments[::2], arguments[1::2], strict=True):
        child = os.fork()
        if not child:
            try:
                write_and_die(url, step)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            print(f"{step}: ended with status {status}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
