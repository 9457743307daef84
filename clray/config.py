"""What people write: pydantic models of experiment and sweep files. The bases of plug-ins' options are in ``options``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from clray.options import (
    Count,
    DatasetOptions,
    Degrees,
    HookMemory,
    Index,
    LoggerOptions,
    ModelOptions,
    Name,
    OptimizerOptions,
    PluginOptions,
    Schedule,
    SelectionOptions,
    StrategyOptions,
    Table,
    Traced,
)

__all__ = [
    "Boundaries",
    "Count",
    "DatasetOptions",
    "Experiment",
    "HookMemory",
    "LoggerOptions",
    "Logging",
    "ModelOptions",
    "OptimizerOptions",
    "PluginOptions",
    "RandomSearch",
    "Resources",
    "Schedule",
    "SelectionOptions",
    "Sequence",
    "StrategyOptions",
    "Sweep",
    "Table",
    "Traced",
    "Training",
    "canonical_json",
    "digest",
]  # options for plug-ins that look for them here


class Sequence(Table):
    """What sets one task apart from the others: its classes, or what is done to the images of all classes."""

    n_tasks: Count
    classes_per_task: Annotated[int, Field(ge=2)] = 2
    policy: Literal["disjoint", "reuse", "fixed", "permuted", "rotated"] = Field(
        "disjoint", description="which classes; permuted and rotated: all of them in every task, on images that differ by task"
    )
    scenario: Literal["domain", "task", "class"] = Field(
        "domain", description="domain: one head for all tasks; task: a head a task; class: one head over all classes of the sequence"
    )
    classes: tuple[tuple[Index, ...], ...] | None = None
    keep_first: bool = Field(False, description="the images of task 0 stay as they are (policies permuted and rotated)")
    angles: tuple[Degrees, ...] | None = Field(None, description="policy rotated: degrees anticlockwise, one a task; default drawn")
    angle_range: tuple[Degrees, Degrees] = Field((0.0, 180.0), description="policy rotated: angles are drawn between these")

    @property
    def transforms(self) -> bool:
        """Whether the images of a task are changed in a way of its own."""
        return self.policy in ("permuted", "rotated")

    @model_validator(mode="after")
    def _scenario_fits(self) -> Sequence:
        if self.scenario == "class" and self.policy == "reuse":
            raise ValueError(
                "scenario class needs every class to have one label in the whole sequence, which policy reuse does not give; "
                "use policy disjoint, fixed, permuted or rotated, or scenario task or domain"
            )
        return self

    @model_validator(mode="after")
    def _transform_fits(self) -> Sequence:
        if self.keep_first and not self.transforms:
            raise ValueError(f"keep_first is used only with policy permuted or rotated, not {self.policy}")
        if self.policy != "rotated" and (self.angles is not None or self.angle_range != (0.0, 180.0)):
            raise ValueError(f"angles and angle_range are used only with policy rotated, not {self.policy}")
        if self.angles is not None and len(self.angles) != self.n_tasks:
            raise ValueError(f"angles lists {len(self.angles)} but n_tasks is {self.n_tasks}")
        if self.angles is not None and (self.keep_first or self.angle_range != (0.0, 180.0)):
            raise ValueError("angles lists the angle of every task: leave keep_first and angle_range out")
        if self.angle_range[0] >= self.angle_range[1]:
            raise ValueError(f"angle_range takes [low, high] with low < high, got {list(self.angle_range)}")
        return self

    @model_validator(mode="after")
    def _classes_fit(self) -> Sequence:
        if self.policy == "fixed":
            if self.classes is None:
                raise ValueError("policy fixed needs classes, a list of n_tasks lists of classes_per_task class numbers")
            if len(self.classes) != self.n_tasks:
                raise ValueError(f"classes lists {len(self.classes)} tasks but n_tasks is {self.n_tasks}")
            for row in self.classes:
                if len(row) != self.classes_per_task or len(set(row)) != len(row):
                    raise ValueError(f"each task needs {self.classes_per_task} different classes, got {list(row)}")
        elif self.classes is not None:
            raise ValueError(f"classes are listed only with policy fixed, not {self.policy}")
        return self


class Boundaries(Table):
    """How the strategy learns where a task ends: it is told (given), or the training accuracy tells (detected)."""

    name: Literal["given", "detected"] = "given"
    window: Count = Field(10, description="batches whose mean training accuracy is compared with that of as many before (detected)")
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.1, description="a fall by more than that ends a task (detected)")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """``detected`` stands for {name: detected}, and a table that says how to detect needs no name."""
        if isinstance(value, str):
            return {"name": value}
        return {"name": "detected", **value} if isinstance(value, dict) and value and value.keys() <= {"window", "threshold"} else value

    @model_validator(mode="after")
    def _detection_is_used(self) -> Boundaries:
        if self.name == "given" and self.canonical():
            raise ValueError("window and threshold are used only with name: detected")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> Any:
        return {"anyOf": [handler(core_schema), {"enum": ["given", "detected"]}]}


class Training(Table):
    """How long each task is trained. Exactly one of ``epochs`` and ``steps``."""

    epochs: Count | None = None
    steps: Count | None = Field(None, description="batches per task, instead of epochs")
    batch_size: Count = 32
    reset_optimizer: bool = Field(False, description="fresh optimizer state at the start of every task")
    boundaries: Boundaries = Boundaries()
    precision: Literal["float32", "tf32", "bfloat16"] = Field("float32", description="of matrix products on a GPU; weights stay float32")
    active_classes: Literal["all", "seen"] = Field(
        "all", description="scenario class: loss and evaluation choose among all classes of the sequence, or those of the tasks so far"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps; null takes one away, as in --set training.epochs=null")
        return self


class Logging(Table):
    """What is logged, and how often."""

    log_frequency: Count = Field(10, description="batches between two log points of a task")
    n_subsamples: Count = Field(20, description="S: test samples per task whose hidden states are kept")
    representations: Literal["dense", "none"] = "dense"
    weights: bool = True
    eval_tasks: Literal["all"] | tuple[Index, ...] = "all"
    split: Literal["test", "validation"] = "test"

    @field_validator("eval_tasks")
    @classmethod
    def _different_tasks(cls, value: Any) -> Any:
        if value != "all" and (not value or len(set(value)) != len(value)):
            raise ValueError("eval_tasks is all or a list of different task numbers, at least one")
        return value


class Experiment(Table):
    """One experiment: a file for ``clray run``, or the base of a sweep."""

    not_in_identity: ClassVar[frozenset[str]] = frozenset({"name", "dataset", "loggers"})

    name: Name = "experiment"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    n_repeats: Annotated[int, Field(ge=1, le=32767)] = 1
    repeats: tuple[Index, ...] | None = Field(None, description="run only these of the n_repeats repeats")
    sequence: Sequence
    dataset: DatasetOptions
    model: ModelOptions
    optimizer: OptimizerOptions
    strategy: Annotated[tuple[StrategyOptions, ...], Field(min_length=1)]
    training: Training
    logging: Logging = Logging()
    baselines: tuple[Literal["expert", "joint"], ...] = ()
    loggers: tuple[LoggerOptions, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        given = self.repeats
        if given is not None and (not given or len(set(given)) != len(given) or max(given) >= self.n_repeats):
            raise ValueError(f"repeats lists different numbers below n_repeats = {self.n_repeats}, at least one")
        tasks = self.logging.eval_tasks
        if tasks != "all" and max(tasks) >= self.sequence.n_tasks:
            raise ValueError(f"logging.eval_tasks lists task {max(tasks)}, but tasks are 0 to {self.sequence.n_tasks - 1}")
        if self.logging.split == "validation" and self.dataset.validation_fraction == 0.0:
            raise ValueError("logging.split: validation needs dataset.validation_fraction above 0")
        if self.training.active_classes == "seen" and self.sequence.scenario != "class":
            raise ValueError(f"training.active_classes: seen is used only with sequence.scenario: class, not {self.sequence.scenario}")
        if "joint" in self.baselines and self.sequence.policy == "reuse" and self.sequence.scenario == "domain":
            raise ValueError(
                "baseline joint is no upper bound with policy reuse in scenario domain: the same class carries "
                "different labels in different tasks. Leave it out, or use policy disjoint or fixed"
            )
        return self

    @property
    def repeat_numbers(self) -> tuple[int, ...]:
        """The repeats that are run; R is their number."""
        return self.repeats if self.repeats is not None else tuple(range(self.n_repeats))

    @property
    def eval_task_numbers(self) -> tuple[int, ...]:
        """The tasks that are evaluated; E is their number."""
        tasks = self.logging.eval_tasks
        return tuple(range(self.sequence.n_tasks)) if tasks == "all" else tasks

    def canonical_dataset(self, fingerprint: str | None) -> dict[str, Any]:
        """The data set's part of the identity; files that people own enter by their fingerprint."""
        out = self.dataset.canonical()
        return out | {"fingerprint": fingerprint} if fingerprint else out

    def trial_id(self, fingerprint: str | None = None) -> str:
        """``t_`` and ten hex digits of SHA-256 over the canonical form.

        Args:
            fingerprint: of the content listing of folders and arrays the data set reads, where it reads any.
        """
        canonical = self.canonical() | {"dataset": self.canonical_dataset(fingerprint)}
        return "t_" + digest(canonical)[:10]


class Resources(Table):
    """What one trial gets from the cluster."""

    num_gpus: Literal["auto"] | Annotated[float, Field(ge=0.0)] = "auto"
    num_cpus: Annotated[float, Field(gt=0.0)] = 1.0
    max_lanes: Literal["auto"] | Count = "auto"

    @field_validator("num_gpus")
    @classmethod
    def _whole_above_one(cls, value: Any) -> Any:
        if value != "auto" and value > 1 and value != int(value):
            raise ValueError("num_gpus above 1 must be a whole number")
        return value


class RandomSearch(Table):
    """Random points: ``keys`` maps a dotted key to one of uniform, loguniform, int, choice."""

    n: Count
    seed: Annotated[int, Field(ge=0)] = 0
    keys: Annotated[dict[str, dict[str, list[Any]]], Field(min_length=1)]

    @field_validator("keys")
    @classmethod
    def _known_distributions(cls, value: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
        for key, table in value.items():
            if len(table) != 1 or (kind := next(iter(table))) not in DISTRIBUTIONS:
                raise ValueError(f"{key} needs exactly one of {', '.join(DISTRIBUTIONS)}, got {', '.join(table) or 'nothing'}")
            problem = DISTRIBUTIONS[kind](table[kind])
            if problem:
                raise ValueError(f"{key}: {kind} {problem}, got {table[kind]}")
        return value


def _interval(number: type | tuple[type, ...], positive: bool) -> Callable[[list[Any]], str]:
    def check(values: list[Any]) -> str:
        kind = "whole numbers" if number is int else "numbers"
        fits = len(values) == 2 and all(isinstance(v, number) and not isinstance(v, bool) for v in values)
        if not fits or not values[0] < values[1] or (positive and values[0] <= 0):
            return f"takes [low, high], two {kind} with {'0 < ' if positive else ''}low < high"
        return ""

    return check


DISTRIBUTIONS: dict[str, Callable[[list[Any]], str]] = {
    "uniform": _interval((int, float), positive=False),
    "loguniform": _interval((int, float), positive=True),
    "int": _interval(int, positive=False),
    "choice": lambda values: "" if values else "takes a list of at least one value",
}


class Sweep(Table):
    """A sweep file. ``experiment`` is kept as plain data: each point is validated as a whole experiment."""

    name: Name
    experiment: dict[str, Any]
    grid: dict[str, list[Any]] = Field({})
    zip: dict[str, list[Any]] = Field({})
    cases: list[dict[str, Any]] | None = None
    random: RandomSearch | None = None
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _axes_fit(self) -> Sweep:
        for table, axes in (("grid", self.grid), ("zip", self.zip)):
            for key, values in axes.items():
                if not values:
                    raise ValueError(f"{table}.{key} is empty; give at least one value")
        lengths = {key: len(values) for key, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            given = ", ".join(f"{key} has {n}" for key, n in lengths.items())
            raise ValueError(f"zip lists advance together and must be of equal length: {given}")
        if self.cases is not None and not self.cases:
            raise ValueError("cases is empty; give at least one point or leave it out")
        return self


def digest(plain: Any) -> str:
    """SHA-256 (hex) of plain data as canonical JSON: keys sorted, floats in Python's shortest exact form."""
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def canonical_json(plain: Any) -> str:
    """Plain data as JSON text with sorted keys; equal data give equal text."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
