"""What became of each trial, read from its files alone: works while a sweep runs, from any machine, and after."""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clray.errors import OutputError
from clray.store.commit import DamagedError
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout, TrialLayout, is_folder_name, task_of
from clray.store.result import read_result

STALE_SECONDS = 60.0
"""A driver renews its lease far more often; a trial of a driver silent for longer is not running any more."""

FINISHED = ("done", "diverged")
OUTCOMES = ("running", "failed", "interrupted", *FINISHED)


@dataclass(frozen=True)
class TrialStatus:
    """One trial as its files show it.

    Attributes:
        status: done, diverged, running, failed, interrupted or pending.
        tasks: committed tasks.
        attempts: attempts begun so far.
        last_commit: seconds since the newest commit, None before the first.
        error: one line, where the last attempt failed, or where files of the trial are damaged (status is interrupted then).
        cause: program, storage or system, where there is an error.
        result: content of RESULT.json where there is one.
    """

    status: str
    tasks: int = 0
    attempts: int = 0
    last_commit: float | None = None
    error: str = ""
    cause: str = ""
    result: Mapping[str, Any] | None = None


def read_status(storage: Storage, trial: TrialLayout, driver_alive: bool, commits: bool = True) -> TrialStatus:
    """Status of one trial.

    Args:
        driver_alive: whether the driver of the sweep still renews its lease; see ``driver_age``.
        commits: also look at commit markers; False is enough to know what is finished, and cheaper.
    """
    try:
        return _read_status(storage, trial, driver_alive, commits)
    except OutputError as error:
        if not storage.is_local:
            raise  # an object store out of reach says nothing about this trial
        return TrialStatus("interrupted", error=_first_line(error), cause="storage")


def _read_status(storage: Storage, trial: TrialLayout, driver_alive: bool, commits: bool) -> TrialStatus:
    result, damage = None, ""
    try:
        result = read_result(storage, trial)
    except DamagedError as found:
        damage = _first_line(found)
    if result is not None and not commits:
        return TrialStatus(result["status"], result["n_tasks"], result["attempts"], None, result=result)
    tasks, last = _commits(storage, trial) if commits else (0, None)
    if result is not None:
        return TrialStatus(result["status"], tasks, result["attempts"], last, result=result)
    attempts = sorted(n for name in storage.list_names(trial.attempts) if (n := TrialLayout.attempt_of(name)) is not None)
    if damage:
        return TrialStatus("interrupted", tasks, attempts[-1] if attempts else 0, last, damage, "storage")
    if not attempts:
        return TrialStatus("pending", tasks, 0, last)
    record = read_json(storage, trial.attempt(attempts[-1])) or {}
    outcome = record.get("outcome")
    if outcome not in OUTCOMES or outcome in FINISHED or (outcome == "running" and not driver_alive):
        outcome = "interrupted"  # damaged; or the attempt ended well but its RESULT.json is gone; or nobody is left
    return TrialStatus(outcome, tasks, attempts[-1], last, _text(record.get("error")), _text(record.get("cause")))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def driver_age(storage: Storage, layout: SweepLayout) -> float | None:
    """Seconds since the driver of a sweep last renewed its lease, None where there is no driver."""
    lease = read_json(storage, layout.lease)
    return _age(lease["renewed"]) if lease and "renewed" in lease else None


def is_alive(storage: Storage, layout: SweepLayout) -> bool:
    """Whether a driver works on the sweep now. One that was killed on this machine is known to be gone before its lease is stale."""
    lease = read_json(storage, layout.lease) or {}
    age = _age(lease.get("renewed", ""))
    return age < STALE_SECONDS and not (lease.get("host") == socket.gethostname() and _is_gone(lease.get("pid")))


def read_json(storage: Storage, path: str) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file or it is not one."""
    try:
        content = json.loads(storage.read_bytes(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _commits(storage: Storage, trial: TrialLayout) -> tuple[int, float | None]:
    folders = [name for name in storage.list_names(trial.base) if is_folder_name(name)]
    committed = {name: record for name in folders if (record := read_json(storage, trial.commit(name))) is not None}
    ages = [_age(record["time"]) for record in committed.values() if "time" in record]
    return sum(task_of(name) is not None for name in committed), min(ages, default=None)


def _is_gone(pid: Any) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, TypeError, OverflowError):
        return False
    return False


def _age(time: str) -> float:
    try:
        return (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")
