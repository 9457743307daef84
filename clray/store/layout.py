"""Every path and file name that clray writes, and the columns of its tables. Nothing here touches a disk.

Paths are relative to the root of a ``Storage``. Other files carry names that start with a dot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from clray.store.filesystem import join_path

METRICS = "metrics.parquet"
END = "end.parquet"
TRAIN = "train.parquet"
EXPERT = "expert.parquet"
BOUNDARIES = "boundaries.parquet"
REPRESENTATIONS = "representations.npy"
STATE = "state.msgpack"
COMMIT = "COMMIT.json"

INITIAL = "initial"
JOINT = "joint"
JOINED = "joined"

TRANSIENT = frozenset({STATE})
"""Files that are removed from older folders on purpose."""

_EVALUATED = [("eval_task", pa.int32()), ("accuracy", pa.float32()), ("loss", pa.float32())]
METRICS_SCHEMA = pa.schema([("step", pa.int32()), ("repeat", pa.int16()), *_EVALUATED])
"""L*R*E rows in (L, R, E) order."""
END_SCHEMA = pa.schema([("repeat", pa.int16()), *_EVALUATED])
"""R*E rows in (R, E) order: the evaluation after the last batch."""
TRAIN_SCHEMA = pa.schema([("step", pa.int32()), ("repeat", pa.int16()), ("accuracy", pa.float32()), ("loss", pa.float32())])
"""L*R rows in (L, R) order: training batches of each log window."""
EXPERT_SCHEMA = METRICS_SCHEMA
"""L*R rows; ``eval_task`` is the task itself."""
BOUNDARIES_SCHEMA = pa.schema([("step", pa.int32()), ("repeat", pa.int16())])
"""A row a boundary that was detected, in the order of steps."""

SCHEMAS: dict[str, pa.Schema] = {
    METRICS: METRICS_SCHEMA,
    END: END_SCHEMA,
    TRAIN: TRAIN_SCHEMA,
    EXPERT: EXPERT_SCHEMA,
    BOUNDARIES: BOUNDARIES_SCHEMA,
}

TRIALS_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()),
        ("status", pa.string()),
        ("attempts", pa.int32()),
        ("n_diverged", pa.int32()),
        ("seconds", pa.float64()),
        ("error", pa.string()),
        ("clray", pa.string()),
    ]
)
"""The columns of trials.parquet that every sweep has; ``param.*`` and ``<metric>_mean``, ``<metric>_sem`` follow."""

REPRODUCTION_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("scenario", pa.string()),
        ("trial_id", pa.string()),
        ("verdict", pa.string()),
        ("measured_mean", pa.float64()),
        ("measured_sem", pa.float64()),
        ("measured_n", pa.int32()),
        ("n_diverged", pa.int32()),
        ("published_mean", pa.float64()),
        ("published_sem", pa.float64()),
        ("published_n", pa.int32()),
        ("difference", pa.float64()),
        ("difference_in_sem", pa.float64()),
        ("limit", pa.float64()),
        ("source", pa.string()),
    ]
)
"""The columns of reproduction.parquet: a row a published number."""

_TASK = re.compile(r"task_(\d{3}|[1-9]\d{3,})")
_STUDY = re.compile(r"(memory|gradients)_(\d{3,})|(similarity|downstream)_([A-Za-z0-9][A-Za-z0-9._-]*)|joined")
_ATTEMPT = re.compile(r"(\d{3}|[1-9]\d{3,8})\.json")
_WEIGHTS = re.compile(r"weights\.(.+)\.npy")


def task_folder(task: int) -> str:
    """``task_003`` for task 3; four digits and more where they are needed."""
    return f"task_{task:03d}"


def task_of(folder: str) -> int | None:
    """The task number of a folder name, None for other names."""
    match = _TASK.fullmatch(folder)
    return int(match.group(1)) if match else None


def is_folder_name(name: str) -> bool:
    """Whether this is a name of a folder that gets committed."""
    return name in (INITIAL, JOINT) or task_of(name) is not None or is_study_folder(name)


def is_study_folder(name: str) -> bool:
    """Whether this is a folder of a study beside those of its ideal models."""
    return _STUDY.fullmatch(name) is not None and ".tmp-" not in name


def memory_folder(task: int) -> str:
    """A study's memory sets of one task."""
    return f"memory_{task:03d}"


def gradients_folder(task: int) -> str:
    """A study's comparisons of gradients on the tasks before ``task``."""
    return f"gradients_{task:03d}"


def similarity_folder(method: str) -> str:
    """A study's similarities of one selection."""
    return f"similarity_{method}"


def downstream_folder(method: str) -> str:
    """A study's models trained with the memory sets of one selection."""
    return f"downstream_{method}"


def folder_order(folder: str) -> tuple[int, int, str]:
    """Sort key: initial, tasks by number, joint, those of a study."""
    task = task_of(folder)
    if task is not None:
        return 1, task, ""
    return (3, 0, folder) if is_study_folder(folder) else (0 if folder == INITIAL else 2, 0, "")


def weights_file(parameter: str) -> str:
    """The file of one parameter.

    Args:
        parameter: dotted path, e.g. ``head.kernel``.
    """
    return join_path(f"weights.{parameter}.npy")


def parameter_of(file_name: str) -> str | None:
    """The dotted parameter path of a weights file, None for other files."""
    match = _WEIGHTS.fullmatch(file_name)
    return match.group(1) if match else None


def _below(base: str, *names: str) -> str:
    return join_path(base, *names) if base else join_path(*names)


@dataclass(frozen=True)
class SweepLayout:
    """Paths of one sweep.

    Attributes:
        base: folder of the sweep relative to the storage's root; empty where the root is the sweep's folder.
    """

    base: str = ""

    @property
    def sweep(self) -> str:
        return _below(self.base, "sweep.yaml")

    @property
    def trials_table(self) -> str:
        return _below(self.base, "trials.parquet")

    @property
    def reproduction(self) -> str:
        """What ``clray reproduce`` found, as numbers."""
        return _below(self.base, "reproduction.parquet")

    @property
    def reproduction_page(self) -> str:
        """The same to read."""
        return _below(self.base, "reproduction.md")

    @property
    def leases(self) -> str:
        """Who is driving this sweep: a file an epoch, the highest one counts."""
        return _below(self.base, ".lease")

    def lease(self, epoch: int) -> str:
        """The file of one epoch, counted from 1."""
        return _below(self.leases, f"{epoch:06d}.json")

    @property
    def trials(self) -> str:
        return _below(self.base, "trials")

    def trial(self, trial_id: str) -> TrialLayout:
        return TrialLayout(_below(self.base, "trials", trial_id))


@dataclass(frozen=True)
class TrialLayout:
    """Paths of one trial.

    Attributes:
        base: folder of the trial relative to the storage's root.
    """

    base: str

    @property
    def config(self) -> str:
        return _below(self.base, "config.yaml")

    @property
    def classes(self) -> str:
        """int32 (T, R, C)."""
        return _below(self.base, "classes.npy")

    @property
    def permutations(self) -> str:
        """int32 (T, R, height * width), with policy permuted."""
        return _below(self.base, "permutations.npy")

    @property
    def angles(self) -> str:
        """float64 (T, R), with policy rotated."""
        return _below(self.base, "angles.npy")

    @property
    def eval_samples(self) -> str:
        """int64 (K, S/C): indices into the test split."""
        return _below(self.base, "eval_samples.npy")

    @property
    def result(self) -> str:
        """Present only when the trial is complete."""
        return _below(self.base, "RESULT.json")

    @property
    def attempts(self) -> str:
        return _below(self.base, "attempts")

    def attempt(self, number: int) -> str:
        """One JSON an attempt, counted from 1."""
        return _below(self.attempts, f"{number:03d}.json")

    @staticmethod
    def attempt_of(file_name: str) -> int | None:
        """The number of an attempt from its file name, None for other files."""
        match = _ATTEMPT.fullmatch(file_name)
        return int(match.group(1)) if match else None

    @property
    def log(self) -> str:
        """All attempts write here, one after the other."""
        return _below(self.attempts, "log.txt")

    @property
    def traceback(self) -> str:
        return _below(self.attempts, "traceback.txt")

    @property
    def logged(self) -> str:
        """How many tasks each logger has been given."""
        return _below(self.base, ".logged.json")

    @staticmethod
    def folder_names(n_tasks: int, *, joint: bool = False) -> list[str]:
        """Names of all folders of a complete trial, in the order in which they are written.

        Args:
            n_tasks: T.
            joint: whether the joint baseline is asked for.
        """
        return [INITIAL, *(task_folder(task) for task in range(n_tasks)), *([JOINT] if joint else [])]

    def folder(self, name: str) -> str:
        return _below(self.base, name)

    def commit(self, folder: str) -> str:
        return _below(self.base, folder, COMMIT)

    def file(self, folder: str, key: str) -> str:
        """A file of a committed folder.

        Args:
            key: the entry's key in COMMIT.json; on a local disk the file's name.
        """
        return _below(self.base, folder, key)

    def staging(self, folder: str, attempt: str) -> str:
        """Where a folder is written on a local disk before it is committed."""
        return _below(self.base, f"{folder}.tmp-{attempt}")

    def keys(self, folder: str, attempt: str) -> str:
        """Where the files of a folder lie on an object store."""
        return _below(self.base, folder, attempt)
