"""What a logger is: three calls, made one after the other by one thread for each trial.

``begin`` once, ``log`` for every committed task in order, ``finish`` at the end. All may be slow or fail without harm to the
training: a failure is told once, and at the next commit a new logger begins and is given what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from clray.store.filesystem import Storage


class TrialRun(NamedTuple):
    """The trial that is logged."""

    trial_id: str  # also the id, or the name, of the run in the backend
    sweep: str  # name of the sweep's folder
    storage: Storage  # that folder
    config: Mapping[str, Any]  # the experiment in canonical form: the same at every attempt
    n_tasks: int
    batches_per_task: int

    @property
    def n_batches(self) -> int:
        """Batches of the whole sequence."""
        return self.n_tasks * self.batches_per_task


class Point(NamedTuple):
    """Values at one moment. The last point of task t is at step (t + 1) * batches_per_task, of no other task at that step."""

    step: int  # batches since the start of the sequence
    time: float  # when the task was committed, seconds since 1970: the same however often the point is made
    values: Mapping[str, float]  # finite numbers, means over repeats


class Logger(Protocol):
    """One trial in one backend."""

    def begin(self, run: TrialRun) -> int | None:
        """Begins the run, or goes on with the one of an earlier attempt.

        Returns:
            How many tasks the backend holds already, or None where it cannot tell: then clray goes by its own note, which is
            made after ``log`` returns. A process killed between the two makes the same task come again.
        """
        ...

    def log(self, task: int, points: Sequence[Point]) -> None:
        """Takes the points of one task, in the order of steps, and keeps them for good before it returns."""
        ...

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Ends the run.

        Args:
            status: done, diverged, failed or interrupted; the last two may be continued by another attempt.
            metrics: final ones, means over repeats; empty unless done.
        """
        ...
