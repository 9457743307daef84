"""The record that one attempt at one trial leaves: a JSON file, lines in the trial's log, and the traceback of a failure.

The worker writes it while it can. Where the worker or its node was lost, the driver closes the record in its place.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import platform
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clray import __version__
from clray.artifacts import append_log, write_attempt
from clray.errors import AlreadyCommittedError, LeaseLostError, OutputError, UserError
from clray.store.commit import DamagedError
from clray.store.filesystem import Storage
from clray.store.layout import INITIAL, JOINT, SweepLayout, TrialLayout
from clray.store.reader import committed_folders, read_commit
from clray.trials.status import MAX_LOSSES, read_json

LOG_SECONDS = 60.0
"""An object store takes a log only whole, so while an attempt runs its lines go there no more often than this."""


@dataclass(frozen=True)
class JobTrial:
    """One attempt at one trial.

    Attributes:
        experiment: plain data that ``parse_experiment`` takes.
        attempt: counted from 1 over all runs of the sweep.
        losses: attempts before this one, in a row, that the system lost before they committed a task.
    """

    trial_id: str
    experiment: Mapping[str, Any]
    attempt: int
    losses: int = 0


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a trial ended.

    Attributes:
        status: done, diverged (both finished) or failed.
        cause: empty, ``program`` (a bug, a bad value: not retried), ``storage`` (retried when the command is given again),
            ``system`` (worker or node lost: retried) or ``lease`` (another driver took over).
        error: one line.
        attempt: number of the attempt.
        traceback: of a failure that the worker could not write to a file itself.
    """

    trial_id: str
    status: str
    cause: str = ""
    error: str = ""
    attempt: int = 1
    traceback: str = ""


class _Lines(logging.Handler):
    """Keeps what is logged, a line each."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: deque[str] = deque()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.logged.append(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)


class Attempt:
    """One attempt, as its worker records it.

    Args:
        node: the cluster's name of this machine, where it has one.
        check: raises where the trial belongs to somebody else by now. Asked before anything is written after ``begin``: then log
            and records are theirs.
    """

    def __init__(self, storage: Storage, trial: JobTrial, node: str = "", check: Callable[[], None] = lambda: None):
        self._storage = storage
        self._check = check
        self._layout = SweepLayout().trial(trial.trial_id)
        self._trial = trial
        self._lines = _Lines()
        self._keeping = threading.Lock()
        self._logged = time.monotonic()
        self._record: dict[str, Any] = {
            "attempt": trial.attempt,
            "host": socket.gethostname(),
            **({"node": node} if node else {}),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "clray": __version__,
            "losses": trial.losses,
            "start": now(),
        }

    def begin(self) -> None:
        """Says that the attempt runs."""
        self._write({"outcome": "running"}, new_folder=True)

    def interrupted(self) -> None:
        """Says that somebody stopped the attempt."""
        with contextlib.suppress(Exception):
            self._check()
            self._flush()
            self._write({"end": now(), "outcome": "interrupted"})

    def keep_log(self) -> None:
        """Writes what was logged so far, so that it is there if the process dies; never raises."""
        if self._storage.is_local or time.monotonic() - self._logged > LOG_SECONDS:
            with contextlib.suppress(Exception):
                self._check()
                self._flush()

    def end(self, result: Mapping[str, Any] | Exception) -> Outcome:
        """Says how the attempt ended."""
        trial_id, number = self._trial.trial_id, self._trial.attempt
        if not isinstance(result, Exception):
            outcome, trace = Outcome(trial_id, result["status"], attempt=number), None
        else:
            outcome = Outcome(trial_id, "failed", cause_of(result), one_line(result), number)
            trace = "".join(traceback.format_exception(result))
        if outcome.cause == "lease":
            self._superseded(outcome)
            return outcome
        with contextlib.suppress(Exception):  # the failure itself may be that nothing can be written any more
            self._check()
            self._flush(trace or "", trace)
            self._write({"end": now(), "outcome": outcome.status, "cause": outcome.cause, "error": outcome.error})
        return outcome

    def _superseded(self, outcome: Outcome) -> None:
        """The folder belongs to somebody else, or was removed: no file may come back, and no shared one may change."""
        with contextlib.suppress(Exception):
            known = read_json(self._storage, self._layout.attempt(self._trial.attempt))
            if known and known.get("outcome") == "running":
                self._write({"end": now(), "outcome": "interrupted", "error": outcome.error})

    def _flush(self, more: str = "", trace: str | None = None) -> None:
        with self._keeping:
            lines = list(self._lines.logged)  # other threads may add more at any moment
            if lines or more:
                append_log(self._storage, self._layout, "".join(lines) + more, trace)
            for _ in lines:
                self._lines.logged.popleft()
            self._logged = time.monotonic()

    def _write(self, fields: Mapping[str, Any], new_folder: bool = False) -> None:
        write_attempt(self._storage, self._layout, self._trial.attempt, {**self._record, **fields}, new_folder)

    @contextlib.contextmanager
    def captured_log(self) -> Iterator[None]:
        """Collects what is logged for this trial, and what is logged for none in particular."""
        handler = self._lines
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        own = f"clray.trial.{self._trial.trial_id}"
        handler.addFilter(lambda record: record.name == own or not record.name.startswith("clray.trial."))
        root = logging.getLogger("clray")
        level, propagate = root.level, root.propagate
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
            root.propagate = propagate


def close_attempt(storage: Storage, trial: JobTrial, outcome: Outcome) -> JobTrial | None:
    """Records, as the driver, that an attempt failed: its worker may not have been able to.

    Returns:
        The next attempt, where the system lost this one and there may be another; else None.
    """
    layout = SweepLayout().trial(trial.trial_id)
    losses = trial.losses
    if outcome.cause == "system":
        losses = 1 if _committed_a_task(storage, layout, trial.attempt) else trial.losses + 1
    ended = {"end": now(), "outcome": "failed", "cause": outcome.cause, "error": outcome.error, "losses": losses}
    with contextlib.suppress(OutputError):
        known = read_json(storage, layout.attempt(trial.attempt))
        own = known or {"attempt": trial.attempt, "clray": __version__}
        write_attempt(storage, layout, trial.attempt, {**own, **ended}, new_folder=known is None)
        if outcome.traceback:
            line = f"{now()} attempt {trial.attempt} failed ({outcome.cause}): {outcome.error}\n"
            append_log(storage, layout, line, outcome.traceback)
    again = outcome.cause == "system" and losses < MAX_LOSSES
    return replace(trial, attempt=trial.attempt + 1, losses=losses) if again else None


def close_interrupted(storage: Storage, layout: TrialLayout, number: int) -> None:
    """Records that an attempt which still counts as running was left by its driver."""
    path = layout.attempt(number)
    known = read_json(storage, path) or {"attempt": number}
    ended = {**known, "outcome": "interrupted", "error": "its driver ended without a word"}
    storage.replace_bytes(path, json.dumps(ended, indent=1).encode())


def _committed_a_task(storage: Storage, layout: TrialLayout, attempt: int) -> bool:
    """Whether an attempt got on: it committed a task, or a later folder of a study."""
    try:
        folders = [folder for folder in committed_folders(storage, layout) if folder not in (INITIAL, JOINT)]
    except OutputError:
        return False
    for folder in reversed(folders):
        with contextlib.suppress(DamagedError, OutputError):
            commit = read_commit(storage, layout, folder)
            if commit is not None and commit.attempt.startswith(f"{attempt:03d}-"):
                return True
    return False


def cause_of(error: BaseException) -> str:
    """``storage`` for a full or broken disk (the same command may finish later), ``system`` for a lost race, ``lease`` or ``program``."""
    if isinstance(error, LeaseLostError):
        return "lease"
    if isinstance(error, (OutputError, OSError)):
        return "storage"
    return "system" if isinstance(error, AlreadyCommittedError) else "program"


def one_line(error: BaseException) -> str:
    """An error as one line for tables."""
    text = str(error).strip().splitlines()
    head = text[0] if text else ""
    return head if isinstance(error, UserError) else f"{type(error).__name__}: {head}"


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
