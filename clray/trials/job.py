"""One attempt at one pack of trials in this process: what a worker does, with or without Ray."""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clray.artifacts import TrialFolders, trial_log
from clray.documents import Document, parse_experiment
from clray.errors import LeaseLostError, OutputError
from clray.store.filesystem import Storage
from clray.store.lease import fence_of
from clray.study.config import Study
from clray.trials.attempt import Attempt, JobTrial, Outcome

if TYPE_CHECKING:
    from clray.config import Experiment
    from clray.loggers.emit import Emitter

OnEvent = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """A pack of trials that run in one task. Plain data, so that it travels anywhere.

    Attributes:
        root: the sweep's folder, a path or URL.
        trials: they share a program; see ``clray.trials.pack``.
        lease: epoch and nonce of the driver's lease, which every commit is checked against; None outside a sweep.
    """

    root: str
    trials: tuple[JobTrial, ...]
    lease: tuple[int, str] | None = None

    def plain(self) -> dict[str, Any]:
        """The job as dicts and lists; the inverse of ``from_plain``."""
        return {"root": self.root, "trials": [vars(trial) for trial in self.trials], "lease": list(self.lease) if self.lease else None}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Job:
        """See ``plain``."""
        lease = plain["lease"]
        return Job(plain["root"], tuple(JobTrial(**trial) for trial in plain["trials"]), (lease[0], lease[1]) if lease else None)


def run_job(job: Job, on_event: OnEvent | None = None, node: str = "") -> list[Outcome]:
    """Runs one attempt at every trial of a pack; never raises for failures of trials.

    Each trial's log goes to its own file, and a failure's traceback to a file beside it. Where the driver has lost its lease
    nothing is written.

    Args:
        node: the cluster's name of this machine, for the records.
    """
    storage = Storage.of(job.root)
    fence = fence_of(storage, job.lease)
    folders = [TrialFolders(storage, t.trial_id, f"{t.attempt:03d}-{secrets.token_hex(3)}", fence) for t in job.trials]
    attempts = {t.trial_id: Attempt(storage, t, node, own.check_ours) for t, own in zip(job.trials, folders, strict=True)}
    try:
        if fence:
            fence.check()
    except LeaseLostError as error:
        return [attempt.end(error) for attempt in attempts.values()]

    def told(trial_id: str, event: Mapping[str, Any]) -> None:
        attempts[trial_id].keep_log()
        if on_event:
            on_event(trial_id, event)

    for attempt in attempts.values():
        attempt.begin()
    with contextlib.ExitStack() as logs:
        for attempt in attempts.values():
            logs.enter_context(attempt.captured_log())
        try:
            results = _run_pack(job.trials, folders, told)
        except Exception as error:
            results = [error] * len(attempts)
        except BaseException:
            for attempt in attempts.values():
                attempt.interrupted()
            raise
        results = [_explained(result, own, job.trials) for result, own in zip(results, folders, strict=True)]
        return [attempt.end(result) for attempt, result in zip(attempts.values(), results, strict=True)]


def _run_pack(trials: Sequence[JobTrial], folders: Sequence[TrialFolders], on_event: OnEvent) -> list[Any]:
    from clray.experiment import Member, TrialPack

    experiments = {trial.trial_id: parse_experiment(Document(trial.trial_id, dict(trial.experiment))) for trial in trials}
    emitted = _Emitted(folders, experiments, on_event)
    members = []
    for trial, own in zip(trials, folders, strict=True):
        members.append(Member(experiments[trial.trial_id], own, functools.partial(emitted, trial.trial_id)))
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

    def __init__(self, folders: Sequence[TrialFolders], experiments: Mapping[str, Experiment], on_event: OnEvent):
        self.results: list[Any] = [None] * len(experiments)
        self._experiments = experiments
        self._folders = folders
        self._on_event = on_event
        self._emitter: Emitter | None = None

    def __enter__(self) -> None:
        if any(experiment.loggers for experiment in self._experiments.values()):
            from clray.data.cache import open_dataset
            from clray.loggers.emit import Emitter
            from clray.sizes import sizes_of

            first = next(iter(self._experiments.values()))
            batches = sizes_of(first, open_dataset(first.dataset).info).total_batches
            checks = {own.trial_id: own.check_ours for own in self._folders}
            self._emitter = Emitter(self._folders[0].storage, self._experiments, batches, self._warn, checks)

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


def _explained(result: Any, folders: TrialFolders, trials: Sequence[JobTrial]) -> Any:
    """A failure's own words where those of the library say something else.

    A trial that was given to somebody else fails in many ways, all of them because of that. A device that ran out of memory
    says what it wanted at that moment, which helps nobody.
    """
    from clray.trials.device_memory import explain, is_out_of_memory

    if not isinstance(result, Exception):
        return result
    try:
        folders.check_ours()
    except LeaseLostError as lost:
        lost.__cause__ = result
        return lost
    except OutputError:
        return result
    return explain(result, trials) if is_out_of_memory(result) else result
