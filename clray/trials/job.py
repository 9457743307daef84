"""One attempt at one pack of trials in this process: what a worker does, with or without Ray."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clray.artifacts import TrialFolders
from clray.documents import Document, parse_experiment
from clray.errors import LeaseLostError, OutputError
from clray.store.filesystem import Storage
from clray.store.lease import fence_of
from clray.trials.attempt import Attempt, JobTrial, Outcome

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
    attempts = {trial.trial_id: Attempt(storage, trial, node) for trial in job.trials}
    fence = fence_of(storage, job.lease)
    try:
        if fence:
            fence.check()
    except LeaseLostError as error:
        return [attempt.end(error) for attempt in attempts.values()]

    def told(trial_id: str, event: Mapping[str, Any]) -> None:
        attempts[trial_id].keep_log()
        if on_event:
            on_event(trial_id, event)

    folders = [TrialFolders(storage, t.trial_id, f"{t.attempt:03d}-{secrets.token_hex(3)}", fence) for t in job.trials]
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

    members = []
    for trial, own in zip(trials, folders, strict=True):
        experiment = parse_experiment(Document(trial.trial_id, dict(trial.experiment)))
        members.append(Member(experiment, own, lambda event, trial_id=trial.trial_id: on_event(trial_id, event)))  # type: ignore[misc]
    return list(TrialPack(members).run())


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
