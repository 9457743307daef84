"""One attempt at one pack of trials in this process: what a worker does, with or without Ray."""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import logging
import os
import platform
import secrets
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clray.artifacts import TrialFolders, append_log, trial_log, write_attempt
from clray.documents import Document, parse_experiment
from clray.errors import AlreadyCommittedError, OutputError, UserError
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.study.config import Study

if TYPE_CHECKING:
    from clray.config import Experiment
    from clray.loggers.emit import Emitter

OnEvent = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class JobTrial:
    """One attempt at one trial.

    Attributes:
        experiment: plain data that ``parse_experiment`` takes.
        attempt: counted from 1 over all runs of the sweep.
    """

    trial_id: str
    experiment: Mapping[str, Any]
    attempt: int


@dataclass(frozen=True)
class Job:
    """A pack of trials that run in one task. Plain data, so that it travels anywhere.

    Attributes:
        root: the sweep's folder, a path or URL.
        trials: they share a program; see ``clray.trials.pack``.
    """

    root: str
    trials: tuple[JobTrial, ...]

    def plain(self) -> dict[str, Any]:
        """The job as dicts and lists; the inverse of ``from_plain``."""
        return {"root": self.root, "trials": [vars(trial) for trial in self.trials]}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Job:
        """See ``plain``."""
        return Job(plain["root"], tuple(JobTrial(**trial) for trial in plain["trials"]))


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a trial ended.

    Attributes:
        status: done, diverged (both finished) or failed.
        cause: empty, ``program`` (a bug, a bad value: not retried), ``storage`` (retried when the command is given again) or
            ``system`` (worker or node lost: retried).
        error: one line.
        attempt: number of the attempt.
    """

    trial_id: str
    status: str
    cause: str = ""
    error: str = ""
    attempt: int = 1


def run_job(job: Job, on_event: OnEvent | None = None) -> list[Outcome]:
    """Runs one attempt at every trial of a pack; never raises for failures of trials.

    Each trial's log goes to its own file, and a failure's traceback to a file beside it.
    """
    storage = Storage.of(job.root)
    attempts = [Attempt(storage, trial) for trial in job.trials]
    for attempt in attempts:
        attempt.begin()
    with contextlib.ExitStack() as logs:
        for attempt in attempts:
            logs.enter_context(attempt.captured_log())
        try:
            results = _run_pack(storage, job.trials, on_event or (lambda trial_id, event: None))
        except Exception as error:
            results = [error] * len(attempts)
        except BaseException:
            for attempt in attempts:
                attempt.interrupted()
            raise
        return [attempt.end(result) for attempt, result in zip(attempts, results, strict=True)]


def _run_pack(storage: Storage, trials: Sequence[JobTrial], on_event: OnEvent) -> list[Any]:
    from clray.experiment import Member, TrialPack

    experiments = {trial.trial_id: parse_experiment(Document(trial.trial_id, dict(trial.experiment))) for trial in trials}
    emitted = _Emitted(storage, experiments, on_event)
    members = []
    for trial in trials:
        folders = TrialFolders(storage, trial.trial_id, f"{trial.attempt:03d}-{secrets.token_hex(3)}")
        members.append(Member(experiments[trial.trial_id], folders, functools.partial(emitted, trial.trial_id)))
    pack: type[TrialPack] = TrialPack
    if isinstance(members[0].experiment, Study):
        from clray.study.run import StudyPack

        pack = StudyPack
    with emitted:
        emitted.results = list(pack(members).run())
    return emitted.results


class _Emitted:
    """Passes events on, and commits to the loggers of the trials, where they have any; a context manager.

    Attributes:
        results: a trial each, once they are known.
    """

    def __init__(self, storage: Storage, experiments: Mapping[str, Experiment], on_event: OnEvent):
        self.results: list[Any] = [None] * len(experiments)
        self._experiments = experiments
        self._storage = storage
        self._on_event = on_event
        self._emitter: Emitter | None = None

    def __enter__(self) -> None:
        if any(experiment.loggers for experiment in self._experiments.values()):
            from clray.data.cache import open_dataset
            from clray.loggers.emit import Emitter
            from clray.sizes import sizes_of

            first = next(iter(self._experiments.values()))
            batches = sizes_of(first, open_dataset(first.dataset).info).total_batches
            self._emitter = Emitter(self._storage, self._experiments, batches, self._warn)

    def __call__(self, trial_id: str, event: Mapping[str, Any]) -> None:
        self._on_event(trial_id, event)
        if self._emitter and event["event"] == "task":
            self._emitter.committed(trial_id, event["task"], last=event["task"] + 1 == event["n_tasks"])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._emitter:
            failed = error if isinstance(error, Exception) else None
            self._emitter.end({trial_id: failed or result for trial_id, result in zip(self._experiments, self.results, strict=True)})

    def _warn(self, trial_id: str, text: str) -> None:
        trial_log(trial_id).warning(text)
        self._on_event(trial_id, {"event": "warning", "text": text})


class Attempt:
    """The record that one attempt at one trial leaves: a JSON file, the log, and the traceback of a failure."""

    def __init__(self, storage: Storage, trial: JobTrial):
        self._storage = storage
        self._layout = SweepLayout().trial(trial.trial_id)
        self._trial = trial
        self._log = io.StringIO()
        self._begun = datetime.datetime.now(datetime.UTC)
        self._record: dict[str, Any] = {
            "attempt": trial.attempt,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "start": self._begun.isoformat(timespec="milliseconds"),
        }

    def begin(self) -> None:
        """Says that the attempt runs."""
        self._write({"outcome": "running"})

    def interrupted(self) -> None:
        """Says that somebody stopped the attempt."""
        with contextlib.suppress(Exception):
            append_log(self._storage, self._layout, self._log.getvalue())
            self._write({"end": now(), "outcome": "interrupted"})

    def end(self, result: Mapping[str, Any] | Exception) -> Outcome:
        """Says how the attempt ended."""
        trial_id, number = self._trial.trial_id, self._trial.attempt
        if isinstance(result, Exception):
            outcome = Outcome(trial_id, "failed", cause_of(result), one_line(result), number)
            trace: str | None = "".join(traceback.format_exception(result))
        else:
            outcome, trace = Outcome(trial_id, result["status"], attempt=number), None
        with contextlib.suppress(Exception):  # the failure itself may be that nothing can be written any more
            append_log(self._storage, self._layout, self._log.getvalue() + (trace or ""), trace)
            self._write({"end": now(), "outcome": outcome.status, "cause": outcome.cause, "error": outcome.error})
        return outcome

    def _write(self, fields: Mapping[str, Any]) -> None:
        write_attempt(self._storage, self._layout, self._trial.attempt, {**self._record, **fields})

    @contextlib.contextmanager
    def captured_log(self) -> Iterator[None]:
        """Collects what is logged for this trial, and what is logged for none in particular."""
        handler = logging.StreamHandler(self._log)
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
