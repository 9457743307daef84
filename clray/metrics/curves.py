"""Metrics of the whole course of the accuracy, not only of the ends of tasks.

Shapes: ``accuracy`` (T, L, R, E) at the log points, ``steps`` (L,) in batches from 1, ``end`` (T, E, R) after the last batch
of each task, ``initial`` (E, R) before any training, ``tasks`` (E,) the task number of each evaluated column. Row i is task
i; of a sequence that is not finished give the first tasks and only the columns of those.

At step 0 of a task the accuracy is the one that the task before ended with. NaN in, NaN out.
"""

from __future__ import annotations

import warnings

import numpy as np

from clray.metrics.accuracy import Floats, Ints


def area_matrix(accuracy: Floats, steps: Ints, end: Floats, initial: Floats) -> Floats:
    """The accuracy matrix as area under the curve: (T, E, R), the average over the batches of task i of the accuracy on task j.

    A[i, j] = 1/steps[-1] * integral of a_j over [0, steps[-1]] by the trapezoidal rule. Every metric of ``accuracy`` that
    takes a matrix takes this one as well; what was at the end of a task then is on average while it was trained.
    """
    times = np.concatenate([[0.0], steps])
    values = with_starts(accuracy, end, initial)
    area = np.trapezoid(values, times, axis=1) / times[-1]
    return np.asarray(area.transpose(0, 2, 1))


def with_starts(accuracy: Floats, end: Floats, initial: Floats) -> Floats:
    """(T, 1 + L, R, E): the curves with the value at step 0 of each task in front."""
    starts = np.concatenate([initial[None], end[:-1]]).transpose(0, 2, 1)
    return np.concatenate([starts[:, None], accuracy], axis=1)


def learning_time(accuracy: Floats, steps: Ints, end: Floats, initial: Floats, tasks: Ints, chance: Floats | float) -> Floats:
    """Effective learning time of each task in batches, (E, R).

    u(s) = 1 - P(s) is what is not learned yet of task j at step s of its own training (P: see ``chance_corrected``). Its
    participation ratio (integral of u)^2 / (integral of u^2) is the time over which u is spread: k for a network that knows
    nothing up to step k and everything afterwards, twice the time constant for an exponential, the whole task where nothing
    is learned; 0 for a task that is known from the start. Integrals by the trapezoidal rule over the batches of the task.
    """
    times = np.concatenate([[0.0], steps])
    own = with_starts(accuracy, end, initial)[tasks, :, :, np.arange(len(tasks))]  # (E, 1 + L, R)
    unlearned = 1.0 - chance_corrected(own, np.broadcast_to(chance, len(end))[tasks])
    total = np.trapezoid(unlearned, times, axis=1)
    squared = np.trapezoid(unlearned**2, times, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(squared == 0.0, 0.0, total**2 / squared)


def largest_dip(accuracy: Floats, end: Floats, tasks: Ints) -> Floats:
    """Largest drop of each task's accuracy below what it was before, at any time after its own training: (E, R).

    max over s <= t of a_j(s) - a_j(t), s and t running over the end of task j, all later log points and ends. It sees the
    drop right after a switch of tasks that is made good later on. NaN for the last task, after which nothing comes.

    References: De Lange et al. 2023 (arXiv 2205.13452) define the stability gap and measure it by the minimum accuracy;
    the drop from the running maximum is ours.
    """
    dips = np.full((len(tasks), end.shape[2]), np.nan)
    both = np.concatenate([accuracy, end.transpose(0, 2, 1)[:, None]], axis=1)  # (T, L + 1, R, E)
    for column, task in enumerate(tasks):
        later = both[task + 1 :, :, :, column].reshape(-1, end.shape[2])
        if len(later):
            course = np.concatenate([end[task, column][None], later])
            dips[column] = (np.maximum.accumulate(course) - course).max(axis=0)
    return dips


def expert_transfer(accuracy: Floats, expert: Floats, tasks: Ints) -> Floats:
    """Forward transfer of each task against its expert, (E, R).

    (a_j - b_j) / (1 - b_j): a_j is the mean over the log points of task j of the accuracy on it, b_j the same of a fresh
    network that was trained on task j alone. 0: as fast as from scratch; 1: right from the first batch; negative: slower.
    NaN where the expert is perfect at every log point.

    Args:
        expert: (T, L, R), at the same steps as ``accuracy``.

    References: Wolczyk et al. 2021 (arXiv 2105.10919), section 4.
    """
    own = accuracy.mean(axis=1)[tasks, :, np.arange(len(tasks))]
    reference = expert.mean(axis=1)[tasks]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(reference == 1.0, np.nan, (own - reference) / (1.0 - reference))


def chance_corrected(accuracy: Floats, chance: Floats | float) -> Floats:
    """P = (A - chance) / (1 - chance): 0 is guessing, 1 is perfect, whatever the number of classes.

    Args:
        accuracy: any shape.
        chance: a scalar, or one number for each entry of the first axis.

    References: Cohen 1960 (kappa), with the agreement by chance fixed at ``chance`` = 1/C.
    """
    accuracy, chance = np.asarray(accuracy), np.asarray(chance)
    if chance.ndim:
        chance = chance.reshape(-1, *[1] * (accuracy.ndim - 1))
    return (accuracy - chance) / (1.0 - chance)


def mean_over_tasks(values: Floats) -> Floats:
    """(R,) from (E, R): the mean over the tasks for which there is a value; NaN where a repeat has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=0))
