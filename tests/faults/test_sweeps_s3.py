"""Whole sweeps into a bucket, on a real server on loopback: drivers that freeze, a network that fails."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from clray.store.filesystem import Storage
from clray.store.lease import read_holder
from tests.core.tiny import Arrays
from tests.faults.bucket import BucketScene
from tests.faults.proxy import FaultyProxy, Request
from tests.faults.scene import WITH_QUICK_LEASES, until

_numbers = itertools.count()
KINDS = ("error", "error after", "lost", "cut", "half", "hang")
IMPATIENT = [
    sys.executable,
    "-c",
    "from clray.store import objects; objects._S3_OPTIONS['config_kwargs']['read_timeout'] = 2; from clray.cli import main; main()",
]
"""clray that waits two seconds for an answer, where it waits for a minute."""


@pytest.fixture
def bucket(tmp_path: Path, expected: dict[str, Arrays], s3_server: Any, boto3_client: Any) -> Iterator[Callable[..., BucketScene]]:
    """Makes the scene for some seeds."""
    made: list[BucketScene] = []

    def make(*seeds: int) -> BucketScene:
        made.append(BucketScene(tmp_path, expected, seeds, client=boto3_client, name=f"sweeps{next(_numbers)}"))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("moment", ["train:1", "before:_create_commit:task_001"])
def test_a_driver_that_freezes_and_wakes_up_after_its_lease_went_stale_writes_nothing(
    bucket: Callable[..., BucketScene], moment: str
) -> None:
    """Nobody uses force: the second driver finds a lease that is not renewed. The later moment is the last one before the request
    that would make the folder count, all its files are there and the lease has been looked at."""
    s = bucket(0)
    s.order(0, moment, "stop")
    frozen = s.start("--local", argv=WITH_QUICK_LEASES)
    s.wait_for(0, moment)
    storage = Storage.of(s.output).child("s")

    def stale() -> bool:
        holder = read_holder(storage)
        return holder is not None and holder.age > 1

    until(stale, 10, "a stale lease")
    taker = s.run("--local", argv=WITH_QUICK_LEASES)
    assert taker.code == 0, taker.err
    before = s.objects()
    frozen.send_signal(signal.SIGCONT)
    ended = s.end(frozen, 60)
    assert ended.code == 1, ended.err
    assert "was taken over by process" in ended.err
    assert s.objects() == before
    holder = read_holder(storage)
    assert holder is not None
    assert (holder.epoch, holder.released) == (2, True)
    s.fetch()
    assert [record["outcome"] for record in s.attempts(0)] == ["interrupted", "done"]
    assert s.committed_by(0) == {"initial": "001", "task_000": "001", "task_001": "002", "task_002": "002"}
    s.assert_undisturbed(orphan="001")


def test_a_sweep_over_a_failing_network_ends_with_the_same_files(
    bucket: Callable[..., BucketScene], s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every eighth request meets a fault, one kind after the other. The reply to the first marker of a task is lost, and then there is no
    connection for 20 seconds."""
    s = bucket(0)
    parts = urlsplit(s3_server.url)
    with FaultyProxy((parts.hostname or "", parts.port or 0)) as proxy:
        kinds = itertools.cycle(KINDS)
        markers = itertools.count()

        def choose(request: Request) -> str:
            if request.method == "PUT" and request.path.endswith("/task_000/COMMIT.json") and next(markers) == 0:
                proxy.lose_connection(20)
                return "lost"
            return next(kinds) if request.number % 8 == 7 else ""

        proxy.choose = choose
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.delenv("AWS_MAX_ATTEMPTS")
        done = s.run("--local", argv=IMPATIENT)
        assert done.code == 0, done.err
        assert all(proxy.seen[kind] for kind in KINDS), proxy.seen
    assert next(markers) > 1
    s.fetch()
    s.assert_undisturbed({})
