"""What a study's file says: the keys of an experiment, and what is measured on its models."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from clray.config import Experiment, Logging
from clray.options import Count, Name, SelectionOptions, Table

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Metric = Literal["cosine", "mse", "norm_ratio"]

IDEAL_STRATEGY = {"name": "cumulative"}
"""Of the ideal models; what a task trains on is all data so far, see ``clray.study.batches``."""


def _once(values: Any) -> Any:
    again = None if values == "all" else next((value for value in values if values.count(value) > 1), None)
    if again is not None:
        raise ValueError(f"lists {again} twice; each once")
    return values


def _rising(value: Any) -> Any:
    if value != "all" and any(low >= high for low, high in itertools.pairwise(value)):
        raise ValueError("lists rising fractions, each once")
    return value


class Memory(Table):
    """Which memory sets are made of every past task."""

    methods: Annotated[tuple[SelectionOptions, ...], Field(min_length=1)]
    fractions: Annotated[
        tuple[Fraction, ...], Field(min_length=1, description="of each past task, above 0 and up to 1"), AfterValidator(_rising)
    ]
    num_samples: Count = Field(10, description="sets of each method and fraction")

    @model_validator(mode="after")
    def _different_names(self) -> Memory:
        shown = [method.shown for method in self.methods]
        again = next((name for name in shown if shown.count(name) > 1), None)
        if again:
            raise ValueError(f"methods: {again} comes twice; tell them apart with label, such as {{name: {again}, label: {again}-2}}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What the methods' results are called after."""
        return tuple(method.shown for method in self.methods)


class Downstream(Table):
    """Which memory sets models are trained with. The memory of each is that of the first draw."""

    methods: Annotated[Literal["all"] | Annotated[tuple[Name, ...], Field(min_length=1)], AfterValidator(_once)] = "all"
    fractions: Annotated[Literal["all"] | Annotated[tuple[Fraction, ...], Field(min_length=1)], AfterValidator(_rising)] = "all"


class StudyLogging(Logging):
    """As in experiments, with no tensors unless asked for."""

    representations: Literal["dense", "none"] = "none"
    weights: bool = False


class Study(Experiment):
    """A study: an experiment whose networks train with all data so far, and what is measured on them."""

    not_in_identity: ClassVar[frozenset[str]] = Experiment.not_in_identity | {"ideal_models"}
    own_keys: ClassVar[frozenset[str]] = frozenset({"study", "memory", "similarity", "downstream", "ideal_models"})

    study: Literal["gradient_similarity"]
    memory: Memory
    similarity: Annotated[tuple[Metric, ...], Field(min_length=1), AfterValidator(_once)] = ("cosine", "mse", "norm_ratio")
    downstream: Downstream | None = Downstream()
    ideal_models: str | None = Field(
        None, description="folder of an earlier study, whose networks are taken instead of training them again"
    )
    logging: StudyLogging = StudyLogging()

    @model_validator(mode="after")
    def _measurable(self) -> Study:
        if self.sequence.n_tasks < 2:
            raise ValueError(
                f"sequence.n_tasks: a study compares gradients on past tasks and needs at least 2 tasks, got {self.sequence.n_tasks}"
            )
        if self.sequence.scenario != "domain":
            raise ValueError(f"sequence.scenario: a study needs scenario domain, got {self.sequence.scenario}")
        if self.sequence.policy == "reuse":
            raise ValueError(
                "sequence.policy: with reuse the same class carries different labels in different tasks, so that no network can learn all "
                "of them; use policy disjoint or fixed"
            )
        if self.sequence.transforms:
            raise ValueError(
                f"sequence.policy: a study trains on images as they are; use policy disjoint or fixed, not {self.sequence.policy}"
            )
        if self.baselines:
            raise ValueError("baselines: a study trains with all data so far and has none; leave baselines out")
        if self.downstream is None:
            return self
        for key, given, known in (
            ("methods", self.downstream.methods, self.memory.names),
            ("fractions", self.downstream.fractions, self.memory.fractions),
        ):
            stray = [value for value in given if value not in known] if given != "all" else []
            if stray:
                raise ValueError(f"downstream.{key}: {stray[0]} is not among memory.{key}, which are {', '.join(map(str, known))}")
        return self

    @property
    def downstream_methods(self) -> tuple[SelectionOptions, ...]:
        """The methods that models are trained with."""
        if self.downstream is None:
            return ()
        chosen = self.downstream.methods
        return tuple(method for method in self.memory.methods if chosen == "all" or method.shown in chosen)

    @property
    def downstream_fractions(self) -> tuple[float, ...]:
        """The fractions that models are trained with."""
        if self.downstream is None:
            return ()
        return self.memory.fractions if self.downstream.fractions == "all" else self.downstream.fractions

    def ideal_identity(self) -> dict[str, Any]:
        """What decides the ideal models, in canonical form."""
        return {key: value for key, value in self.canonical().items() if key not in self.own_keys}
