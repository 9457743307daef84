"""The files of one trial: what is committed already, and how arrays become the tables and tensors that users read."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from ruamel.yaml import YAML

from clray import __version__
from clray.config import Experiment, digest
from clray.documents import parse_experiment, parse_yaml
from clray.errors import LeaseLostError, OutputError, UserError
from clray.metrics.accuracy import mean_and_sem, summary
from clray.store import layout as names
from clray.store.checkpoint import CorruptStateError, packed_parts, unpack_state
from clray.store.commit import Commit, DamagedError
from clray.store.filesystem import Storage, hide_credentials
from clray.store.layout import SweepLayout, TrialLayout
from clray.store.lease import Fence
from clray.store.reader import committed_folders, read_commit, read_file, read_table, verify
from clray.store.result import write_result
from clray.store.rows import axes_of, evaluated_rows, numbers_of, table_of
from clray.store.upkeep import discard_uncommitted, prune_state, set_aside
from clray.store.writer import FolderCommit, npy_bytes, write_once
from clray.types import HostArray

_READ_AGAIN = frozenset({names.END, names.EXPERT})
"""Files of committed tasks that the final metrics are made from. Their content is checked before a trial goes on; of other
files, existence and size."""


def trial_log(trial_id: str) -> logging.Logger:
    """The logger of one trial; the job that runs it writes what arrives there to the trial's own log file."""
    return logging.getLogger(f"clray.trial.{trial_id}")


class Evaluations(Protocol):
    """Evaluations of all lanes of a trial at some log points."""

    @property
    def accuracy(self) -> HostArray: ...  # [L, R, E]
    @property
    def loss(self) -> HostArray: ...  # [L, R, E]
    @property
    def end_accuracy(self) -> HostArray: ...  # [R, E]
    @property
    def end_loss(self) -> HostArray: ...  # [R, E]


class FolderWriter:
    """Writes the files of one folder. Tables have their rows in the order of the axes; the last axis is fastest."""

    def __init__(self, folder: FolderCommit):
        self._folder = folder

    def metrics(
        self,
        steps: Sequence[int],
        repeats: Sequence[int],
        tasks: Sequence[int],
        logs: Evaluations,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """metrics.parquet with L*R*E rows, and end.parquet with R*E rows; ``facts`` go into the metadata of both."""
        table = evaluated_rows(steps, repeats, tasks, logs.accuracy, logs.loss)
        self._folder.write_table(names.METRICS, table.replace_schema_metadata(facts))
        end = evaluated_rows([0], repeats, tasks, logs.end_accuracy[None], logs.end_loss[None]).drop_columns(["step"])
        self._folder.write_table(names.END, end.replace_schema_metadata(facts))

    def train(self, steps: Sequence[int], repeats: Sequence[int], accuracy: HostArray, loss: HostArray) -> None:
        """train.parquet with L*R rows from (L, R) arrays."""
        columns = axes_of({"step": steps, "repeat": repeats}) | {"accuracy": accuracy.ravel(), "loss": loss.ravel()}
        self._folder.write_table(names.TRAIN, table_of(columns, names.TRAIN_SCHEMA))

    def expert(self, steps: Sequence[int], last_step: int, repeats: Sequence[int], task: int, logs: Evaluations) -> None:
        """expert.parquet: the logs of the expert on its own task, and its evaluation after the last batch."""
        table = evaluated_rows(steps, repeats, [task], logs.accuracy, logs.loss)
        if steps[-1] != last_step:
            end = evaluated_rows([last_step], repeats, [task], logs.end_accuracy[None], logs.end_loss[None])
            table = pa.concat_tables([table, end])
        self._folder.write_table(names.EXPERT, table)

    def boundaries(self, repeats: Sequence[int], steps: HostArray) -> None:
        """boundaries.parquet.

        Args:
            steps: (R, M) batches of the task after which a boundary was found, from 1; zeros where there is none.
        """
        rows = sorted((int(step), repeat) for repeat, own in zip(repeats, steps, strict=True) for step in own if step)
        columns = np.array(rows, np.int32).reshape(-1, 2)
        self._folder.write_table(names.BOUNDARIES, table_of({"step": columns[:, 0], "repeat": columns[:, 1]}, names.BOUNDARIES_SCHEMA))

    def representations(self, shape: tuple[int, ...], blocks: Iterable[HostArray]) -> None:
        """representations.npy float32 (L, R, E, S, H) from blocks of log points."""
        self._folder.write_array(names.REPRESENTATIONS, shape, np.float32, blocks)

    def weights(self, parameter: str, shape: tuple[int, ...], blocks: Iterable[HostArray]) -> None:
        """weights.<parameter path>.npy float32 (L, R, *shape) from blocks of log points."""
        self._folder.write_array(names.weights_file(parameter), shape, np.float32, blocks)

    def array(self, name: str, values: HostArray) -> None:
        """A .npy file of an array that is there already."""
        self._folder.write_array(name, values.shape, values.dtype, iter(values))

    def table(self, name: str, table: pa.Table) -> None:
        """A Parquet file with columns of its own."""
        self._folder.write_table(name, table)

    def bytes(self, name: str, data: bytes) -> None:
        """Any other file."""
        self._folder.write_bytes(name, data)

    def state(self, flat: Mapping[str, HostArray]) -> None:
        """state.msgpack."""
        self._folder.write_parts(names.STATE, packed_parts(flat))


class TrialFolders:
    """The folders of one trial, as one attempt sees them.

    Args:
        storage: the sweep's folder.
        trial_id: of the trial.
        attempt: text no other attempt uses, beginning with the attempt's number: ``001-9f3c2a``.
        fence: of the driver's lease, checked before anything is removed or becomes visible; None outside a sweep.
    """

    read_again: bool | frozenset[str] = _READ_AGAIN
    """Files of committed folders whose content is checked; True: all."""
    transient = names.TRANSIENT
    """Files that ``prune_states`` may remove."""

    def __init__(self, storage: Storage, trial_id: str, attempt: str, fence: Fence | None = None):
        self.storage = storage
        self.trial_id = trial_id
        self.attempt = attempt
        self.trial = SweepLayout().trial(trial_id)
        self.config_hash = ""
        self.fence = fence
        self.log = trial_log(trial_id)
        self.on_damage: Callable[[str], None] = lambda text: None
        """Called with a sentence when damage is found: it is loud, beside the trial's own log."""
        self.width: int | None = None
        """Of the program that what is committed comes from; see ``Commit``."""

    def begin(
        self,
        experiment: Experiment,
        classes: HostArray,
        eval_samples: HostArray,
        permutations: HostArray | None = None,
        angles: HostArray | None = None,
    ) -> None:
        """Cleans up what earlier attempts left behind and writes the files that are the same in every attempt.

        Raises:
            OutputError: the folder belongs to another experiment.
            LeaseLostError: see ``check_ours``.
        """
        self.check_ours()
        self.config_hash = config_hash(experiment)
        discard_uncommitted(self.storage, self.trial)
        write_config(self.storage, self.trial, experiment)
        write_once(self.storage, self.trial.classes, npy_bytes(classes.astype(np.int32)))
        write_once(self.storage, self.trial.eval_samples, npy_bytes(eval_samples.astype(np.int64)))
        if permutations is not None:
            write_once(self.storage, self.trial.permutations, npy_bytes(permutations.astype(np.int32)))
        if angles is not None:
            write_once(self.storage, self.trial.angles, npy_bytes(angles.astype(np.float64)))

    def check_ours(self) -> None:
        """Checks that this attempt still owns the trial.

        Raises:
            LeaseLostError: the driver's lease was taken over or is gone, or a later attempt has begun.
        """
        if self.fence is None:
            return
        self.fence.check()
        begun = [TrialLayout.attempt_of(name) or 0 for name in self.storage.list_names(self.trial.attempts)]
        number = int(self.attempt.partition("-")[0])
        if max(begun, default=0) > number:
            raise LeaseLostError(
                f"attempt {max(begun)} at {self.trial_id} has begun: attempt {number} was given up and commits nothing more"
            )

    def committed(self, folder: str) -> Commit | None:
        """The commit of a folder, None where it has to be run. A damaged folder is set aside first.

        Raises:
            OutputError: it was written for another experiment.
        """
        try:
            commit = read_commit(self.storage, self.trial, folder)
            problems = verify(self.storage, self.trial, commit, checksums=self.read_again) if commit else []
        except DamagedError as error:
            commit, problems = None, [str(error)]
        if problems:
            aside = set_aside(self.storage, self.trial, folder)
            self._warn(f"{folder} is damaged and was set aside as {aside}; it is run again: {'; '.join(problems)}")
            return None
        if commit and commit.config != self.config_hash:
            raise OutputError(
                f"{self.storage.shown(self.trial.folder(folder))} was written for another experiment (config {commit.config[:10]}, "
                f"now {self.config_hash[:10]}). Move the trial's folder away, or choose another --output"
            )
        if commit and commit.clray not in ("", __version__):
            raise other_version(self.storage, [self.trial_id], commit.clray)
        return commit

    def resume_point(self, n_tasks: int) -> tuple[int, dict[str, HostArray] | None, frozenset[str]]:
        """Where to go on.

        Returns:
            The first task to run (T where nothing is left), the state before it (None before task 0), and the task folders
            that are committed: where a folder in the middle was damaged, later ones are still good and are not written again.
        """
        done = frozenset(folder for task in range(n_tasks) if self.committed(folder := names.task_folder(task)))
        missing = next((task for task in range(n_tasks) if names.task_folder(task) not in done), n_tasks)
        if missing == n_tasks:
            return n_tasks, None, done
        for task in range(missing, 0, -1):
            folder = names.task_folder(task - 1)
            commit = read_commit(self.storage, self.trial, folder)
            if commit is None or not self.storage.exists(commit.file(names.STATE)):
                continue  # state is kept for the last two tasks only
            try:
                state = unpack_state(read_file(self.storage, commit, names.STATE))
            except (DamagedError, CorruptStateError, KeyError) as error:
                aside = set_aside(self.storage, self.trial, folder)
                done -= {folder}
                self._warn(f"the state after {folder} is damaged, and the folder was set aside as {aside}; it is run again: {error}")
                continue
            self._say_how_far_back(task, missing)
            return task, {path: np.asarray(leaf) for path, leaf in state.items()}, done
        self._say_how_far_back(0, missing)
        return 0, None, done

    def width_of(self, folder: str) -> int | None:
        """``width`` of a committed folder; None where it is not there, or does not say."""
        commit = read_commit(self.storage, self.trial, folder)
        return None if commit is None else commit.width

    def _say_how_far_back(self, task: int, missing: int) -> None:
        if task < missing:
            start = f"after task {task - 1}" if task else "from the first task"
            self._warn(f"there is no intact state before task {missing} (states are kept for the last two tasks): training starts {start}")

    def _warn(self, text: str) -> None:
        self.log.warning("%s", text)
        self.on_damage(text)

    @contextlib.contextmanager
    def commit(self, folder: str) -> Iterator[FolderWriter]:
        """Writes a folder and commits it on leaving."""
        with FolderCommit(self.storage, self.trial, folder, self.attempt, self.config_hash, self.transient, self.width) as open_folder:
            yield FolderWriter(open_folder)
            self.check_ours()

    def prune_states(self, task: int | None = None) -> None:
        """Keeps the state of the last two tasks.

        Args:
            task: the latest task: only the folder that it pushes out is looked at; None: all folders are.
        """
        recent = None if task is None else [names.task_folder(number) for number in range(max(task - 2, 0), task + 1)]
        prune_state(self.storage, self.trial, recent)

    def accuracy_matrix(self, experiment: Experiment) -> tuple[HostArray, HostArray]:
        """(T, E, R) accuracies after each task, and (E, R) before training, from end.parquet of every folder."""
        n_repeats, n_evaluated = len(experiment.repeat_numbers), len(experiment.eval_task_numbers)

        def end_of(folder: str) -> HostArray:
            commit = read_commit(self.storage, self.trial, folder)
            if commit is None:
                raise OutputError(f"{self.storage.shown(self.trial.folder(folder))} is not committed")
            column = numbers_of(read_table(self.storage, commit, names.END)["accuracy"])
            return column.reshape(n_repeats, n_evaluated).T

        tasks = range(experiment.sequence.n_tasks)
        return np.stack([end_of(names.task_folder(task)) for task in tasks]), end_of(names.INITIAL)

    def finish(self, experiment: Experiment, seconds: float, phases: Mapping[str, float]) -> dict[str, Any]:
        """Computes the final metrics from what is committed and writes RESULT.json.

        Args:
            seconds: wall time of this attempt.
            phases: seconds by phase; phases overlap.
        """
        matrix, initial = self.accuracy_matrix(experiment)
        diverged = np.isnan(matrix[-1]).any(axis=0)
        # Repeat by repeat: with hundreds of tasks the matrix itself is most of what a trial needs of the host's memory.
        evaluated = np.asarray(experiment.eval_task_numbers)
        each = [
            summary(matrix[..., [r]].astype(np.float64), initial[..., [r]].astype(np.float64), evaluated) for r in range(matrix.shape[-1])
        ]
        values = {name: np.concatenate([found[name] for found in each]) for name in each[0]}
        values |= self._baselines(experiment)
        metrics = {name: _metric(np.where(diverged, np.nan, value)) for name, value in values.items()}
        result: dict[str, Any] = {
            "trial_id": self.trial_id,
            "status": "diverged" if diverged.all() else "done",
            "n_tasks": experiment.sequence.n_tasks,
            "attempts": int(self.attempt.partition("-")[0]),
            "n_diverged": int(diverged.sum()),
            "diverged_repeats": [r for r, bad in zip(experiment.repeat_numbers, diverged, strict=True) if bad],
            "metrics": metrics,
            "seconds": round(seconds, 3),
            "phases": {phase: round(value, 3) for phase, value in phases.items()},
            "config": self.config_hash,
            "clray": __version__,
        }
        beside = [folder for folder in committed_folders(self.storage, self.trial) if names.is_study_folder(folder)]
        if beside:
            result["folders"] = beside
        self.check_ours()
        write_result(self.storage, self.trial, result)
        discard_uncommitted(self.storage, self.trial)
        self.prune_states()
        return result

    def _baselines(self, experiment: Experiment) -> dict[str, HostArray]:
        """Final accuracies of the baselines, (R,) each."""
        n_repeats = len(experiment.repeat_numbers)
        values: dict[str, HostArray] = {}
        if "expert" in experiment.baselines:
            last = []
            for task in range(experiment.sequence.n_tasks):
                commit = read_commit(self.storage, self.trial, names.task_folder(task))
                assert commit is not None
                last.append(numbers_of(read_table(self.storage, commit, names.EXPERT)["accuracy"])[-n_repeats:])
            values["expert_acc"] = np.mean(last, axis=0)
        if "joint" in experiment.baselines:
            commit = read_commit(self.storage, self.trial, names.JOINT)
            assert commit is not None
            column = numbers_of(read_table(self.storage, commit, names.END)["accuracy"])
            values["joint_acc"] = column.reshape(n_repeats, -1).mean(axis=1)
        return values


def other_version(storage: Storage, trial_ids: Sequence[str], version: str) -> OutputError:
    """The error for trials that were begun by another version of clray."""
    shown = ", ".join(trial_ids[:3]) + (", ..." if len(trial_ids) > 3 else "")
    which = f"{shown} was" if len(trial_ids) == 1 else f"{len(trial_ids)} unfinished trials ({shown}) were"
    return OutputError(
        f"{storage.display}: {which} begun by clray {version}, and this is {__version__}: one trial never holds results of two versions. "
        f"Finish with clray {version}, or choose another --output, or move those trials' folders away, which begins them anew"
    )


def config_hash(experiment: Experiment) -> str:
    """SHA-256 of the experiment in canonical form, with the fingerprint of data files that people own."""
    canonical = experiment.canonical() | {"dataset": experiment.canonical_dataset(experiment.dataset.fingerprint())}  # type: ignore[attr-defined]
    return digest(canonical)


def write_config(storage: Storage, trial: TrialLayout, experiment: Experiment) -> None:
    """config.yaml: the whole experiment, defaults included. One that is there must mean the same.

    Raises:
        OutputError: it means something else, or is damaged.
    """
    text = io.StringIO()
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(experiment.plain(), text)
    try:
        storage.create_bytes(trial.config, text.getvalue().encode())
        return
    except FileExistsError:
        pass
    shown = storage.shown(trial.config)
    try:
        present = parse_experiment(parse_yaml(storage.read_bytes(trial.config).decode(), shown))
        same = present.canonical() == experiment.canonical()
    except (UserError, UnicodeDecodeError):
        same = False
    if not same:
        raise OutputError(
            f"{shown} was edited or is damaged: it does not say what this trial's id stands for. Move the trial's folder away, "
            "or choose another --output"
        )


def read_config(storage: Storage, trial: TrialLayout) -> Experiment:
    """The experiment of a trial from its config.yaml."""
    shown = storage.shown(trial.config)
    try:
        text = storage.read_bytes(trial.config).decode()
    except FileNotFoundError:
        raise OutputError(f"{shown}: no such file; the trial has not begun") from None
    except UnicodeDecodeError:
        raise OutputError(f"{shown} is damaged: not UTF-8 text") from None
    return parse_experiment(parse_yaml(text, shown))


def _metric(values: HostArray) -> dict[str, Any]:
    mean, sem = mean_and_sem(values)
    return {"mean": _json_number(mean), "sem": _json_number(sem), "repeats": [_json_number(float(value)) for value in values]}


def _json_number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def write_attempt(storage: Storage, trial: TrialLayout, number: int, record: Mapping[str, Any], new_folder: bool = True) -> None:
    """attempts/<number>.json: when, where and how an attempt ran. ``new_folder`` as for ``Storage.replace_bytes``."""
    storage.replace_bytes(trial.attempt(number), hide_credentials(json.dumps(record, indent=1)).encode(), new_folder)


def append_log(storage: Storage, trial: TrialLayout, text: str, traceback: str | None = None) -> None:
    """Adds an attempt's log to the trial's, and keeps the traceback of its failure. The attempt has a record already."""
    storage.append_bytes(trial.log, hide_credentials(text).encode("utf-8", "backslashreplace"), new_folder=False)
    if traceback is not None:
        storage.replace_bytes(trial.traceback, hide_credentials(traceback).encode("utf-8", "backslashreplace"), new_folder=False)
