"""What is logged of a committed task: read from its files, so that it is the same whoever reads it and when."""

from __future__ import annotations

import datetime
import math
import warnings
from collections.abc import Sequence

import numpy as np

from clray.loggers.base import Point
from clray.store.commit import Commit
from clray.store.filesystem import Storage
from clray.store.layout import END, INITIAL, METRICS, TRAIN, SweepLayout, task_folder
from clray.store.reader import read_commit, read_table
from clray.store.rows import numbers_of

MOST_TASKS = 20
"""Evaluated tasks with a curve of their own. Of more, only the task in training and the mean over those seen are logged."""


class NotCommittedError(Exception):
    """A task that should be logged is not there (any more)."""


def points_of(storage: Storage, trial_id: str, task: int, eval_tasks: Sequence[int], batches_per_task: int) -> list[Point]:
    """The points of one task, one a log point and one after its last batch; of task 0 also that of the untrained network.

    Names of values: ``accuracy/task_003`` (on one task), ``accuracy/seen`` (mean over the tasks up to this one),
    ``accuracy/current`` (on this one), the same for ``loss``, and ``train/accuracy``, ``train/loss``. Means over the repeats
    that are finite.
    """
    commit = _commit(storage, trial_id, task_folder(task))
    metrics, train, end = (read_table(storage, commit, name) for name in (METRICS, TRAIN, END))
    steps = numbers_of(train["step"])
    n_repeats = end.num_rows // len(eval_tasks)
    steps = steps[::n_repeats]
    shape = (len(steps), n_repeats, len(eval_tasks))
    curves = {key: _mean(numbers_of(metrics[key]).reshape(shape)) for key in ("accuracy", "loss")}  # (L, E)
    batches = {key: _mean(numbers_of(train[key]).reshape(shape[:2])) for key in ("accuracy", "loss")}  # (L,)
    last = {key: _mean(numbers_of(end[key]).reshape(1, *shape[1:]))[0] for key in ("accuracy", "loss")}  # (E,)
    start, when = task * batches_per_task, _seconds(commit)
    points = []
    if task == 0:
        before = read_table(storage, _commit(storage, trial_id, INITIAL), END)
        untrained = {key: _mean(numbers_of(before[key]).reshape(1, *shape[1:]))[0] for key in ("accuracy", "loss")}
        points.append(Point(0, when, _finite(_evaluated(untrained, task, eval_tasks))))
    for log, step in enumerate(steps):
        values = _evaluated({key: curve[log] for key, curve in curves.items()}, task, eval_tasks)
        values |= {f"train/{key}": float(curve[log]) for key, curve in batches.items()}
        points.append(Point(start + int(step), when, _finite(values)))
    if steps[-1] != batches_per_task:
        points.append(Point(start + batches_per_task, when, _finite(_evaluated(last, task, eval_tasks))))
    return points


def _commit(storage: Storage, trial_id: str, folder: str) -> Commit:
    commit = read_commit(storage, SweepLayout().trial(trial_id), folder)
    if commit is None:
        raise NotCommittedError(f"{folder} of {trial_id} is not committed")
    return commit


def _seconds(commit: Commit) -> float:
    return datetime.datetime.fromisoformat(commit.time).timestamp()


def _mean(values: np.ndarray) -> np.ndarray:
    """Over repeats, axis 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of repeats that all diverged there is no mean
        return np.asarray(np.nanmean(values.astype(np.float64), axis=1))


def _evaluated(values: dict[str, np.ndarray], task: int, eval_tasks: Sequence[int]) -> dict[str, float]:
    found: dict[str, float] = {}
    seen = [column for column, number in enumerate(eval_tasks) if number <= task]
    for key, by_task in values.items():
        if len(eval_tasks) <= MOST_TASKS:
            found |= {f"{key}/{task_folder(number)}": float(by_task[column]) for column, number in enumerate(eval_tasks)}
        if seen:
            found[f"{key}/seen"] = float(by_task[seen].mean())
        if task in eval_tasks:
            found[f"{key}/current"] = float(by_task[eval_tasks.index(task)])
    return found


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}
