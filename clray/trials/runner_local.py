"""Runs jobs one after the other in this process: no Ray, the same interface."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from clray.process import available_cpus, configure_jax
from clray.trials.job import Job, OnEvent, Outcome, run_job

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

    def run(self, jobs: Sequence[Job], on_event: OnEvent) -> Iterator[Outcome]:
        """Runs jobs and yields an outcome a trial, in the order in which they end.

        Args:
            on_event: called with (trial id, event) as trials start and commit tasks.
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
        return int(MEMORY_SHARE * (stats["bytes_limit"] * len(jax.local_devices()) if stats else host_memory_bytes()))

    def run(self, jobs: Sequence[Job], on_event: OnEvent) -> Iterator[Outcome]:
        configure_jax(available_cpus())
        for job in jobs:
            for trial in job.trials:
                on_event(trial.trial_id, {"event": "start", "attempt": trial.attempt})
            yield from run_job(job, on_event)


def host_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
