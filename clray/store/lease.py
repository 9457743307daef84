"""One driver a sweep's folder: a lease that is claimed, renewed and taken over, with an epoch that every commit is checked against.

    .lease/000007.json   {"nonce": ..., "host": ..., "pid": ..., "machine": ..., "born": ..., "start": ..., "renewed": ...,
                          "released": false}

The number is the epoch. The file of an epoch is made create-only, so two drivers never hold the same one; the highest number holds
the folder. Its owner replaces it every few seconds (``renewed``) and at its end (``released``). Whoever takes over creates the next
number, which is the takeover: nothing has to be removed from the one before, and it cannot win the number back by writing late.

A lease is stale when its process is gone (known on the same machine only) or when it was not renewed for ``STALE_SECONDS``. In that
second case clocks may disagree, so the file is watched for a while and taken over only if it does not change.

What holds:

- Of several drivers that claim at the same moment one succeeds, on a disk (hard link) and on an object store (conditional put).
- The epoch and its nonce travel with every job. A worker reads the lease before it cleans up, before each commit, before
  RESULT.json, its log, its record and each call of a logger, and stops where its epoch is not the highest any more, or where the
  folder was removed and perhaps made again.
- A driver learns at its next renewal that its lease was taken over, and stops.

What does not hold by the lease alone: a process may be stopped for minutes between its look at the lease and its commit, so a
commit of an older epoch can still arrive after a takeover. It then meets the rules of a commit: it is create-only, so it never
replaces anything; it comes whole or not at all; and it is the work of one attempt at the same experiment, so its content is what
the new owner would have computed. Whoever comes second is told so, drops its own files and goes on from what is there. On a
network file system another client's new file may be seen seconds late, with the same consequence.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import re
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from clray.errors import HeldError, LeaseLostError, OutputError
from clray.process_tree import birth_of
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout

RENEW_SECONDS = 5.0
STALE_SECONDS = 60.0
WATCH_SECONDS = 2.5 * RENEW_SECONDS
"""How long a lease that looks stale is watched for a renewal: by the clock alone a fast clock here would look like a dead driver."""

_LEASE = re.compile(r"(\d{6,})\.json")


@dataclass(frozen=True)
class Holder:
    """Who holds, or held last, a sweep's folder.

    Attributes:
        epoch: grows by one at every takeover.
        nonce: unique to this claim.
        machine: kernel and process namespace in which ``pid`` means something; empty where unknown.
        born: when the process began, in the kernel's own count, which tells it from a later one of the same number.
        start: ISO 8601, UTC.
        renewed: ISO 8601, UTC.
        released: the driver came to its end in order.
    """

    epoch: int
    nonce: str = ""
    host: str = "?"
    pid: int = 0
    machine: str = ""
    born: int | None = None
    start: str = "?"
    renewed: str = ""
    released: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.start}"

    def to_bytes(self) -> bytes:
        """The content of its file."""
        return json.dumps({name: value for name, value in vars(self).items() if name != "epoch"}, indent=1).encode()

    @staticmethod
    def parse(epoch: int, data: bytes) -> Holder:
        """The holder of an epoch; a damaged file is one of somebody unknown who never renewed it."""
        try:
            content = json.loads(data)
            known = {name: content[name] for name in Holder.__dataclass_fields__ if name in content and name != "epoch"}
            return Holder(epoch, **known)
        except (ValueError, TypeError, AttributeError):
            return Holder(epoch)

    @property
    def age(self) -> float:
        """Seconds since it was renewed, by this machine's clock."""
        try:
            renewed = datetime.datetime.fromisoformat(self.renewed)
            return (datetime.datetime.now(datetime.UTC) - renewed).total_seconds()
        except (ValueError, TypeError):
            return float("inf")

    @property
    def gone(self) -> bool:
        """Whether the process is known to have ended."""
        same = self.machine == this_machine() if self.machine else self.host == socket.gethostname()
        return self.released or (same and not _runs(self.pid, self.born))

    @property
    def alive(self) -> bool:
        """Whether the driver works on the folder, as far as can be told at once."""
        return not self.gone and self.age < STALE_SECONDS


def read_holder(storage: Storage, layout: SweepLayout | None = None) -> Holder | None:
    """The holder with the highest epoch, None where nobody ever held the folder."""
    layout = layout or SweepLayout()
    while epochs := epochs_of(storage, layout):
        with contextlib.suppress(FileNotFoundError):  # removed by whoever took over since the listing
            return Holder.parse(epochs[-1], storage.read_bytes(layout.lease(epochs[-1])))
    return None


def epochs_of(storage: Storage, layout: SweepLayout) -> list[int]:
    """Epochs that have a file, ascending."""
    return sorted(int(match.group(1)) for name in storage.list_names(layout.leases) if (match := _LEASE.fullmatch(name)))


class Fence:
    """What a worker knows of its driver's lease: enough to see that it is not the holder any more.

    Args:
        storage: the sweep's folder.
        epoch: of the lease.
        nonce: of the lease.
    """

    def __init__(self, storage: Storage, epoch: int, nonce: str):
        self._storage = storage
        self._layout = SweepLayout()
        self.epoch = epoch
        self.nonce = nonce

    def check(self) -> None:
        """Reads the lease: one listing, one small file.

        Raises:
            LeaseLostError: another driver took over, or the folder was removed.
        """
        epochs = epochs_of(self._storage, self._layout)
        if epochs and epochs[-1] > self.epoch:
            taker = read_holder(self._storage, self._layout)
            raise LeaseLostError(
                f"{self._storage.display} was taken over by {taker}; this driver (epoch {self.epoch}) and its workers commit nothing more. "
                "What was committed is kept, and the other driver goes on from there"
            )
        present = None
        with contextlib.suppress(FileNotFoundError):
            present = Holder.parse(self.epoch, self._storage.read_bytes(self._layout.lease(self.epoch)))
        if present is None or present.nonce != self.nonce:
            raise LeaseLostError(
                f"{self._storage.display} was removed or replaced while the sweep ran: its lease is gone. Nothing more is written there; "
                "the same command begins with what is there now"
            )


class Lease:
    """The lease of this process; a context manager that renews it in the background and releases it. Made by ``claim``."""

    def __init__(self, storage: Storage, holder: Holder):
        self._storage = storage
        self._layout = SweepLayout()
        self._holder = holder
        self._stop = threading.Event()
        self._lost: LeaseLostError | None = None
        self._thread = threading.Thread(target=self._renew_until_stopped, name="clray-lease", daemon=True)
        self.fence = Fence(storage, holder.epoch, holder.nonce)

    @staticmethod
    def claim(storage: Storage, force: bool = False) -> Lease:
        """Takes the folder: free, released, stale, or with ``force`` whatever it is.

        Raises:
            HeldError: another driver holds it; says who and since when.
            OutputError: the folder cannot be written.
        """
        layout = SweepLayout()
        before = read_holder(storage, layout)
        if before and not force and not before.gone and (before.alive or _changes(storage, layout, before)):
            raise _held(storage, read_holder(storage, layout) or before)
        holder = _myself(before.epoch + 1 if before else 1)
        _create(storage, layout, holder)
        # Files of old epochs are removed by the next ones, so a slow claimer may get a number that has been used up.
        highest = read_holder(storage, layout)
        if highest is None or highest.nonce != holder.nonce:
            storage.remove_file(layout.lease(holder.epoch))
            raise _held(storage, highest or holder)
        for epoch in epochs_of(storage, layout):
            if epoch < holder.epoch:
                storage.remove_file(layout.lease(epoch))
        return Lease(storage, holder)

    @property
    def epoch(self) -> int:
        """Of this lease."""
        return self._holder.epoch

    @property
    def ticket(self) -> tuple[int, str]:
        """Epoch and nonce: what a worker needs for its ``Fence``."""
        return self._holder.epoch, self._holder.nonce

    def held(self) -> bool:
        """Reads the lease now: whether it is still this driver's. A storage that cannot be read leaves that to the commits."""
        with contextlib.suppress(LeaseLostError, OutputError):
            self.look()
        return self._lost is None

    def check(self) -> None:
        """Costs nothing: says what the last renewal found.

        Raises:
            LeaseLostError: another driver took over, or the folder was removed.
        """
        if self._lost is not None:
            raise self._lost

    def look(self) -> None:
        """Reads the lease now, and raises as ``check`` does."""
        try:
            self.fence.check()
        except LeaseLostError as error:
            self._lost = error
        self.check()

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(HeldError, OutputError, OSError):
            self.look()
            self._write(released=True)

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            with contextlib.suppress(OutputError, OSError):  # a storage that is away for a moment: the next time may work
                try:
                    self.look()
                except LeaseLostError:
                    return
                self._write()

    def _write(self, released: bool = False) -> None:
        renewed = Holder(**{**vars(self._holder), "renewed": _now(), "released": released})
        # Where the results were removed since the look at the lease, it does not come back.
        self._storage.replace_bytes(self._layout.lease(self.epoch), renewed.to_bytes(), new_folder=False)


def _myself(epoch: int) -> Holder:
    at = _now()
    pid = os.getpid()
    return Holder(epoch, secrets.token_hex(16), socket.gethostname(), pid, this_machine(), birth_of(pid), at, at)


def _create(storage: Storage, layout: SweepLayout, holder: Holder) -> None:
    data = holder.to_bytes()
    try:
        storage.create_bytes(layout.lease(holder.epoch), data)
    except (FileExistsError, OutputError) as error:
        # A repeated request may have met its own object, and one that failed may have arrived all the same.
        found = read_holder(storage, layout)
        if found is not None and found.nonce == holder.nonce:
            return
        if isinstance(error, FileExistsError):
            raise _held(storage, found or holder) from None
        raise


def _held(storage: Storage, holder: Holder) -> HeldError:
    return HeldError(
        f"{storage.display} is driven by {holder}, last seen {max(holder.age, 0):.0f} s ago. Wait for it, choose another --output, or take "
        "over with --force if you know that it is gone"
    )


def _changes(storage: Storage, layout: SweepLayout, before: Holder) -> bool:
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        if read_holder(storage, layout) != before:
            return True
    return False


@functools.cache
def this_machine() -> str:
    """The running kernel and the namespace of process numbers: two containers may share a host name. Empty where unknown."""
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _runs(pid: Any, born: Any) -> bool:
    """Whether the process that began then still runs; True where it cannot be told."""
    if not isinstance(pid, int) or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    now_there = birth_of(pid)
    return now_there is None or (now_there >= 0 and born in (None, now_there))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def fence_of(storage: Storage, ticket: tuple[int, str] | None) -> Fence | None:
    """The fence of a job's ticket; None for work outside a sweep, which has no lease."""
    return Fence(storage, *ticket) if ticket else None
