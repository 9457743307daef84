"""What goes together in an experiment: strategies with each other, with the sequence and with how it is trained."""

from __future__ import annotations

from collections.abc import Iterator

from clray.config import Experiment
from clray.problems import Path_, Problem


def incompatible(experiment: Experiment) -> list[Problem]:
    """What does not go together in tables that are valid by themselves, each with the key to change."""
    return [*_cumulative(experiment), *_detected(experiment)]


def strategy_path(experiment: Experiment, position: int) -> Path_:
    """The key of a strategy in the file: a single one is a table, several are a list."""
    return ("strategy", position) if len(experiment.strategy) > 1 else ("strategy",)


def _cumulative(experiment: Experiment) -> Iterator[Problem]:
    kinds = [options.trains_on == "all_so_far" for options in experiment.strategy]
    if not any(kinds):
        return
    path = (*strategy_path(experiment, kinds.index(True)), "name")
    name = experiment.strategy[kinds.index(True)].name
    if experiment.sequence.policy == "reuse" and experiment.sequence.scenario == "domain":
        yield Problem(
            path,
            f"{name} trains on all tasks so far at once, but with policy reuse in scenario domain the same class carries different "
            "labels in different tasks. Use policy disjoint or fixed",
        )
    for position, options in enumerate(experiment.strategy):
        if options.keeps_samples:
            yield Problem(
                (*strategy_path(experiment, position), "name"),
                f"{options.name} keeps samples of earlier tasks, which {name} trains on anyway. Take one of them out",
            )


def _detected(experiment: Experiment) -> Iterator[Problem]:
    training, schedule = experiment.training, experiment.optimizer.schedule
    if training.boundaries.name != "detected":
        return
    for position, options in enumerate(experiment.strategy):
        if reason := options.needs_boundaries():
            yield Problem(
                (*strategy_path(experiment, position), "name"),
                f"{options.name} does not work with training.boundaries: detected: {reason}. Use boundaries: given, or another strategy",
            )
    if training.reset_optimizer:
        yield Problem(("training", "reset_optimizer"), "needs to know where tasks begin; use it with boundaries: given")
    if schedule.name != "constant" and schedule.per == "task":
        yield Problem(
            ("optimizer", "schedule"), "a schedule per task needs to know where tasks begin; use per: sequence, or boundaries: given"
        )
    if experiment.sequence.scenario == "task":
        yield Problem(
            ("sequence", "scenario"), "task tells the network which task a sample is of, so boundaries are given; use domain or class"
        )
    if training.active_classes == "seen":
        yield Problem(("training", "active_classes"), "seen needs to know where tasks begin; use all, or boundaries: given")
