"""One driver a folder: claims, takeovers, and what the one that lost is told; on a disk, in memory and on S3."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from clray.artifacts import TrialFolders
from clray.errors import HeldError, LeaseLostError
from clray.store import lease as lease_module
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.lease import Fence, Holder, Lease, epochs_of, read_holder, this_machine
from clray.store.reader import committed_folders

LAYOUT = SweepLayout()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewals twenty times a second."""
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease_module, "WATCH_SECONDS", 0.3)


def put(storage: Storage, epoch: int = 1, seconds: float = 0.0, **fields: object) -> Holder:
    """Somebody's lease, renewed so many seconds ago."""
    renewed = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)).isoformat()
    holder = dataclasses.replace(Holder(epoch, "theirs", "far", 7, "another machine", start="2026-01-31", renewed=renewed), **fields)
    storage.replace_bytes(LAYOUT.lease(epoch), holder.to_bytes())
    return holder


def test_epochs_grow_and_old_files_go(storage: Storage) -> None:
    for epoch in (1, 2, 3):
        with Lease.claim(storage) as lease:
            assert lease.epoch == epoch
            lease.look()
        assert epochs_of(storage, LAYOUT) == [epoch]
    holder = read_holder(storage)
    assert holder is not None
    assert holder.released


def test_of_many_claims_at_the_same_moment_one_succeeds(storage: Storage) -> None:
    put(storage, released=True)
    start = threading.Barrier(8)
    won: list[Lease] = []
    lost: list[HeldError] = []

    def claim() -> None:
        start.wait()
        try:
            won.append(Lease.claim(storage))
        except HeldError as error:
            lost.append(error)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 7
    assert all(f"is driven by process {os.getpid()} on" in str(error) for error in lost)
    assert won[0].epoch == 2


def test_a_live_lease_is_refused_with_its_holder_and_taken_by_force(storage: Storage) -> None:
    put(storage, seconds=3)
    with pytest.raises(HeldError, match=r"is driven by process 7 on far since 2026-01-31, last seen \d s ago.*--force") as refused:
        Lease.claim(storage)
    assert refused.value.exit_code == 1
    assert Lease.claim(storage, force=True).epoch == 2


@pytest.mark.usefixtures("quick")
def test_a_lease_that_was_not_renewed_is_watched_and_then_taken_over(local: Storage) -> None:
    put(local, seconds=lease_module.STALE_SECONDS + 1)
    assert Lease.claim(local).epoch == 2


@pytest.mark.usefixtures("quick")
def test_a_lease_that_only_looks_stale_because_clocks_disagree_is_left_alone(local: Storage) -> None:
    put(local, seconds=3600)
    renewal = threading.Timer(0.1, lambda: put(local, seconds=3599))
    renewal.start()
    with pytest.raises(HeldError):
        Lease.claim(local)
    renewal.join()


def test_a_driver_that_was_killed_here_is_known_to_be_gone_at_once(local: Storage) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    put(local, pid=process.pid, machine=this_machine())
    with pytest.raises(HeldError):
        Lease.claim(local)
    process.kill()
    deadline = time.monotonic() + 10
    while read_holder(local).alive and time.monotonic() < deadline:  # type: ignore[union-attr]
        time.sleep(0.01)
    assert Lease.claim(local).epoch == 2  # though nobody has waited for the process: a zombie does not count
    process.wait()


@pytest.mark.usefixtures("quick")
def test_a_driver_whose_lease_was_taken_learns_who_did_it_and_writes_it_no_more(storage: Storage) -> None:
    with Lease.claim(storage) as lease:
        lease.check()
        taker = Lease.claim(storage, force=True)
        taken = re.escape(read_holder(storage).start)  # type: ignore[union-attr]
        time.sleep(1.0)  # twenty renewals
        with pytest.raises(LeaseLostError, match=f"was taken over by process {os.getpid()} on .* since {taken}"):
            lease.check()
    assert epochs_of(storage, LAYOUT) == [taker.epoch]
    taker.look()


def test_a_fence_holds_back_every_epoch_but_the_highest(storage: Storage) -> None:
    first = Lease.claim(storage)
    Fence(storage, *first.ticket).check()
    second = Lease.claim(storage, force=True)
    with pytest.raises(LeaseLostError, match=r"\(epoch 1\) and its workers commit nothing more"):
        Fence(storage, *first.ticket).check()
    Fence(storage, *second.ticket).check()


def test_a_folder_that_was_removed_and_made_again_is_not_the_same_folder(storage: Storage) -> None:
    first = Lease.claim(storage)
    storage.remove_tree(LAYOUT.leases)
    with pytest.raises(LeaseLostError, match="was removed or replaced while the sweep ran"):
        Fence(storage, *first.ticket).check()
    second = Lease.claim(storage)
    assert second.epoch == first.epoch
    with pytest.raises(LeaseLostError, match="was removed or replaced"):
        Fence(storage, *first.ticket).check()


def test_a_slow_claimer_does_not_get_a_number_that_was_used_up(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    put(local, 3, released=True)
    stale = read_holder(local)
    put(local, 5)
    local.remove_file(LAYOUT.lease(3))
    answers = iter([stale])
    real = read_holder
    monkeypatch.setattr(lease_module, "read_holder", lambda *given: next(answers, None) or real(*given))
    with pytest.raises(HeldError, match="process 7 on far"):
        Lease.claim(local)


def test_a_damaged_lease_is_one_of_somebody_long_gone(local: Storage, quick: None) -> None:
    for content in (b"", b"[]", b'{"pid": "x", "renewed": 3}', b"\xff"):
        local.replace_bytes(LAYOUT.lease(4), content)
        assert not read_holder(local).alive  # type: ignore[union-attr]
        assert Lease.claim(local).epoch == 5
        local.remove_tree(LAYOUT.leases)


def commit(folders: TrialFolders, folder: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Commits a small folder; something happens while it is written."""
    with folders.commit(folder) as out:
        out.state({"w": np.ones(3)})
        meanwhile()


def test_a_commit_of_an_older_epoch_leaves_nothing(storage: Storage) -> None:
    """The takeover comes while the folder is written, on a disk and on an object store."""
    lease = Lease.claim(storage)
    folders = TrialFolders(storage, "t_0123456789", "001-a", lease.fence)
    with pytest.raises(LeaseLostError, match="was taken over by process"):
        commit(folders, "task_000", lambda: Lease.claim(storage, force=True))
    assert committed_folders(storage, folders.trial) == []
    assert storage.list_files(folders.trial.base) == {}


def test_a_commit_of_an_attempt_that_was_given_up_leaves_nothing(storage: Storage) -> None:
    lease = Lease.claim(storage)
    folders = TrialFolders(storage, "t_0123456789", "001-a", lease.fence)
    commit(folders, "task_000")
    with pytest.raises(LeaseLostError, match="attempt 2 at t_0123456789 has begun: attempt 1 was given up"):
        commit(folders, "task_001", lambda: storage.replace_bytes(folders.trial.attempt(2), b"{}"))
    assert committed_folders(storage, folders.trial) == ["task_000"]
