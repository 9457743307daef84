"""What follows from a seed: which classes make up which task, the training data of every task, the labels it is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from clray.assembly import evaluation_pool, make_lanes, transformed_pool
from clray.config import Experiment
from clray.core.program import Lane, TaskArrays
from clray.data.loader import TaskLoader
from clray.data.order import task_order
from clray.data.sequence import draw_classes
from clray.sizes import Sizes
from clray.types import HostArray


class Draw:
    """What follows from a seed: classes, training data and evaluation labels of all repeats."""

    def __init__(self, experiment: Experiment, dataset: Any, sizes: Sizes):
        self.experiment = experiment
        self.sizes = sizes
        self.classes = draw_classes(experiment.sequence, sizes.n_classes, experiment.seed, experiment.repeat_numbers)
        self.loader = TaskLoader(dataset, experiment, self.classes)
        self.cumulative = any(options.trains_on == "all_so_far" for options in experiment.strategy)
        self.pool, self.labels = self._pool(experiment.eval_task_numbers, sizes.n_pool_classes)

    def _pool(self, tasks: Sequence[int], n_pool: int) -> tuple[HostArray, HostArray]:
        classes = self.classes[list(tasks)]
        if self.loader.has_transforms:
            return transformed_pool(classes)
        return evaluation_pool(classes, self.sizes.n_classes, n_pool)

    def lanes(self, experiment: Experiment, task: int | None = None) -> Lane:
        """The lanes of a trial of this draw, evaluated on the tasks it asks for, or on ``task`` alone."""
        tasks = experiment.eval_task_numbers if task is None else [task]
        pool = (self.pool, self.labels) if task is None else self._pool(tasks, self.sizes.classes_per_task)
        return make_lanes(experiment, *pool, tasks, self.loader.eval_transform(tasks))

    def task(self, task: int, pixels: bool, cumulative: bool | None = None) -> TaskArrays:
        """Training data of one task, rows = repeats; with ``pixels`` false, numbers of images in place of images.

        Args:
            cumulative: with batches from all tasks so far; default what the strategy asks for.
        """
        sizes = self.sizes
        if self.cumulative if cumulative is None else cumulative:
            return self._cumulative(task, pixels)
        repeats = self.experiment.repeat_numbers
        order = task_order(self.experiment.seed, repeats, task, sizes.n_train, sizes.batch_size, sizes.total_batches)
        if pixels:
            arrays = self.loader.task(task)
            return TaskArrays(arrays.images, arrays.labels, order)
        rows = self.loader.task_rows(task)
        return TaskArrays(rows.indices.astype(np.int32), rows.labels, order)

    def _cumulative(self, task: int, pixels: bool) -> TaskArrays:
        batches = self.sizes.batch_size, self.sizes.total_batches

        def in_batches(rows: HostArray) -> HostArray:
            """(total batches * B, R, ...) as (total batches, R, B, ...)."""
            return rows.reshape(batches[1], batches[0], *rows.shape[1:]).swapaxes(1, 2)

        if pixels:
            arrays, drawn = self.loader.task(task), self.loader.cumulative_images(task, *batches)
            return TaskArrays(arrays.images, arrays.labels, in_batches(drawn.images), in_batches(drawn.labels))
        own, found = self.loader.task_rows(task), self.loader.cumulative_rows(task, *batches)
        return TaskArrays(own.indices.astype(np.int32), own.labels, in_batches(found.indices.astype(np.int32)), in_batches(found.labels))

    def joint(self, segment: int, rows: int, order: HostArray, pixels: bool) -> TaskArrays:
        """The same for a segment of the joint stream."""
        if pixels:
            arrays = self.loader.joint_segment(segment, rows)
            return TaskArrays(arrays.images, arrays.labels, order)
        found = self.loader.joint_rows(segment, rows)
        return TaskArrays(found.indices.astype(np.int32), found.labels, order)


def side_by_side(parts: Sequence[TaskArrays]) -> TaskArrays:
    """The rows of several draws next to each other."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)
