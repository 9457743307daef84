"""S3 that fails in all the ways a network can, by a proxy in front of a real server: whole commits or none, and the same bytes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from clray.errors import AlreadyCommittedError, OutputError
from clray.store import objects, patience
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.reader import committed_folders, read_commit, verify
from clray.store.writer import FolderCommit
from tests.faults.bucket import BUCKET, accepted, objects_below
from tests.faults.proxy import FaultyProxy, Request, now_and_then

pytestmark = pytest.mark.faults
PATIENCE_SECONDS = patience.PATIENCE_SECONDS
_numbers = itertools.count()
TRIAL = SweepLayout().trial("t_0123456789")


@pytest.fixture
def proxy(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """In front of the session's server; clients have a short read timeout and otherwise clray's own settings."""
    parts = urlsplit(s3_server.url)
    with FaultyProxy((parts.hostname or "", parts.port or 0)) as active:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", active.url)
        monkeypatch.delenv("AWS_MAX_ATTEMPTS")
        monkeypatch.setattr(patience, "PATIENCE_SECONDS", PATIENCE_SECONDS)
        options = {**objects._S3_OPTIONS, "config_kwargs": {**objects._S3_OPTIONS["config_kwargs"], "read_timeout": 2}}
        # Every test has a file system of its own: fsspec keeps them by their options.
        options["fixed_upload_size"] = bool(next(_numbers) % 2)
        options["default_block_size"] = 5 * 2**20 + next(_numbers)
        monkeypatch.setitem(objects._OPTIONS, "s3", options)
        yield active


@pytest.fixture
def storage(proxy: FaultyProxy) -> Storage:
    return Storage.of(f"s3://results/faults{next(_numbers)}/digits")


@pytest.fixture
def direct(s3_server: Any, storage: Storage, boto3_client: Any) -> Callable[[], dict[str, bytes]]:
    """All objects below the storage's root, read past the proxy by another client."""
    return lambda: objects_below(boto3_client, storage.root.removeprefix(f"s3://{BUCKET}/"))


@pytest.mark.parametrize("kind", ["error", "error after", "lost", "cut", "half", "hang"])
def test_faults_now_and_then_are_retried_until_everything_is_there(
    proxy: FaultyProxy, storage: Storage, direct: Callable, write: Callable, value_of: Callable, kind: str
) -> None:
    proxy.choose = now_and_then(seed=3, share=0.1 if kind == "hang" else 0.3, kinds=(kind,))
    storage.check_writable()
    for number in range(4):
        write(storage, TRIAL, f"task_{number:03d}", "001-a", float(number))
        storage.replace_bytes("trials.parquet", b"x" * 1000 + bytes([number]))
    assert proxy.seen[kind] >= 3
    proxy.choose = lambda request: ""
    assert committed_folders(storage, TRIAL) == [f"task_{number:03d}" for number in range(4)]
    assert [value_of(storage, TRIAL, f"task_{number:03d}") for number in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert storage.read_bytes("trials.parquet")[-1] == 3
    accepted(direct())  # asserts that every committed folder is whole


def test_a_commit_whose_reply_is_lost_meets_itself(proxy: FaultyProxy, storage: Storage, write: Callable, value_of: Callable) -> None:
    lost = iter(["lost", "lost"])
    proxy.choose = lambda request: next(lost, "") if request.method == "PUT" and request.path.endswith("COMMIT.json") else ""
    folder = write(storage, TRIAL, "task_000", "001-a")
    puts = [path for method, path in proxy.requests if method == "PUT" and path.endswith("COMMIT.json")]
    assert proxy.seen["lost"] >= 1
    assert len(puts) >= 2  # sent again, and refused, since the first one had arrived
    present = read_commit(storage, TRIAL, "task_000")
    assert present is not None
    assert present.nonce == folder.commit.nonce
    assert value_of(storage, TRIAL, "task_000") == 1.0
    with pytest.raises(AlreadyCommittedError):
        write(storage, TRIAL, "task_000", "002-b", 2.0)
    assert value_of(storage, TRIAL, "task_000") == 1.0


def test_a_connection_lost_for_good_leaves_nothing_that_readers_accept(
    proxy: FaultyProxy, storage: Storage, direct: Callable, write: Callable, value_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage._fs, "seconds", 3.0)  # type: ignore[attr-defined]
    puts = itertools.count()

    def after_two_puts(request: Request) -> str:
        return "lost" if request.method == "PUT" and next(puts) >= 2 else ""

    proxy.choose = after_two_puts
    with pytest.raises(OutputError, match="same command resumes from the last commit"):
        write(storage, TRIAL, "task_000", "001-a")
    assert not any(key.endswith("COMMIT.json") for key in direct())
    proxy.choose = lambda request: ""
    write(storage, TRIAL, "task_000", "002-b", 2.0)
    assert value_of(storage, TRIAL, "task_000") == 2.0
    accepted(direct())  # asserts that every committed folder is whole


def test_a_store_that_is_not_there_is_said_to_be_so_within_seconds(storage: Storage, proxy: FaultyProxy) -> None:
    proxy.lose_connection(60)
    time.sleep(0.2)

    def asked(question: Callable[[], None]) -> float:
        started = time.monotonic()
        with pytest.raises(OutputError, match="s3://results/faults"):
            question()
        return time.monotonic() - started

    with ThreadPoolExecutor(2) as both:
        assert max(both.map(asked, (storage.check_writable, Storage.of(storage.root).check_reachable))) < 12


def test_a_large_file_that_goes_up_in_parts_arrives_whole(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs sends files of 100 MB and more in parts of 50 MB."""
    monkeypatch.setitem(objects._OPTIONS, "s3", {**objects._S3_OPTIONS, "default_block_size": 5 * 2**20 + next(_numbers)})
    storage = Storage.of(f"s3://results/faults{next(_numbers)}/digits")
    proxy.choose = now_and_then(seed=5, share=0.4, kinds=("error", "lost"))
    blocks = [np.full(2**20, value, np.float32) for value in range(26)]  # 104 MiB
    with FolderCommit(storage, TRIAL, "task_000", "001-a", "confighash") as folder:
        folder.write_array("weights.head.kernel.npy", (26, 2**20), np.float32, iter(blocks))
    assert sum(proxy.seen.values()) >= 1
    assert any("partNumber" in path for _, path in proxy.requests)
    proxy.choose = lambda request: ""
    commit = read_commit(storage, TRIAL, "task_000")
    assert commit is not None
    assert verify(storage, TRIAL, commit) == []


def test_answers_for_good_are_not_asked_for_again(proxy: FaultyProxy, storage: Storage) -> None:
    missing = Storage.of("s3://no-such-bucket/digits")
    started = time.monotonic()
    with pytest.raises(OutputError, match="Create the bucket first"):
        missing.check_writable()
    assert time.monotonic() - started < 3
