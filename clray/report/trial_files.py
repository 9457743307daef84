"""One trial as a report reads it: committed folders only, no JAX, and no plug-in of the experiment is imported.

A trial is looked at once: its commit markers are read when it is opened, so that a running sweep does not change under the
eyes of a report. What cannot be read is noted in ``problems`` and left out.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clray.errors import UserError
from clray.metrics.transfer import Course
from clray.store import layout as names
from clray.store.commit import Commit
from clray.store.filesystem import Storage
from clray.store.layout import SweepLayout
from clray.store.reader import committed_folders, open_array, read_commit, read_plain_yaml, read_table


class TrialFiles:
    """The files of one trial.

    Attributes:
        problems: what could not be read, one sentence each.
    """

    def __init__(self, storage: Storage, trial_id: str):
        self.storage = storage
        self.trial_id = trial_id
        self.layout = SweepLayout().trial(trial_id)
        self.problems: list[str] = []

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as plain data, defaults included; empty where there is none."""
        return read_plain_yaml(self.storage, self.layout.config)

    @functools.cached_property
    def commits(self) -> dict[str, Commit]:
        """Commits of the readable folders, in order: initial, tasks, joint."""
        found = {}
        for folder in committed_folders(self.storage, self.layout):
            try:
                commit = read_commit(self.storage, self.layout, folder)
            except UserError as error:
                self.problems.append(str(error))
                continue
            if commit is not None:
                found[folder] = commit
        return found

    @property
    def tasks(self) -> list[int]:
        """Committed tasks from the first up to the first gap."""
        n = 0
        while names.task_folder(n) in self.commits:
            n += 1
        return list(range(n))

    @property
    def n_tasks(self) -> int:
        """T of the experiment; what is committed where config.yaml does not say."""
        return int(self.config.get("sequence", {}).get("n_tasks", len(self.tasks)))

    @property
    def n_classes(self) -> int:
        """C."""
        return int(self.config.get("sequence", {}).get("classes_per_task", 2))

    @property
    def chance(self) -> float:
        """Accuracy of guessing: one over the number of outputs to choose from."""
        sequence = self.config.get("sequence", {})
        if sequence.get("scenario") != "class":
            return 1.0 / self.n_classes
        listed = {label for row in sequence.get("classes") or () for label in row}
        return 1.0 / (len(listed) or self.n_classes * self.n_tasks)

    @property
    def chance_by_task(self) -> np.ndarray:
        """(T,) the same while and after each task is trained: with ``active_classes: seen`` there are fewer outputs to choose from."""
        sequence = self.config.get("sequence", {})
        if sequence.get("scenario") != "class" or self.config.get("training", {}).get("active_classes") != "seen":
            return np.full(self.n_tasks, self.chance)
        listed = sequence.get("classes")
        seen = [
            len({label for row in listed[: t + 1] for label in row}) if listed else self.n_classes * (t + 1) for t in range(self.n_tasks)
        ]
        return 1.0 / np.asarray(seen)

    def key(self, folders: Sequence[str] | None = None) -> str:
        """Changes when any of the folders (all by default) is committed anew."""
        chosen = [commit for folder, commit in self.commits.items() if folders is None or folder in folders]
        return hashlib.sha256("\n".join(f"{commit.folder} {commit.nonce}" for commit in chosen).encode()).hexdigest()

    def has(self, folder: str, name: str) -> bool:
        """Whether a committed folder holds a file."""
        return folder in self.commits and name in self.commits[folder].files

    def table(self, folder: str, name: str) -> pa.Table:
        """A table of a committed folder."""
        return read_table(self.storage, self.commits[folder], name)

    def array(self, folder: str, name: str) -> np.ndarray:
        """An array of a committed folder; memory-mapped where local."""
        return open_array(self.storage, self.commits[folder], name)

    def weight_files(self, folder: str) -> dict[str, str]:
        """Parameter path to file name, of a committed folder."""
        return {parameter: name for name in self.commits[folder].files if (parameter := names.parameter_of(name))}

    def curves(self) -> TrialCurves | None:
        """Accuracy and loss of the committed tasks; None before the first, or where their files cannot be read."""
        if not self.tasks or names.INITIAL not in self.commits:
            return None
        try:
            return read_curves(self)
        except (UserError, KeyError, ValueError) as error:
            self.problems.append(f"{self.trial_id} cannot be read: {error}")
            return None


@dataclass(frozen=True)
class TrialCurves:
    """Evaluations of the first T' tasks of a trial, all that are committed so far.

    Attributes:
        steps: (L,) batches.
        repeats: (R,) numbers of the repeats.
        eval_tasks: (E,) numbers of the evaluated tasks.
        logs: accuracy and loss (T', L, R, E).
        end: accuracy and loss (T', E, R) after each task's last batch.
        initial: accuracy and loss (E, R) before any training.
        expert: accuracy and loss (T', L, R) of each task's expert on it, or None.
        expert_end: accuracy and loss (T', R) after its last batch.
        joint: accuracy and loss (E, R) of one network on all tasks, or None.
    """

    steps: np.ndarray
    repeats: np.ndarray
    eval_tasks: np.ndarray
    logs: Mapping[str, np.ndarray]
    end: Mapping[str, np.ndarray]
    initial: Mapping[str, np.ndarray]
    expert: Mapping[str, np.ndarray] | None
    expert_end: Mapping[str, np.ndarray] | None
    joint: Mapping[str, np.ndarray] | None

    @property
    def n_tasks(self) -> int:
        """T'."""
        return len(self.end["accuracy"])

    @functools.cached_property
    def diverged(self) -> np.ndarray:
        """(R,) whether the repeat diverged in what is committed."""
        return np.isnan(self.end["accuracy"]).any(axis=(0, 1))

    @functools.cached_property
    def kept(self) -> np.ndarray:
        """(R,) the repeats that means are taken over: those that did not diverge, or all where all did."""
        return np.ones_like(self.diverged) if self.diverged.all() else ~self.diverged

    def course(self) -> Course:
        """What metrics are computed from: the evaluated tasks among the trained ones."""
        own = self.eval_tasks < self.n_tasks
        expert = self.expert["accuracy"].astype(np.float64) if self.expert is not None else None
        return Course(
            accuracy=self.logs["accuracy"][..., own].astype(np.float64),
            steps=self.steps,
            end=self.end["accuracy"][:, own].astype(np.float64),
            initial=self.initial["accuracy"][own].astype(np.float64),
            tasks=self.eval_tasks[own],
            expert=expert,
        )


COLUMNS = ("accuracy", "loss")


def read_curves(trial: TrialFiles) -> TrialCurves:
    """Reads the tables of all committed tasks.

    Raises:
        OutputError: a file is damaged.
        KeyError: a file that every task has is missing.
    """
    folders = [names.task_folder(task) for task in trial.tasks]
    logs = [trial.table(folder, names.METRICS) for folder in folders]
    steps, repeats, eval_tasks = (_distinct(logs[0], axis) for axis in ("step", "repeat", "eval_task"))
    shape = (len(steps), len(repeats), len(eval_tasks))

    def ends(folder: str) -> pa.Table:
        return trial.table(folder, names.END)

    by_task = [ends(folder) for folder in folders]
    expert, expert_end = None, None
    if all(trial.has(folder, names.EXPERT) for folder in folders):
        tables = [trial.table(folder, names.EXPERT) for folder in folders]
        expert = {c: np.stack([_values(t, c, (-1, len(repeats)))[: len(steps)] for t in tables]) for c in COLUMNS}
        expert_end = {c: np.stack([_values(t, c, (-1, len(repeats)))[-1] for t in tables]) for c in COLUMNS}
    first = ends(names.INITIAL)
    joint = ends(names.JOINT) if names.JOINT in trial.commits else None
    return TrialCurves(
        steps,
        repeats,
        eval_tasks,
        logs={c: np.stack([_values(table, c, shape) for table in logs]) for c in COLUMNS},
        end={c: np.stack([_values(table, c, shape[1:]).T for table in by_task]) for c in COLUMNS},
        initial={c: _values(first, c, shape[1:]).T for c in COLUMNS},
        expert=expert,
        expert_end=expert_end,
        joint=None if joint is None else {c: _values(joint, c, shape[1:]).T for c in COLUMNS},
    )


def _values(table: pa.Table, column: str, shape: tuple[int, ...]) -> np.ndarray:
    return table[column].to_numpy().reshape(shape)


def _distinct(table: pa.Table, column: str) -> np.ndarray:
    """Distinct values in the order of their first row."""
    values = table[column].to_numpy()
    return values[np.sort(np.unique(values, return_index=True)[1])]
