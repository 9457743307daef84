"""Processes of this machine: when one began, which ones this one started, and how to end them."""

from __future__ import annotations

import contextlib
import os
import signal
import time


def birth_of(pid: int) -> int | None:
    """When a process began, in clock ticks since the kernel did; None where that cannot be read. A zombie began at -1."""
    fields = _stat(pid)
    return None if fields is None else -1 if fields[0] == "Z" else int(fields[19])


def descendants(ancestor: int | None = None) -> dict[int, int]:
    """The processes that one started (default: this one), theirs, and so on: id to birth. Empty where there is no /proc."""
    ancestor = os.getpid() if ancestor is None else ancestor
    parents = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (fields := _stat(int(name))) is not None:
                parents[int(name)] = int(fields[1])
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    births = {pid: birth_of(pid) for pid in found - {ancestor}}
    return {pid: born for pid, born in births.items() if born is not None and born >= 0}


def command_of(pid: int) -> str:
    """The command line of a process, its parts separated by spaces; empty where it cannot be read."""
    try:
        with open(f"/proc/{pid}/cmdline", errors="replace") as file:
            return file.read().replace("\0", " ").strip()
    except OSError:
        return ""


def end_processes(processes: dict[int, int], seconds: float = 2.0) -> None:
    """Kills processes, as ``descendants`` found them, and waits until they are gone."""

    def left() -> list[int]:
        return [pid for pid, born in processes.items() if birth_of(pid) == born]

    for pid in left():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + seconds
    while left() and time.monotonic() < end:
        time.sleep(0.02)


def _stat(pid: int) -> list[str] | None:
    """State, parent and what follows in /proc/<pid>/stat; the name before them may hold anything."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
