"""One attempt at one trial in this process: what a worker does, with or without Ray."""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os
import platform
import secrets
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clray.config import Experiment
from clray.documents import Document, parse_experiment
from clray.errors import AlreadyCommittedError, OutputError, UserError
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout

log = logging.getLogger("clray")


@dataclass(frozen=True)
class Job:
    """One attempt at one trial. Plain data, so that it travels anywhere.

    Attributes:
        trial_id: of the trial.
        experiment: plain data that ``parse_experiment`` takes.
        root: the sweep's folder, a path or URL.
        attempt: counted from 1 over all runs of the sweep.
    """

    trial_id: str
    experiment: Mapping[str, Any]
    root: str
    attempt: int

    @classmethod
    def of(cls, trial_id: str, experiment: Experiment, root: str, attempt: int) -> Job:
        """A job from a validated experiment."""
        return cls(trial_id, experiment.plain(), root, attempt)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        status: done, diverged (both finished) or failed.
        cause: empty, ``program`` (a bug, a bad value: not retried), ``storage`` (retried when the command is given again) or
            ``system`` (worker or node lost: retried).
        error: one line.
        seconds: wall time of the attempt.
    """

    trial_id: str
    status: str
    cause: str = ""
    error: str = ""
    seconds: float = 0.0
    result: Mapping[str, Any] | None = None


def run_job(job: Job, report: Callable[[Mapping[str, Any]], None] | None = None) -> Outcome:
    """Runs one attempt; never raises for failures of the trial.

    Its log goes to the trial's own file, and a failure's traceback to a file beside it.
    """
    from clray.artifacts import TrialFolders, append_log, write_attempt

    storage = Storage.of(job.root)
    trial = SweepLayout().trial(job.trial_id)
    started = now()
    record = {"attempt": job.attempt, "host": socket.gethostname(), "pid": os.getpid(), "python": platform.python_version(), "start": started}
    write_attempt(storage, trial, job.attempt, {**record, "outcome": "running"})

    def end(outcome: Outcome) -> Outcome:
        write_attempt(storage, trial, job.attempt, {**record, "end": now(), "outcome": outcome.status, "cause": outcome.cause, "error": outcome.error})
        return outcome

    begun = datetime.datetime.now()
    with _captured_log() as text:
        try:
            from clray.experiment import TrialRun

            experiment = parse_experiment(Document(job.trial_id, dict(job.experiment)))
            folders = TrialFolders(storage, job.trial_id, f"{job.attempt:03d}-{secrets.token_hex(3)}")
            result = TrialRun(experiment, folders, report).run()
            append_log(storage, trial, text.getvalue())
        except BaseException as error:
            with contextlib.suppress(Exception):  # the failure itself may be that nothing can be written any more
                append_log(storage, trial, text.getvalue() + traceback.format_exc(), traceback.format_exc())
            if not isinstance(error, Exception):
                with contextlib.suppress(Exception):
                    end(Outcome(job.trial_id, "interrupted"))
                raise
            outcome = Outcome(job.trial_id, "failed", cause_of(error), one_line(error), _since(begun))
            with contextlib.suppress(Exception):
                end(outcome)
            return outcome
    return end(Outcome(job.trial_id, result["status"], seconds=_since(begun), result=result))


def cause_of(error: BaseException) -> str:
    """``storage`` for a full or broken disk (the same command may finish later), ``system`` for a lost race, else ``program``."""
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


def _since(begun: datetime.datetime) -> float:
    return (datetime.datetime.now() - begun).total_seconds()


@contextlib.contextmanager
def _captured_log() -> Iterator[io.StringIO]:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield text
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = True
