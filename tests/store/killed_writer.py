"""Run as a program: commits a folder and dies by SIGKILL at one step. See test_commit_killed.py.

Usage: killed_writer.py URL STEP, where STEP is ``before:<method>`` or ``after:<method>`` of the staging class, or ``block``.
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


def main(url: str, step: str) -> None:
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


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
