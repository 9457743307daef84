"""Metrics of the accuracy matrix.

``A[i, j]`` is the accuracy on evaluated task j after training on task i, over T trained tasks. All functions take a trailing
repeat axis and return one value a repeat; where a metric needs more tasks than there are, it is NaN. NaN in, NaN out: a
diverged repeat stays visible.

Shapes: ``matrix`` (T, E, R), ``initial`` (E, R); ``tasks`` (E,) gives the task number of each evaluated column.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def average_accuracy(matrix: Floats) -> Floats:
    """ACC: mean over evaluated tasks of the accuracy after the last task.

    References: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), section 2.
    """
    return matrix[-1].mean(axis=0)


def learning_accuracy(matrix: Floats, tasks: Ints) -> Floats:
    """Mean over tasks of the accuracy right after the task was trained.

    References: Riemer et al. 2019 (arXiv 1810.11910), section 6.1.
    """
    return _mean(_after_own_task(matrix, tasks))


def forgetting(matrix: Floats, tasks: Ints) -> Floats:
    """Mean over all tasks but the last of the best accuracy at any earlier task end minus the final one.

    References: Chaudhry et al. 2018 (arXiv 1801.10112), equation 3: the maximum runs over all ends before the last, also
    those before the task itself was trained.
    """
    past = tasks < len(matrix) - 1
    if len(matrix) < 2:
        return _mean(matrix[0][past])
    return _mean(matrix[:-1].max(axis=0)[past] - matrix[-1][past])


def forgetting_from_first(matrix: Floats, tasks: Ints) -> Floats:
    """Mean over all tasks but the last of the accuracy right after the task minus the final one (equals -BWT)."""
    return -backward_transfer(matrix, tasks)


def backward_transfer(matrix: Floats, tasks: Ints) -> Floats:
    """BWT: mean over all tasks but the last of the final accuracy minus the one right after the task.

    References: Lopez-Paz & Ranzato 2017, section 2.
    """
    past = tasks < len(matrix) - 1
    return _mean((matrix[-1] - _after_own_task(matrix, tasks))[past])


def forward_transfer(matrix: Floats, initial: Floats, tasks: Ints) -> Floats:
    """FWT: mean over all tasks but the first of the accuracy right before the task minus that of the untrained network.

    References: Lopez-Paz & Ranzato 2017, section 2; their baseline of random initialisation is ``initial``.
    """
    later = tasks > 0
    before = matrix[tasks[later] - 1, np.flatnonzero(later)]
    return _mean(before - initial[later])


def summary(matrix: Floats, initial: Floats, tasks: Ints) -> dict[str, Floats]:
    """All metrics of a trial, each (R,): the columns of trials.parquet."""
    return {
        "acc": average_accuracy(matrix),
        "forgetting": forgetting(matrix, tasks),
        "forgetting_from_first": forgetting_from_first(matrix, tasks),
        "bwt": backward_transfer(matrix, tasks),
        "fwt": forward_transfer(matrix, initial, tasks),
        "learning_acc": learning_accuracy(matrix, tasks),
    }


def mean_and_sem(values: Floats) -> tuple[float, float]:
    """Mean and standard error of the mean (deviation with n - 1, over sqrt n) of the repeats that are not NaN."""
    kept = np.asarray(values, np.float64)
    kept = kept[~np.isnan(kept)]
    mean = float(kept.mean()) if len(kept) else float("nan")
    sem = float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else float("nan")
    return mean, sem


def _after_own_task(matrix: Floats, tasks: Ints) -> Floats:
    return matrix[tasks, np.arange(len(tasks))]


def _mean(values: Floats) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean over no tasks is NaN, as documented
        return np.asarray(values.mean(axis=0))
