"""Measures that need weights or representations, one trial at a time: plasticity, movement of weights, drift, geometry.

Tasks are read one after the other and a slice of log points at a time, so memory does not grow with T or L beyond one set of
representations at the ends of tasks. Each task's table is kept (see ``measure_store``): a sweep that goes on only adds
what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from clray.metrics import geometry, plasticity
from clray.metrics.similarity import linear_cka, similarities
from clray.report.measure_store import MeasureStore
from clray.report.trial_files import TrialCurves, TrialFiles
from clray.store import layout as names

VERSION = "2"
MOST_MOMENTS = 100
"""Log points over all tasks at which representations are measured. Of more, as many of each task as fit, the last always."""
MOST_MATRIX_MOMENTS = 30

Advance = Callable[[], None]


@dataclass(frozen=True)
class Measures:
    """Everything measured of one trial; None where what it needs was not logged.

    Attributes:
        plasticity: task, step, repeat, and a column a measure.
        weights: task, step, repeat, parameter, norm, from_initial, from_task_start, initial_norm.
        drift: task, step, repeat, eval_task, and ``<measure>_initial`` (against the untrained network) and ``<measure>_own``
            (against the end of the task's own training).
        moments: eval_task, first, second, repeat, cka: between the ends of tasks, -1 being the untrained network.
        geometry: task, repeat, eval_task, capacity, radius, dimension at the ends of tasks.
    """

    plasticity: pd.DataFrame | None
    weights: pd.DataFrame | None
    drift: pd.DataFrame | None
    moments: pd.DataFrame | None
    geometry: pd.DataFrame | None


def measure(trial: TrialFiles, curves: TrialCurves, store: MeasureStore, with_geometry: bool, advance: Advance) -> Measures:
    """All measures of one trial.

    Args:
        with_geometry: also solve for the geometry of class manifolds, which takes far longer than the rest.
        advance: called once a task and measure.
    """
    reading = _Reading(trial, curves)
    hidden = all(trial.has(folder, names.REPRESENTATIONS) for folder in reading.folders)
    weights = all(trial.weight_files(folder) for folder in reading.folders)
    wanted = {
        "plasticity": (_plasticity, hidden),
        "weights": (_weights, weights),
        "drift": (_drift, hidden),
        "geometry": (_geometry, hidden and with_geometry and geometry.is_available()),
    }
    frames: dict[str, list[pd.DataFrame]] = {kind: [] for kind in wanted}
    for task in range(curves.n_tasks):
        key = f"{VERSION} {trial.key(reading.folders[: task + 2])}"
        for kind, (function, can) in wanted.items():
            if can:
                path = f"{trial.trial_id}/{names.task_folder(task)}.{kind}.parquet"
                table = store.get(path, key, lambda function=function, task=task: _arrow(function(reading, task)))  # type: ignore[misc]
                frames[kind].append(table.to_pandas())
            advance()
        reading.forget(task)
    found = {kind: pd.concat(parts, ignore_index=True) if parts else None for kind, parts in frames.items()}
    return Measures(**found, moments=_moments(reading, store) if hidden else None)


N_KINDS = 4
"""How often ``measure`` calls ``advance`` for each task."""


class _Reading:
    """The arrays of a trial, each read once where it is used task by task: in an object store they are read whole.

    Kept are those of the untrained network and of the last two tasks, and the representations of each task at its own end.
    """

    def __init__(self, trial: TrialFiles, curves: TrialCurves):
        self.trial = trial
        self.curves = curves
        self.folders = [names.INITIAL, *(names.task_folder(task) for task in range(curves.n_tasks))]
        self._open: dict[tuple[str, str], np.ndarray] = {}
        self._own_ends: dict[int, np.ndarray] = {}

    def array(self, folder: str, name: str) -> np.ndarray:
        if (folder, name) not in self._open:
            self._open[folder, name] = self.trial.array(folder, name)
        return self._open[folder, name]

    def hidden(self, task: int) -> np.ndarray:
        """(L, R, E, S, H); task -1 is the untrained network."""
        return self.array(self.folders[task + 1], names.REPRESENTATIONS)

    def own_end(self, column: int) -> np.ndarray:
        """(R, S, H) of an evaluated task at the end of its own training."""
        if column not in self._own_ends:
            place = (names.task_folder(int(self.curves.eval_tasks[column])), names.REPRESENTATIONS)
            array = self._open[place] if place in self._open else self.trial.array(*place)  # of earlier tasks not kept whole
            self._own_ends[column] = np.array(array[-1, :, column])
        return self._own_ends[column]

    def forget(self, task: int) -> None:
        """Lets go of what is not needed any more once ``task`` is done."""
        kept = {names.INITIAL, self.folders[task + 1]}
        self._open = {place: array for place, array in self._open.items() if place[0] in kept}


def _arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def _rows(axes: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A row for every combination of the axes, the last one fastest; values have the axes' shape."""
    grids = np.meshgrid(*axes.values(), indexing="ij")
    columns = {name: grid.ravel() for name, grid in zip(axes, grids, strict=True)}
    return pd.DataFrame(columns | {name: np.asarray(value, np.float32).ravel() for name, value in values.items()})


def _task_column(frame: pd.DataFrame, task: int) -> pd.DataFrame:
    frame.insert(0, "task", np.int32(task))
    return frame


def _plasticity(reading: _Reading, task: int) -> pd.DataFrame:
    """Over the samples of all evaluated tasks together."""
    curves, array = reading.curves, reading.hidden(task)
    logs = measured_logs(curves)
    values: dict[str, list[np.ndarray]] = {}
    for log in logs:
        pooled = np.asarray(array[log]).reshape(len(curves.repeats), -1, array.shape[-1])  # (R, E * S, H)
        stable, effective = plasticity.ranks(pooled)
        found = {
            "dormant_ratio": plasticity.dormant_ratio(pooled),
            "active_fraction": plasticity.active_fraction(pooled),
            "stable_rank": stable,
            "effective_rank": effective,
            "feature_norm": plasticity.feature_norm(pooled),
            "feature_variance": plasticity.feature_variance(pooled),
        }
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    axes = {"step": curves.steps[logs], "repeat": curves.repeats}
    return _task_column(_rows(axes, {name: np.stack(parts) for name, parts in values.items()}), task)


def _weights(reading: _Reading, task: int) -> pd.DataFrame:
    """Norm and distances of each parameter. A task starts from the last log point of the one before."""
    curves = reading.curves
    before, folder = reading.folders[task : task + 2]
    frames = []
    for parameter, file in reading.trial.weight_files(folder).items():
        now = reading.array(folder, file)
        initial, start = (np.asarray(reading.array(name, file)[-1]) for name in (names.INITIAL, before))
        logs = range(len(curves.steps))
        size = int(np.prod(now.shape[2:], dtype=np.int64))
        values = {
            "norm": np.stack([plasticity.weight_norm(np.asarray(now[log])) for log in logs]),
            "from_initial": np.stack([plasticity.weight_distance({"": now[log]}, {"": initial}) for log in logs]),
            "from_task_start": np.stack([plasticity.weight_distance({"": now[log]}, {"": start}) for log in logs]),
            "mean_absolute": np.stack([plasticity.weight_magnitude({"": now[log]}) for log in logs]),
        }
        values["initial_norm"] = np.broadcast_to(plasticity.weight_norm(initial), values["norm"].shape)
        frame = _rows({"step": curves.steps, "repeat": curves.repeats}, values)
        frame.insert(2, "parameter", parameter)
        frame.insert(3, "size", size)
        frame.insert(4, "axes", now.ndim - 2)
        frames.append(frame)
    return _task_column(pd.concat(frames, ignore_index=True), task)


def _drift(reading: _Reading, task: int) -> pd.DataFrame:
    """Similarity of the representations of each evaluated task to those of two earlier moments."""
    curves, array = reading.curves, reading.hidden(task)
    initial = reading.hidden(-1)[-1]  # (R, E, S, H)
    logs = measured_logs(curves)
    own = np.full(initial.shape, np.nan, np.float32)
    for column, trained in enumerate(curves.eval_tasks):
        if trained <= task:
            own[:, column] = reading.own_end(column)
    values: dict[str, list[np.ndarray]] = {}
    for log in logs:
        now = np.asarray(array[log])
        for moment, reference in (("initial", initial), ("own", own)):
            for name, value in similarities(now, reference, reading.trial.n_classes).items():
                values.setdefault(f"{name}_{moment}", []).append(value)
    axes = {"step": curves.steps[logs], "repeat": curves.repeats, "eval_task": curves.eval_tasks}
    return _task_column(_rows(axes, {name: np.stack(parts) for name, parts in values.items()}), task)


def measured_logs(curves: TrialCurves) -> list[int]:
    """The log points of a task at which representations are measured: all, or as many as keep to ``MOST_MOMENTS``."""
    n_logs = len(curves.steps)
    wanted = int(np.clip(MOST_MOMENTS // curves.n_tasks, 1, n_logs))
    return sorted({n_logs - 1 - round(back) for back in np.linspace(0, n_logs - 1, wanted)})


def shown_tasks(curves: TrialCurves) -> list[int]:
    """Columns of the first, the middle and the last evaluated task."""
    return sorted({0, (len(curves.eval_tasks) - 1) // 2, len(curves.eval_tasks) - 1})


def _moments(reading: _Reading, store: MeasureStore) -> pd.DataFrame:
    """CKA between the ends of tasks, for three evaluated tasks."""
    trial, curves = reading.trial, reading.curves

    def compute() -> pa.Table:
        moments = np.unique(np.linspace(-1, curves.n_tasks - 1, min(curves.n_tasks + 1, MOST_MATRIX_MOMENTS)).round().astype(int))
        columns = shown_tasks(curves)
        # Not through reading.array, which would keep every task.
        ends = [np.array(trial.array(reading.folders[moment + 1], names.REPRESENTATIONS)[-1][:, columns]) for moment in moments]
        frames = []
        for place, column in enumerate(columns):
            for i, first in enumerate(moments):
                for j, second in enumerate(moments[: i + 1]):
                    axes = {"eval_task": curves.eval_tasks[[column]], "first": np.array([first]), "second": np.array([second])}
                    cka = linear_cka(ends[i][:, place], ends[j][:, place])
                    frames.append(_rows({**axes, "repeat": curves.repeats}, {"cka": cka}))
        return _arrow(pd.concat(frames, ignore_index=True))

    key = f"{VERSION} {trial.key(reading.folders)}"
    return store.get(f"{trial.trial_id}/moments.parquet", key, compute).to_pandas()


def _geometry(reading: _Reading, task: int) -> pd.DataFrame:
    """Of the classes of all evaluated tasks together; a task's value is the mean over its classes (of capacity: harmonic)."""
    curves, n_classes = reading.curves, reading.trial.n_classes
    hidden = np.asarray(reading.hidden(task)[-1], np.float64)  # (R, E, S, H)
    n_repeats, n_evaluated, n_samples, width = hidden.shape
    per_class = n_samples // n_classes
    clouds = hidden[:, :, : per_class * n_classes].reshape(n_repeats, n_evaluated * n_classes, per_class, width)
    shape = (n_evaluated, n_classes)
    found: dict[str, list[np.ndarray]] = {"capacity": [], "radius": [], "dimension": []}
    for repeat in range(n_repeats):
        measured = geometry.manifold_geometry(list(clouds[repeat]))
        with np.errstate(divide="ignore"):
            found["capacity"].append(1.0 / (1.0 / measured.capacity.reshape(shape)).mean(axis=1))
        found["radius"].append(measured.radius.reshape(shape).mean(axis=1))
        found["dimension"].append(measured.dimension.reshape(shape).mean(axis=1))
    axes = {"repeat": curves.repeats, "eval_task": curves.eval_tasks}
    return _task_column(_rows(axes, {name: np.stack(parts) for name, parts in found.items()}), task)
