"""What became of each trial, read from its files alone: works while a sweep runs, from any machine, and after."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clray.errors import OutputError
from clray.store.commit import DamagedError
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout, TrialLayout, is_folder_name, task_of
from clray.store.lease import read_holder
from clray.store.result import read_result

MAX_LOSSES = 3
"""Attempts in a row that the system may lose (worker, node, host memory) before they commit a task; then the trial has failed."""

FINISHED = ("done", "diverged")
OUTCOMES = ("running", "failed", "interrupted", *FINISHED)

_OF_RECORD = {"error": str, "cause": str, "losses": int, "host": str, "node": str, "clray": str}


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
        losses: attempts in a row that the system lost without a new task.
        host: machine of the last attempt.
        node: the cluster's name of that machine.
        clray: version of clray of the last attempt.
        left_open: the last attempt still counts as running in its own record.
    """

    status: str
    tasks: int = 0
    attempts: int = 0
    last_commit: float | None = None
    error: str = ""
    cause: str = ""
    result: Mapping[str, Any] | None = None
    losses: int = 0
    host: str = ""
    node: str = ""
    clray: str = ""
    left_open: bool = False

    @property
    def given_up(self) -> bool:
        """Whether the same command leaves the trial alone unless it is told to retry failures."""
        return self.status == "failed" and (self.cause == "program" or (self.cause == "system" and self.losses >= MAX_LOSSES))


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
    if result is not None and result.get("trial_id", own := trial.base.rpartition("/")[2]) != own:
        result = None  # copied from another trial
    if result is not None and not commits:
        return _finished(result, result["n_tasks"], None)
    tasks, last = _commits(storage, trial) if commits else (0, None)
    if result is not None:
        return _finished(result, tasks, last)
    attempts = sorted(n for name in storage.list_names(trial.attempts) if (n := TrialLayout.attempt_of(name)) is not None)
    if damage:
        return TrialStatus("interrupted", tasks, attempts[-1] if attempts else 0, last, damage, "storage")
    if not attempts:
        return TrialStatus("pending", tasks, 0, last)
    record = read_json(storage, trial.attempt(attempts[-1])) or {}
    outcome = record.get("outcome")
    if outcome not in OUTCOMES or outcome in FINISHED or (outcome == "running" and not driver_alive):
        outcome = "interrupted"  # damaged; or the attempt ended well but its RESULT.json is gone; or nobody is left
    known: dict[str, Any] = {name: record[name] for name, kind in _OF_RECORD.items() if type(record.get(name)) is kind}
    return TrialStatus(outcome, tasks, attempts[-1], last, left_open=record.get("outcome") == "running", **known)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _finished(result: Mapping[str, Any], tasks: int, last: float | None) -> TrialStatus:
    version = result.get("clray", "")
    return TrialStatus(result["status"], tasks, result["attempts"], last, result=result, clray=version if isinstance(version, str) else "")


def driver_age(storage: Storage, layout: SweepLayout) -> float | None:
    """Seconds since the driver of a sweep last renewed its lease, None where there is no driver or it ended in order."""
    holder = read_holder(storage, layout)
    return None if holder is None or holder.released else holder.age


def is_alive(storage: Storage, layout: SweepLayout) -> bool:
    """Whether a driver works on the sweep now. One that was killed on this machine is known to be gone before its lease is stale."""
    holder = read_holder(storage, layout)
    return holder is not None and holder.alive


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


def _age(time: str) -> float:
    try:
        return (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")
