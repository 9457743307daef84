"""Runs jobs one after the other in this process: no Ray, the same interface."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from clray.process import available_cpus, configure_jax, machine_bytes
from clray.store.filesystem import Storage
from clray.trials.attempt import Outcome, close_attempt
from clray.trials.job import Job, OnEvent, run_job

MEMORY_SHARE = 0.5
"""Part of the memory that lanes may fill; the rest is for JAX itself, the data set and other programs."""


class Runner(Protocol):
    """What runs jobs."""

    def slots(self) -> int:
        """Jobs that can run at once."""
        ...

    def memory_bytes(self) -> int:
        """Memory that the lanes of one job may fill, on its device."""
        ...

    def on_gpu(self) -> bool:
        """Whether jobs train on GPUs."""
        ...

    def run(self, jobs: Sequence[Job], on_event: OnEvent, check: Callable[[], None]) -> Iterator[Outcome]:
        """Runs jobs and yields an outcome a trial, in the order in which they end. What the system lost goes out again first.

        Args:
            on_event: called with (trial id, event) as trials start, commit tasks and are retried.
            check: called now and then; raises where the run has to end.
        """
        ...


class LocalRunner:
    """The in-process runner. JAX uses a GPU where it finds one, else one CPU device a core."""

    def slots(self) -> int:
        return 1

    def memory_bytes(self) -> int:
        configure_jax(available_cpus())
        import jax

        device = jax.local_devices()[0]
        stats = device.memory_stats() if device.platform != "cpu" else None
        return int(MEMORY_SHARE * (stats["bytes_limit"] * len(jax.local_devices()) if stats else machine_bytes()))

    def on_gpu(self) -> bool:
        configure_jax(available_cpus())
        import jax

        return bool(jax.local_devices()[0].platform != "cpu")

    def run(self, jobs: Sequence[Job], on_event: OnEvent, check: Callable[[], None]) -> Iterator[Outcome]:
        configure_jax(available_cpus())
        waiting = deque(jobs)
        while waiting:
            check()
            job = waiting.popleft()
            for trial in job.trials:
                on_event(trial.trial_id, {"event": "start", "attempt": trial.attempt})
            ended, again = sort_outcomes(job, run_job(job, on_event), on_event)
            waiting.extend(again)
            yield from ended


def sort_outcomes(job: Job, outcomes: Sequence[Outcome], on_event: OnEvent) -> tuple[list[Outcome], list[Job]]:
    """Which trials of a job have ended, and what goes out again: failures of the system, while there are attempts left.

    The records of failed attempts are closed here, so that they are true also where a worker died.
    """
    storage = Storage.of(job.root)
    ended, again = [], []
    for trial, outcome in zip(job.trials, outcomes, strict=True):
        retry = close_attempt(storage, trial, outcome) if outcome.status == "failed" and outcome.cause != "lease" else None
        if retry is None:
            ended.append(outcome)
        else:
            on_event(trial.trial_id, {"event": "retry", "attempt": retry.attempt, "error": outcome.error})
            again.append(retry)
    return ended, [dataclasses.replace(job, trials=tuple(again))] if again else []
