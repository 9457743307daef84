"""What networks of a study are trained on: batches of all data so far, and batches in which memory sets stand for the past.

A task keeps its number of batches. They come from the union of the tasks so far: epoch after epoch a new permutation of it,
the last partial batch dropped. A network with a memory sees the same batches, except that a sample of a past task is replaced by
one of that task's memory set: sample i of N by number ``i * m // N`` of the m rows in order. So every row of the memory comes
equally often, each task keeps its share, and a memory of everything trains exactly like the ideal model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clray.config import Experiment
from clray.core.program import TaskArrays
from clray.data.order import batch_order
from clray.draw import Draw
from clray.sizes import Sizes
from clray.study.sizes import most_rows
from clray.types import HostArray


def union_batches(experiment: Experiment, sizes: Sizes, repeat: int, task: int) -> HostArray:
    """(total batches, B) numbers ``task * N + sample`` of one repeat."""
    return batch_order(experiment.seed, repeat, task, (task + 1) * sizes.n_train, sizes.batch_size, sizes.total_batches)


def with_memory(numbers: HostArray, task: int, n_train: int, memory: Sequence[HostArray]) -> HostArray:
    """The batches of ``union_batches`` with rows of memory sets in place of those of the tasks before ``task``.

    Args:
        memory: of each task before ``task`` the rows of its memory set.
    """
    replaced = numbers.copy()
    for past in range(task):
        own = numbers // n_train == past
        rows = np.sort(memory[past])
        replaced[own] = past * n_train + rows[(numbers[own] % n_train) * len(rows) // n_train]
    return replaced


class StudyDraw(Draw):
    """The data of a study's repeats: batches from all tasks so far."""

    def __init__(self, experiment: Experiment, dataset: Any, sizes: Sizes):
        super().__init__(experiment, dataset, sizes)
        tasks = [self.loader.task_rows(task) for task in range(sizes.n_tasks)]
        self.indices = np.stack([rows.indices for rows in tasks])  # (T, N, R) into the training split
        self.row_labels = np.stack([rows.labels for rows in tasks])  # (T, N, R)

    def task(self, task: int, pixels: bool, cumulative: bool | None = None) -> TaskArrays:
        del cumulative  # always
        repeats = enumerate(self.experiment.repeat_numbers)
        return self.arrays([(at, union_batches(self.experiment, self.sizes, r, task)) for at, r in repeats], pixels)

    def arrays(self, lanes: Sequence[tuple[int, HostArray]], pixels: bool) -> TaskArrays:
        """Training data of lanes.

        Args:
            lanes: for each the position of its repeat and its batches as numbers ``task * N + sample``.
            pixels: see ``Draw.task``.
        """
        n_rows = most_rows(self.sizes)
        rows, labels, orders = [], [], []
        for position, numbers in lanes:
            used, order = np.unique(numbers, return_inverse=True)
            padded = np.pad(used, (0, n_rows - len(used)))
            tasks, samples = np.divmod(padded, self.sizes.n_train)
            rows.append(self.indices[tasks, samples, position])
            labels.append(self.row_labels[tasks, samples, position])
            orders.append(order.reshape(numbers.shape).astype(np.int32))
        chosen = np.stack(rows, axis=1)
        images = self.images(chosen) if pixels else chosen.astype(np.int32)
        return TaskArrays(images, np.stack(labels, axis=1), np.stack(orders, axis=1))

    def images(self, indices: HostArray) -> HostArray:
        """(*indices.shape, *input_shape) images of the training split."""
        source = np.asarray(self.loader.dataset.train_images).reshape(-1, *self.sizes.input_shape)
        return source[indices]
