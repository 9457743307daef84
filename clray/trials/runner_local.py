"""Runs jobs one after the other in this process: no Ray, the same interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from clray.process import available_cpus, configure_jax
from clray.trials.job import Job, Outcome, run_job

OnEvent = Callable[[str, Mapping[str, Any]], None]


class Runner(Protocol):
    """What runs jobs."""

    def run(self, jobs: Sequence[Job], on_event: OnEvent) -> Iterator[Outcome]:
        """Runs jobs and yields an outcome each, in the order in which they end.

        Args:
            on_event: called with (trial id, event) as trials start and commit tasks.
        """
        ...


class LocalRunner:
    """The in-process runner. JAX uses a GPU where it finds one, else one CPU device a core."""

    def run(self, jobs: Sequence[Job], on_event: OnEvent) -> Iterator[Outcome]:
        configure_jax(available_cpus())
        for job in jobs:
            on_event(job.trial_id, {"event": "start", "attempt": job.attempt})
            yield run_job(job, lambda event, trial_id=job.trial_id: on_event(trial_id, event))  # type: ignore[misc]
