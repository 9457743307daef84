"""Reads finished and running sweeps: what ``clray.open`` returns. Only committed folders are looked at."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from clray.artifacts import read_config
from clray.config import Experiment
from clray.errors import OutputError, UserError, did_you_mean
from clray.store import layout as names
from clray.store.commit import Commit
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.reader import NPY_ERRORS, committed_folders, open_array, read_commit, read_table
from clray.store.result import read_result
from clray.trials.status import TrialStatus, is_alive, read_status
from clray.trials.table import read_rows, to_arrow

if TYPE_CHECKING:
    import xarray as xr


def open_results(folder: str | os.PathLike[str]) -> SweepResults:
    """Opens a sweep's folder (``results/quickstart``, or a URL), also while it runs.

    Raises:
        OutputError: there is no sweep.
    """
    return SweepResults(Storage.of(folder))


class SweepResults:
    """A sweep on disk."""

    def __init__(self, storage: Storage):
        self.storage = storage
        self.layout = SweepLayout()
        storage.check_reachable()
        if not storage.exists(self.layout.sweep):
            raise OutputError(f"{storage.display}: no sweep here (no sweep.yaml). Give the folder of one sweep, such as results/quickstart")

    @property
    def trials(self) -> pd.DataFrame:
        """A row a trial: trials.parquet as it is now."""
        return to_arrow(read_rows(self.storage, self.layout)).to_pandas()

    @property
    def trial_ids(self) -> list[str]:
        """Ids of all trials that have a folder."""
        return [name for name in self.storage.list_names(self.layout.trials) if not name.startswith(".")]

    def trial(self, trial_id: str) -> TrialResults:
        """One trial. An unambiguous beginning of the id is enough.

        Raises:
            OutputError: no such trial; the message lists them.
        """
        found = [name for name in self.trial_ids if name.startswith(trial_id)]
        if len(found) != 1:
            which = "more than one" if found else "no"
            raise OutputError(f"{self.storage.display}: {which} trial {trial_id!r}; {did_you_mean(trial_id, self.trial_ids)}")
        return TrialResults(self.storage, found[0])

    def __repr__(self) -> str:
        return f"<sweep {self.storage.display}>"


class TrialResults:
    """One trial on disk. Arrays are memory-mapped where the results are on a local disk; axes as in ``clray.types``."""

    def __init__(self, storage: Storage, trial_id: str):
        self.storage = storage
        self.trial_id = trial_id
        self._trial = SweepLayout().trial(trial_id)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The experiment as config.yaml says."""
        return read_config(self.storage, self._trial)

    @property
    def status(self) -> TrialStatus:
        """What became of the trial so far."""
        return read_status(self.storage, self._trial, is_alive(self.storage, SweepLayout()))

    @property
    def result(self) -> dict[str, Any] | None:
        """RESULT.json, None before the trial is complete.

        Raises:
            DamagedError: it is not what was written.
        """
        return read_result(self.storage, self._trial)

    @property
    def tasks(self) -> list[int]:
        """Numbers of the committed tasks."""
        found = [names.task_of(folder) for folder in committed_folders(self.storage, self._trial)]
        return [task for task in found if task is not None]

    @property
    def classes(self) -> np.ndarray:
        """int32 (T, R, C): the source class of every label."""
        return self._small(self._trial.classes)

    @property
    def permutations(self) -> np.ndarray | None:
        """int32 (T, R, height * width): pixel i of a task's images is pixel ``permutations[t, r, i]``; None: not permuted."""
        return self._small(self._trial.permutations) if self.experiment.sequence.policy == "permuted" else None

    @property
    def angles(self) -> np.ndarray | None:
        """float64 (T, R): degrees anticlockwise by which a task's images are rotated; None: not rotated."""
        return self._small(self._trial.angles) if self.experiment.sequence.policy == "rotated" else None

    @property
    def eval_samples(self) -> np.ndarray:
        """int64 (K, S/C): indices of the samples behind the representations."""
        return self._small(self._trial.eval_samples)

    def metrics(self) -> pd.DataFrame:
        """metrics.parquet of all committed tasks, with a column ``task`` in front."""
        return self._frames(names.METRICS)

    def end(self) -> pd.DataFrame:
        """end.parquet of all committed tasks: the evaluation after each task's last batch."""
        return self._frames(names.END)

    def train(self) -> pd.DataFrame:
        """train.parquet of all committed tasks: training batches of each log window."""
        return self._frames(names.TRAIN)

    def boundaries(self) -> pd.DataFrame:
        """boundaries.parquet of all committed tasks: where the strategy saw a task end (``training.boundaries: detected``)."""
        return self._frames(names.BOUNDARIES)

    def expert(self) -> pd.DataFrame:
        """expert.parquet of all committed tasks, where the baseline was asked for."""
        return self._frames(names.EXPERT)

    def accuracy(self) -> np.ndarray:
        """float32 (T, L, R, E) of all committed tasks."""
        return self._dense("accuracy")

    def loss(self) -> np.ndarray:
        """float32 (T, L, R, E) of all committed tasks."""
        return self._dense("loss")

    def accuracy_matrix(self) -> np.ndarray:
        """float32 (T, E, R): accuracy on each evaluated task after the last batch of each committed task."""
        shape = (len(self.experiment.repeat_numbers), len(self.experiment.eval_task_numbers))
        tables = [self._table(names.task_folder(task), names.END) for task in self._committed_tasks()]
        return np.stack([self._shaped(table["accuracy"], shape, names.END).T for table in tables])

    def representations(self, task: int | str) -> np.ndarray:
        """float32 (L, R, E, S, H) of one task, or of ``initial`` or ``joint`` (L = 1). Task -1 is the last committed one."""
        return self._array(task, names.REPRESENTATIONS)

    def weights(self, task: int | str) -> dict[str, np.ndarray]:
        """float32 (L, R, *shape) of one task by dotted parameter path, or of ``initial`` or ``joint`` (L = 1). Task -1 is the
        last committed one."""
        commit = self._commit(self._folder(task))
        found = {parameter: name for name in commit.files if (parameter := names.parameter_of(name))}
        if not found:
            raise OutputError(f"{self.trial_id}: weights were not logged (logging.weights: false)")
        return {parameter: open_array(self.storage, commit, name) for parameter, name in found.items()}

    def model(
        self, task: int | str, repeat: int | None = None, log: int = -1, eval_task: int | None = None
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """The network with the weights of one log point of a task, by default the last one.

        Args:
            task: number of the task (-1: the last committed one), or ``initial`` or ``joint``.
            repeat: position of one repeat; None for all R.
            log: log point.
            eval_task: the task whose head answers (scenario task) and whose transform the images get (policies permuted and
                rotated); default ``task`` itself, to be given for ``initial`` and ``joint`` there. Nothing else depends on it.

        Returns:
            A function of images (n, height, width, channels) or (n, D) as they are in the data set (it transforms and scales
            them) that returns logits (R, n, C) and hidden (R, n, H), without R where ``repeat`` is given. In scenario class the
            logits are (R, n, O), and with active classes seen those of classes not seen yet are minus infinity.

        Raises:
            OutputError: ``eval_task`` is needed, or is not a task; or there is no such repeat or log point. The function raises it
                for images of another shape.
        """
        from clray.inference import model_function

        task = task if isinstance(task, str) else self._number(task)
        arrays = self.weights(task)
        n_logs, n_repeats = next(iter(arrays.values())).shape[:2]
        for name, given, n in (("repeat", repeat, n_repeats), ("log", log, n_logs)):
            if given is not None and not -n <= given < n:
                raise OutputError(f"{self.trial_id}: there is no {name} {given}; {name} is 0 to {n - 1}, or -{n} to -1 from the end")
        weights = {name: np.asarray(array[log]) for name, array in arrays.items()}
        asked = self._asked_task(task, eval_task)
        return model_function(self.experiment, weights, repeat, task, asked)

    def _asked_task(self, task: int | str, eval_task: int | None) -> int:
        sequence = self.experiment.sequence
        depends = sequence.scenario == "task" or sequence.transforms
        asked = eval_task if eval_task is not None else task if isinstance(task, int) else None if depends else 0
        if asked is None:
            raise OutputError(f"{self.trial_id}: the answer of {task} depends on the task: give eval_task, 0 to {sequence.n_tasks - 1}")
        if not 0 <= asked < sequence.n_tasks:
            raise OutputError(f"{self.trial_id}: there is no task {asked}; eval_task is 0 to {sequence.n_tasks - 1}")
        return asked

    def to_xarray(self, task: int) -> xr.Dataset:
        """One task with named dimensions: log (coordinate step), repeat, eval_task, sample, unit, and those of parameters."""
        import xarray as xr

        if isinstance(task, str):
            raise UserError(
                f"to_xarray takes the number of a task, got {task!r}; what was logged there: accuracy(), representations(), weights()"
            )
        task = self._number(task)
        experiment = self.experiment
        metrics = self._table(names.task_folder(task), names.METRICS)
        axes = {
            "log": np.unique(metrics["step"].to_numpy()),
            "repeat": np.asarray(experiment.repeat_numbers),
            "eval_task": np.asarray(experiment.eval_task_numbers),
        }
        shape = tuple(len(values) for values in axes.values())
        train = self._table(names.task_folder(task), names.TRAIN)
        data: dict[str, Any] = {name: (tuple(axes), self._shaped(metrics[name], shape, names.METRICS)) for name in ("accuracy", "loss")}
        data |= {f"train_{name}": (("log", "repeat"), self._shaped(train[name], shape[:2], names.TRAIN)) for name in ("accuracy", "loss")}
        if experiment.logging.representations == "dense":
            data["representations"] = ((*axes, "sample", "unit"), self.representations(task))
        if experiment.logging.weights:
            for name, array in self.weights(task).items():
                own = tuple(f"{name}.{axis}" for axis in range(array.ndim - 2))
                data[f"weights.{name}"] = (("log", "repeat", *own), array)
        coordinates = {"step": ("log", axes["log"]), "repeat": axes["repeat"], "eval_task": axes["eval_task"]}
        return xr.Dataset(data, coordinates, {"trial_id": self.trial_id, "task": task})

    def _dense(self, column: str) -> np.ndarray:
        experiment = self.experiment
        tables = [self._table(names.task_folder(task), names.METRICS) for task in self._committed_tasks()]
        shape = (-1, len(experiment.repeat_numbers), len(experiment.eval_task_numbers))
        arrays = [self._shaped(table[column], shape, names.METRICS) for table in tables]
        if len({array.shape for array in arrays}) > 1:
            raise OutputError(f"{self.trial_id}: {names.METRICS} of its tasks differ in length: run 'clray status --verify'")
        return np.stack(arrays)

    def _committed_tasks(self) -> list[int]:
        tasks = self.tasks
        if not tasks:
            raise OutputError(f"{self.trial_id}: no task is committed yet")
        return tasks

    def _shaped(self, column: pa.ChunkedArray, shape: tuple[int, ...], name: str) -> np.ndarray:
        try:
            return column.to_numpy().reshape(shape)
        except ValueError:
            raise OutputError(
                f"{self.trial_id}: {name} has {len(column)} rows, which is not what config.yaml says: run 'clray status --verify'"
            ) from None

    def _frames(self, name: str) -> pd.DataFrame:
        tables = []
        for task in self._committed_tasks():
            table = self._table(names.task_folder(task), name)
            tables.append(table.add_column(0, "task", pa.array(np.full(len(table), task, np.int32))))
        return pa.concat_tables(tables).to_pandas()

    def _folder(self, task: int | str) -> str:
        return task if isinstance(task, str) else names.task_folder(self._number(task))

    def _number(self, task: int) -> int:
        """Of a task; negative numbers count from the last committed one."""
        if task >= 0:
            return task
        tasks = self._committed_tasks()
        if task < -len(tasks):
            raise OutputError(f"{self.trial_id}: there is no task {task}; {len(tasks)} are committed")
        return tasks[task]

    def _commit(self, folder: str) -> Commit:
        commit = read_commit(self.storage, self._trial, folder) if names.is_folder_name(folder) else None
        if commit is None:
            there = ", ".join(committed_folders(self.storage, self._trial)) or "nothing"
            raise OutputError(f"{self.trial_id}: {folder} is not committed; committed: {there}")
        return commit

    def _table(self, folder: str, name: str) -> pa.Table:
        commit = self._commit(folder)
        if name not in commit.files:
            raise OutputError(f"{self.trial_id}: {folder} has no {name}; it has {', '.join(commit.files)}")
        return read_table(self.storage, commit, name)

    def _array(self, task: int | str, name: str) -> np.ndarray:
        commit = self._commit(self._folder(task))
        if name not in commit.files:
            raise OutputError(f"{self.trial_id}: {name} was not logged (logging.representations: none)")
        return open_array(self.storage, commit, name)

    def _small(self, path: str) -> np.ndarray:
        try:
            return np.lib.format.read_array(io.BytesIO(self.storage.read_bytes(path)), allow_pickle=False)
        except NPY_ERRORS as error:
            raise UserError(f"{self.storage.shown(path)} is missing or damaged ({error})") from None

    def __repr__(self) -> str:
        return f"<trial {self.trial_id} of {self.storage.display}>"
