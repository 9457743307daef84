"""What a study found, as arrays and tidy tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from clray.study.config import Study
from clray.study.gradients import Compared, similarity
from clray.types import HostArray

WHOLE = "all"
"""What stands for the whole gradient among the names of parameter arrays."""


def similarity_arrays(
    sums: Sequence[tuple[HostArray, ...]], everything: HostArray, counts: HostArray, metrics: Sequence[str]
) -> dict[str, HostArray]:
    """``similarity.<metric>`` (F, S, R, T - 1, arrays) and ``whole.<metric>`` (F, S, R, T - 1), float32.

    Args:
        sums: for each task from 1 on the sums of ``gradients.Compared``, (F, S, R, arrays) each.
        everything: (T - 1, R, arrays) squared norms of the gradient of everything.
        counts: (arrays,) numbers in each parameter array.
    """
    found: dict[str, HostArray] = {}
    for metric in metrics:
        parts, wholes = [], []
        for of_task, norms in zip(sums, everything, strict=True):
            part, whole = similarity(Compared(*of_task), norms, counts, metric)
            parts.append(part)
            wholes.append(whole)
        found[f"similarity.{metric}"] = np.stack(parts, axis=3)
        found[f"whole.{metric}"] = np.stack(wholes, axis=3)
    return found


def similarity_table(arrays: Mapping[str, HostArray], study: Study, names: Sequence[str]) -> pa.Table:
    """One row a fraction, set, ideal model, task and parameter array (and the whole gradient); a column a metric."""
    columns = {
        metric: np.concatenate([arrays[f"similarity.{metric}"], arrays[f"whole.{metric}"][..., None]], axis=-1)
        for metric in study.similarity
    }
    shape = next(iter(columns.values())).shape
    at = [index.ravel() for index in np.indices(shape)]
    axes = {
        "fraction": pa.array(np.asarray(study.memory.fractions)[at[0]]),
        "sample": pa.array(at[1].astype(np.int32)),
        "repeat": pa.array(np.asarray(study.repeat_numbers, np.int16)[at[2]]),
        "task": pa.array((at[3] + 1).astype(np.int32)),
        "parameter": pa.DictionaryArray.from_arrays(pa.array(at[4].astype(np.int32)), pa.array([*names, WHOLE])).cast(pa.string()),
    }
    return pa.table(axes | {name: pa.array(values.ravel()) for name, values in columns.items()})


def downstream_table(accuracy: HostArray, study: Study) -> pa.Table:
    """One row a fraction, repeat, trained task and evaluated task.

    Args:
        accuracy: (F, R, T, E).
    """
    at = [index.ravel() for index in np.indices(accuracy.shape)]
    return pa.table(
        {
            "fraction": pa.array(np.asarray(study.downstream_fractions)[at[0]]),
            "repeat": pa.array(np.asarray(study.repeat_numbers, np.int16)[at[1]]),
            "task": pa.array(at[2].astype(np.int32)),
            "eval_task": pa.array(np.asarray(study.eval_task_numbers, np.int32)[at[3]]),
            "accuracy": pa.array(accuracy.ravel()),
        }
    )


def joined_table(method: str, arrays: Mapping[str, HostArray], accuracy: HostArray, study: Study, names: Sequence[str]) -> pa.Table:
    """Similarities beside what networks trained with these memory sets reached, a row a fraction, repeat, task and array.

    ``<metric>`` is that of the set that was trained with, ``<metric>_mean`` the mean over all sets of the fraction; ``accuracy`` is the
    mean over the tasks so far after training the task, ``accuracy_past`` that over those before it.

    Args:
        arrays: see ``similarity_arrays``.
        accuracy: (F', R, T, E) of the fractions that were trained with.
    """
    chosen = [study.memory.fractions.index(fraction) for fraction in study.downstream_fractions]
    tasks = np.arange(1, study.sequence.n_tasks)
    evaluated = np.asarray(study.eval_task_numbers)
    shape = (len(chosen), accuracy.shape[1], len(tasks), len(names) + 1)
    at = [index.ravel() for index in np.indices(shape)]
    columns = {
        "method": pa.array([method] * at[0].size),
        "fraction": pa.array(np.asarray(study.downstream_fractions)[at[0]]),
        "repeat": pa.array(np.asarray(study.repeat_numbers, np.int16)[at[1]]),
        "task": pa.array(tasks[at[2]].astype(np.int32)),
        "parameter": pa.array(np.asarray([*names, WHOLE], object)[at[3]].tolist()),
    }
    for metric in study.similarity:
        both = np.concatenate([arrays[f"similarity.{metric}"], arrays[f"whole.{metric}"][..., None]], axis=-1)[chosen]  # (F', S, R, T-1, P)
        columns[metric] = pa.array(both[:, 0].ravel())
        columns[f"{metric}_mean"] = pa.array(both.mean(axis=1).astype(np.float32).ravel())
    for name, past_only in (("accuracy", False), ("accuracy_past", True)):
        means = [_mean(accuracy[:, :, task][..., evaluated < task + (not past_only)]) for task in tasks]
        columns[name] = pa.array(np.stack(means, axis=-1)[at[0], at[1], at[2]].astype(np.float32))
    return pa.table(columns)


def _mean(values: HostArray) -> HostArray:
    """Over the last axis; NaN where it is empty."""
    return values.mean(axis=-1) if values.shape[-1] else np.full(values.shape[:-1], np.nan)
