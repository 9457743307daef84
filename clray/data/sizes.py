"""Static sizes: how many images of each class train, validate and test, and from that N and P.

Everything here follows from ``DatasetInfo`` and the experiment, so that a dry run knows the sizes without any pixels, and
nothing depends on which repeats are run.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from clray.config import Experiment
from clray.data.sequence import draw_classes
from clray.data.source import DatasetInfo
from clray.errors import ConfigError
from clray.options import DatasetOptions


@dataclass(frozen=True)
class ClassSizes:
    """Images of each class, (K,) each. Training takes the first of a class in the source's order, validation the last."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


class PoolSizes(NamedTuple):
    """The static sizes of an experiment's data.

    Attributes:
        train_per_class: images of each class that train, or None where every image does (``train_per_class: all``).
        n_train: N, training samples of one task in one repeat.
        test_per_class: P, samples of each class in the evaluation pools (of the split that ``logging.split`` names).
    """

    train_per_class: int | None
    n_train: int
    test_per_class: int


def class_sizes(info: DatasetInfo, options: DatasetOptions) -> ClassSizes:
    """How the images of each class are divided.

    ``validation_fraction`` of each class, rounded down, is held out from the end of its training images. The fraction is
    taken as the decimal number that was written: 0.29 of 100 is 29, although the nearest float is below that.
    """
    return _divided(tuple(info.train_counts), tuple(info.test_counts), options.validation_fraction)  # a plug-in may give lists


@functools.cache
def _divided(train: tuple[int, ...], test: tuple[int, ...], validation_fraction: float) -> ClassSizes:
    fraction = Fraction(str(validation_fraction))
    held_out = tuple(int(fraction * n) for n in train)
    return ClassSizes(tuple(n - held for n, held in zip(train, held_out, strict=True)), held_out, test)


def static_sizes(info: DatasetInfo, experiment: Experiment) -> PoolSizes:
    """N and P of an experiment, the same for all tasks and repeats.

    With ``train_per_class: all``, N is the largest task of all ``n_repeats`` repeats, run or not: a repeat that is run alone
    has the sizes it has in the full run.

    Raises:
        ConfigError: more images are asked for than the smallest class has, or a class is left without any.
    """
    sizes = class_sizes(info, experiment.dataset)
    return PoolSizes(*_train_sizes(info, sizes, experiment), _pool_size(sizes, experiment))


def _train_sizes(info: DatasetInfo, sizes: ClassSizes, experiment: Experiment) -> tuple[int | None, int]:
    asked = experiment.dataset.train_per_class
    if asked == "all":
        classes = draw_classes(experiment.sequence, info.n_classes, experiment.seed, range(experiment.n_repeats))
        return None, max(sum(sizes.train[label] for label in row) for row in classes.reshape(-1, classes.shape[-1]).tolist())
    n = _within_smallest("train_per_class", asked, sizes.train, "training images", "give at most that, all, or leave it out")
    return n, n * experiment.sequence.classes_per_task


def _pool_size(sizes: ClassSizes, experiment: Experiment) -> int:
    asked = experiment.dataset.test_per_class
    if experiment.logging.split == "validation":
        if min(sizes.validation) == 0:
            label = sizes.validation.index(0)
            raise ConfigError(
                f"dataset.validation_fraction {experiment.dataset.validation_fraction} holds out no image of class {label}, which has "
                f"{sizes.train[label]} training images; every class needs one: give more, or use logging.split: test"
            )
        return _within_smallest("test_per_class", asked, sizes.validation, "validation images", "give at most that or leave it out")
    return _within_smallest("test_per_class", asked, sizes.test, "test images", "give at most that or leave it out")


def _within_smallest(key: str, asked: int | None, counts: tuple[int, ...], what: str, advice: str) -> int:
    smallest = min(counts)
    if asked is not None and asked > smallest:
        raise ConfigError(f"dataset.{key} is {asked}, but class {counts.index(smallest)}, the smallest, has {smallest} {what}; {advice}")
    return smallest if asked is None else asked
