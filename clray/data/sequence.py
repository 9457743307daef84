"""Which classes make up which task, drawn for all tasks and repeats before training."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from itertools import chain, combinations

import numpy as np

from clray.config import Sequence
from clray.errors import ConfigError

LISTED_SETS = 2**16  # up to here all class sets of policy reuse are listed; beyond, used ones are remembered


def draw_classes(sequence: Sequence, n_classes: int, seed: int, repeats: Items[int]) -> np.ndarray:
    """The source class behind every label of every task.

    Each repeat has its own generator, seeded by (seed, repeat) alone, so it is the same whichever repeats are drawn. The
    first tasks of a longer sequence are those of a shorter one.

    Args:
        sequence: T, C and the policy.
        n_classes: K.
        seed: of the experiment.
        repeats: numbers of the repeats to draw, R of them.

    Returns:
        (T, R, C) int32, each row of C different numbers below K.

    Raises:
        ConfigError: the policy cannot give T tasks of C classes out of K.
    """
    check_classes(sequence, n_classes)
    draws = np.empty((sequence.n_tasks, len(repeats), sequence.classes_per_task), np.int32)
    listed = _all_sets(sequence, n_classes)
    for position, repeat in enumerate(repeats):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(repeat,))))
        if sequence.transforms:
            draws[:, position] = np.arange(n_classes)
        elif sequence.policy == "fixed":
            draws[:, position] = sequence.classes or ()
        elif sequence.policy == "disjoint":
            draws[:, position] = rng.permutation(n_classes)[: draws[:, 0].size].reshape(draws[:, 0].shape)
        elif listed is not None:
            draws[:, position] = _reuse_listed(rng, listed, sequence.n_tasks)
        else:
            draws[:, position] = _reuse_remembered(rng, n_classes, sequence)
    return draws


def check_classes(sequence: Sequence, n_classes: int) -> None:
    """Raises ``ConfigError`` where the policy cannot give T tasks of C classes out of K (``n_classes``)."""
    n_tasks, per_task = sequence.n_tasks, sequence.classes_per_task
    if per_task > n_classes:
        raise ConfigError(f"sequence.classes_per_task is {per_task}, but the data set has {n_classes} classes; give at most {n_classes}")
    if sequence.transforms and per_task != n_classes:
        raise ConfigError(
            f"sequence.classes_per_task is {per_task}, but policy {sequence.policy} has all {n_classes} classes of the data set in every "
            f"task; give {n_classes}"
        )
    if sequence.policy == "disjoint" and n_tasks * per_task > n_classes:
        raise ConfigError(
            f"sequence.n_tasks is {n_tasks}: disjoint tasks of {per_task} classes out of {n_classes} allow at most "
            f"{n_classes // per_task}; lower n_tasks, or use policy reuse, in which classes come again in other tasks"
        )
    highest = max(chain.from_iterable(sequence.classes or ()), default=0)
    if highest >= n_classes:
        raise ConfigError(f"sequence.classes lists class {highest}, but the data set has classes 0 to {n_classes - 1}")


def count_outputs(sequence: Sequence) -> int:
    """O: logits of the network. C in scenario domain, T*C in task, the different classes of the sequence in class."""
    if sequence.scenario == "domain":
        return sequence.classes_per_task
    if sequence.scenario == "class" and sequence.policy == "fixed":
        return seen_outputs(sequence)[-1]
    return sequence.n_tasks * sequence.classes_per_task


def seen_outputs(sequence: Sequence) -> tuple[int, ...]:
    """For each task, how many outputs of scenario class belong to it or to tasks before it: those come first in the head."""
    if sequence.policy != "fixed":
        return tuple(sequence.classes_per_task * (task + 1) for task in range(sequence.n_tasks))
    rows = sequence.classes or ()
    return tuple(len(set(chain.from_iterable(rows[: task + 1]))) for task in range(sequence.n_tasks))


def number_outputs(sequence: Sequence) -> np.ndarray:
    """(T, C) int32: the output of the network that stands for each label of each task, the same in all repeats.

    Scenario domain: the label itself. Task: the label in the task's own head; head t is outputs t*C to t*C + C - 1. Class: the
    position of the class among the different classes of the sequence, in the order in which they first come; where images
    are transformed, every pair of task and class counts as a class.
    """
    shape = sequence.n_tasks, sequence.classes_per_task
    if sequence.scenario == "domain":
        return np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    if sequence.scenario == "class" and sequence.policy == "fixed":
        numbers: dict[int, int] = {}
        for label in chain.from_iterable(sequence.classes or ()):
            numbers.setdefault(label, len(numbers))
        return np.array([[numbers[label] for label in row] for row in sequence.classes or ()], np.int32)
    return np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)


def _all_sets(sequence: Sequence, n_classes: int) -> np.ndarray | None:
    """(number of sets, C) all class sets in lexicographic order, or None where there are too many to list."""
    n_sets = math.comb(n_classes, sequence.classes_per_task)
    if sequence.policy != "reuse" or n_sets > LISTED_SETS:
        return None
    flat = chain.from_iterable(combinations(range(n_classes), sequence.classes_per_task))
    return np.fromiter(flat, np.int32, n_sets * sequence.classes_per_task).reshape(n_sets, -1)


def _reuse_listed(rng: np.random.Generator, listed: np.ndarray, n_tasks: int) -> np.ndarray:
    """(T, C): the listed sets in random order, round after round, the labels within each set in random order."""
    rows: list[np.ndarray] = []
    while len(rows) < n_tasks:
        order = rng.permutation(len(listed))[: n_tasks - len(rows)]
        rows += [rng.permutation(listed[index]) for index in order]
    return np.stack(rows)


def _reuse_remembered(rng: np.random.Generator, n_classes: int, sequence: Sequence) -> np.ndarray:
    """(T, C): random sets, drawn again where they were used; time and memory follow T, not the number of sets."""
    n_sets = math.comb(n_classes, sequence.classes_per_task)
    used: set[frozenset[int]] = set()
    rows: list[np.ndarray] = []
    while len(rows) < sequence.n_tasks:
        classes = rng.choice(n_classes, sequence.classes_per_task, replace=False)
        members = frozenset(classes.tolist())
        if members in used:
            continue
        rows.append(classes)
        used.add(members)
        if len(used) == n_sets:
            used.clear()
    return np.stack(rows)
