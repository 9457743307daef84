"""Storages of all kinds: a local folder, memory, and S3 as a real server on a free loopback port.

The server is moto's, in threads of this process; children reach it through the environment. Faults are put in by the server,
so that the whole client stack with its own retries is under test.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clray.store import layout
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout, TrialLayout
from clray.store.writer import FolderCommit

BUCKET = "results"
INTERNAL_ERROR = (500, {}, "<Error><Code>InternalError</Code><Message>broken on purpose</Message></Error>")
_numbers = itertools.count()


@dataclass
class Faults:
    """What the server does with the next puts of keys that end so."""

    lost_replies: list[str] = field(default_factory=list)
    """Stored, then answered with an error; once for each entry."""
    refused: list[str] = field(default_factory=list)
    """Never stored, always answered with an error."""


@dataclass(frozen=True)
class Server:
    url: str
    faults: Faults


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    faults = Faults()
    store: Callable[[Any], Any] = S3Response.put_object
    lock = threading.Lock()

    def put_object(self: Any) -> Any:
        key = self.parse_key_name()
        if any(key.endswith(end) for end in faults.refused):
            return INTERNAL_ERROR
        # moto checks If-None-Match and stores in two steps, S3 in one.
        with lock:
            answer = store(self)
        lost = [end for end in faults.lost_replies if key.endswith(end)]
        if lost and answer[0] == 200:
            faults.lost_replies.remove(lost[0])
            return INTERNAL_ERROR
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", put_object)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        patch.setenv("AWS_ENDPOINT_URL_S3", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "2")
        patch.setattr("clray.store.patience.PATIENCE_SECONDS", 0.5)  # longer outages: tests/faults
        _client(url).create_bucket(Bucket=BUCKET)
        yield Server(url, faults)
        server.stop()


def _client(url: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=url)


@pytest.fixture
def boto3_client(s3_server: Server) -> Any:
    """A client that shares nothing with the code under test."""
    return _client(s3_server.url)


@pytest.fixture
def faults(s3_server: Server) -> Iterator[Faults]:
    yield s3_server.faults
    s3_server.faults.lost_replies.clear()
    s3_server.faults.refused.clear()


@pytest.fixture
def s3(s3_server: Server) -> Storage:
    return Storage.of(f"s3://{BUCKET}/out{next(_numbers)}/digits")


@pytest.fixture
def memory() -> Storage:
    return Storage.of(f"memory://out{next(_numbers)}/digits")


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage.of(tmp_path / "digits")


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest) -> Storage:
    return request.getfixturevalue(request.param)


@pytest.fixture
def trial() -> TrialLayout:
    return SweepLayout().trial("t_0123456789")


def metrics(value: float, n_rows: int = 6) -> pa.Table:
    steps = np.arange(n_rows, dtype=np.int32)
    values = np.full(n_rows, value, np.float32)
    columns = [steps, steps.astype(np.int16), steps, values, values]
    return pa.table([pa.array(column) for column in columns], schema=layout.METRICS_SCHEMA)


def weights(value: float) -> np.ndarray:
    return np.full((3, 2, 4, 5), value, np.float32)


@pytest.fixture
def write() -> Callable[..., FolderCommit]:
    """Commits a small folder whose whole content says ``value``."""

    def write_folder(storage: Storage, trial: TrialLayout, folder: str, attempt: str, value: float = 1.0) -> FolderCommit:
        with FolderCommit(storage, trial, folder, attempt, "confighash") as commit:
            commit.write_table(layout.METRICS, metrics(value))
            commit.write_array("weights.head.kernel.npy", (3, 2, 4, 5), np.float32, iter(weights(value)))
            commit.write_bytes(layout.STATE, f"state {value}".encode())
        return commit

    return write_folder


@pytest.fixture
def value_of() -> Callable[[Storage, TrialLayout, str], float]:
    """Reads a folder of ``write`` back through COMMIT.json and asserts that it is whole and of one writer."""
    from clray.store.reader import open_array, read_commit, read_file, read_table, verify

    def read_folder(storage: Storage, trial: TrialLayout, folder: str) -> float:
        commit = read_commit(storage, trial, folder)
        assert commit is not None
        assert verify(storage, trial, commit) == []
        value = float(read_file(storage, commit, layout.STATE).split()[1])
        assert read_table(storage, commit, layout.METRICS).equals(metrics(value))
        np.testing.assert_array_equal(open_array(storage, commit, "weights.head.kernel.npy"), weights(value))
        return value

    return read_folder
