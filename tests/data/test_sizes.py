from __future__ import annotations

import numpy as np
import pytest

from clray.data.sequence import draw_classes
from clray.data.sizes import PoolSizes, class_sizes, static_sizes
from clray.data.source import DatasetInfo
from clray.errors import ConfigError
from clray.options import DatasetOptions

INFO = DatasetInfo(4, (100, 40, 70, 90), (20, 15, 30, 25), (2, 3, 1), "uint8")


def options(**values):
    return DatasetOptions(name="synthetic", **values)


def test_smallest_class_decides_by_default(experiment):
    assert static_sizes(INFO, experiment()) == PoolSizes(train_per_class=40, n_train=80, test_per_class=15)


def test_smallest_class_is_taken_after_the_hold_out(experiment):
    sizes = static_sizes(INFO, experiment(dataset={"validation_fraction": 0.25}))
    assert sizes == PoolSizes(train_per_class=30, n_train=60, test_per_class=15)


def test_validation_pools_come_from_the_held_out_part(experiment):
    sizes = static_sizes(INFO, experiment(split="validation", dataset={"validation_fraction": 0.25}))
    assert sizes.test_per_class == 10


def test_counts_of_a_plugin_may_be_lists_or_arrays():
    for counts in ([100, 40, 70, 90], np.array([100, 40, 70, 90])):
        given = DatasetInfo(4, counts, list(INFO.test_counts), (2, 3, 1), "uint8")
        assert class_sizes(given, options(validation_fraction=0.29)) == class_sizes(INFO, options(validation_fraction=0.29))


def test_hold_out_rounds_the_written_decimal_down():
    sizes = class_sizes(INFO, options(validation_fraction=0.29))
    assert sizes.validation == (29, 11, 20, 26)
    assert sizes.train == (71, 29, 50, 64)
    assert sizes.test == INFO.test_counts


def test_all_takes_the_largest_task_of_all_repeats_whichever_are_run(experiment):
    wanted = experiment(n_repeats=9, dataset={"train_per_class": "all"}, sequence={"n_tasks": 1})
    drawn = draw_classes(wanted.sequence, 4, wanted.seed, range(9))
    largest = max(sum(INFO.train_counts[label] for label in row) for row in drawn[0].tolist())
    assert static_sizes(INFO, wanted) == PoolSizes(None, largest, 15)
    for repeat in range(9):
        assert static_sizes(INFO, wanted.model_copy(update={"repeats": (repeat,)})).n_train == largest


@pytest.mark.parametrize(
    ("dataset", "split", "says"),
    [
        ({"train_per_class": 41}, "test", "train_per_class is 41, but class 1, the smallest, has 40"),
        ({"train_per_class": 40, "validation_fraction": 0.1}, "test", "has 36 training images"),
        ({"test_per_class": 16}, "test", "test_per_class is 16, but class 1, the smallest, has 15"),
        ({"test_per_class": 5, "validation_fraction": 0.1}, "validation", "has 4 validation images"),
        ({"validation_fraction": 0.02}, "validation", "no image of class 1, which has 40"),
    ],
)
def test_asking_for_more_than_the_smallest_class_has_is_refused(experiment, dataset, split, says):
    with pytest.raises(ConfigError, match=says):
        static_sizes(INFO, experiment(dataset=dataset, split=split))
