"""More metrics of the accuracy matrix: relative stability, transfer to tasks not yet seen, the course of forgetting.

Shapes as in ``accuracy``: ``matrix`` (T, E, R), ``initial`` (E, R), ``tasks`` (E,). Functions return one value a repeat and
NaN where there are too few tasks. They take the accuracies at the ends of tasks, areas under the curve (``area_matrix``) and
both corrected for chance alike.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from clray.metrics.accuracy import Floats, Ints, summary
from clray.metrics.curves import area_matrix, chance_corrected, expert_transfer, largest_dip, learning_time, mean_over_tasks


class Course(NamedTuple):
    """The accuracies of one trial. Row i is task i; columns are evaluated tasks among these rows."""

    accuracy: Floats  # [T, L, R, E] at the log points
    steps: Ints  # [L] batches
    end: Floats  # [T, E, R] after each task's last batch
    initial: Floats  # [E, R] before any training
    tasks: Ints  # [E] task numbers
    expert: Floats | None  # [T, L, R] of the expert of each task on it


def stability_ratio(matrix: Floats, tasks: Ints) -> Floats:
    """Mean over all tasks but the last of (A[T-1, j] - A[j, j]) / (A[T-1, j] + A[j, j]).

    The change of each task's accuracy from its own end to the end of the sequence, relative to their sum: -1 is all lost, 0
    all kept, and small accuracies count as much as large ones. NaN for a task that is 0 at both times.
    """
    past = tasks < len(matrix) - 1
    own, last = matrix[tasks, np.arange(len(tasks))][past], matrix[-1][past]
    with np.errstate(invalid="ignore"):
        return _mean((last - own) / (last + own))


def zero_shot(matrix: Floats, tasks: Ints) -> Floats:
    """Mean accuracy on tasks that were not trained yet, over all pairs i < j of A[i, j].

    References: Diaz-Rodriguez et al. 2018 (arXiv 1810.13166), forward transfer as the mean of the upper triangle.
    """
    ahead = np.arange(len(matrix))[:, None] < tasks
    return _mean(matrix[ahead])


def anytime_accuracy(matrix: Floats, tasks: Ints) -> Floats:
    """Mean over trained tasks i of the mean accuracy over the tasks seen by then, j <= i.

    References: the average incremental accuracy of Rebuffi et al. 2017 (arXiv 1611.07725) where the matrix holds ends of
    tasks; the average anytime accuracy of Caccia et al. 2022 (arXiv 2104.05025) where it holds areas under the curve.
    """
    seen = [matrix[task][tasks <= task].mean(axis=0) for task in range(len(matrix)) if (tasks <= task).any()]
    return np.asarray(np.mean(seen, axis=0))


def forgetting_slope(matrix: Floats, tasks: Ints) -> Floats:
    """Mean over tasks of the slope of accuracy over the number of tasks trained since, in accuracy per task.

    The least-squares line through A[j, j], A[j+1, j], ..., A[T-1, j]; the last task has one point and no slope. Negative
    where tasks are forgotten.
    """
    slopes = []
    for column, task in enumerate(tasks):
        course = matrix[task:, column]
        if len(course) > 1:
            since = np.arange(len(course)) - (len(course) - 1) / 2
            slopes.append((since[:, None] * (course - course.mean(axis=0))).sum(axis=0) / (since**2).sum())
    return _mean(np.asarray(slopes).reshape(len(slopes), matrix.shape[2]))


def matrix_metrics(matrix: Floats, initial: Floats, tasks: Ints) -> dict[str, Floats]:
    """All metrics of one accuracy matrix, (R,) each."""
    return {
        **summary(matrix, initial, tasks),
        "zero_shot": zero_shot(matrix, tasks),
        "anytime_acc": anytime_accuracy(matrix, tasks),
        "forgetting_slope": forgetting_slope(matrix, tasks),
    }


def course_metrics(course: Course, chance: Floats | float) -> dict[str, Floats]:
    """Every metric of one trial, (R,) each.

    ``area_`` stands for areas under the curve instead of ends of tasks, ``corrected_`` for accuracies corrected for chance.
    learning_time is corrected by its definition, and expert_transfer is the same with and without: its numerator and its
    denominator scale alike. stability_ratio has no corrected form: near chance its denominator would be near 0 and change sign.

    Args:
        chance: accuracy of guessing, 1/C; or (T,) that while each task is trained, where outputs are added with tasks.

    Returns:
        NaN for a repeat that diverged, in all that looks at a time after that. A task that its expert solves perfectly from
        the first log point on has no expert_transfer and is left out of the mean.
    """
    accuracy, steps, end, initial, tasks, expert = course
    chance = np.broadcast_to(chance, len(end))
    area = area_matrix(accuracy, steps, end, initial)
    by_task = {
        "learning_time": learning_time(accuracy, steps, end, initial, tasks, chance),
        "largest_dip": largest_dip(accuracy, end, tasks),
        "corrected_largest_dip": largest_dip(chance_corrected(accuracy, chance), chance_corrected(end, chance), tasks),
    }
    if expert is not None:
        by_task["expert_transfer"] = expert_transfer(accuracy, expert, tasks)
    diverged = np.isnan(end).any(axis=(0, 1))
    metrics = matrix_metrics(end, initial, tasks) | {"stability_ratio": stability_ratio(end, tasks)}
    metrics |= {name: np.where(diverged, np.nan, mean_over_tasks(values)) for name, values in by_task.items()}
    metrics |= _prefixed("area_", matrix_metrics(area, initial, tasks) | {"stability_ratio": stability_ratio(area, tasks)})
    floor = chance_corrected(initial, chance[0])
    metrics |= _prefixed("corrected_", matrix_metrics(chance_corrected(end, chance), floor, tasks))
    return metrics | _prefixed("corrected_area_", matrix_metrics(chance_corrected(area, chance), floor, tasks))


def _prefixed(prefix: str, metrics: dict[str, Floats]) -> dict[str, Floats]:
    return {prefix + name: values for name, values in metrics.items()}


def _mean(values: Floats) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean over no tasks is NaN, as documented
        return np.asarray(values.mean(axis=0))
