"""Canonical tensors of one task, of the evaluation pools and of the joint mixture, cut from a prepared data set.

All choices (which image stands at which row) are arithmetic on (seed, repeat, task) and on the source's order, so a repeat
has the same rows whichever repeats run beside it and in whatever order tasks are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clray.config import Experiment
from clray.data.cache import Dataset
from clray.data.order import batch_order
from clray.data.sequence import number_outputs
from clray.data.sizes import class_sizes, static_sizes
from clray.data.transforms import draw_transforms
from clray.transform import Transform, transformed

# Last parts of spawn keys, so that no purpose shares a stream with another one or with the classes, spawn_key=(repeat,).
FILL = 1_000_003
JOINT = 1_000_033

TRANSFORM_ROWS = 1024
"""Images that are transformed at once: four taps of them in int32 should stay in a processor's cache."""


class TaskArrays(NamedTuple):
    """Training data of one task (or one joint segment) for all repeats; ``shape`` is (D,) or (height, width, channels)."""

    images: np.ndarray  # (N, R, *shape) in the source's dtype
    labels: np.ndarray  # (N, R) int32, numbers of outputs: in scenario domain the position of the class in the task


class EvalPools(NamedTuple):
    """The samples that evaluation runs on, per class and without a repeat axis."""

    images: np.ndarray  # (K, P, *shape) in the source's dtype
    indices: np.ndarray  # (K, P) int64 into the test split, or into the training split where logging.split is validation


class TaskRows(NamedTuple):
    """Where the rows of a task come from: what ``TaskArrays`` is gathered by."""

    indices: np.ndarray  # (N, R) int64 into the training split as prepared
    labels: np.ndarray  # (N, R) int32
    tasks: np.ndarray  # (N, R) the task of each row, by which its image is transformed


class TaskLoader:
    """Builds what the compiled program reads, one task at a time; memory does not grow with T (except ``joint_segment``'s).

    Not thread-safe: one thread asks at a time.
    """

    def __init__(self, dataset: Dataset, experiment: Experiment, classes: np.ndarray) -> None:
        """Fixes all sizes; no pixels are read yet.

        Args:
            dataset: as opened from the cache.
            experiment: whose ``repeat_numbers`` are the R repeats.
            classes: (T, R, C) from ``draw_classes``.

        Raises:
            ConfigError: more images are asked for than there are.
        """
        n_tasks, n_repeats, per_task = experiment.sequence.n_tasks, len(experiment.repeat_numbers), experiment.sequence.classes_per_task
        if classes.shape != (n_tasks, n_repeats, per_task):
            raise ValueError(f"classes are {classes.shape}, the experiment has (T, R, C) = {(n_tasks, n_repeats, per_task)}")
        self.dataset = dataset
        self.sizes = static_sizes(dataset.info, experiment)
        self.n_train = self.sizes.n_train
        self.shape: tuple[int, ...] = dataset.info.shape if experiment.model.takes_images else (dataset.info.n_inputs,)
        self._class_sizes = class_sizes(dataset.info, experiment.dataset)
        self._from_validation = experiment.logging.split == "validation"
        self._seed = experiment.seed
        self._repeats = experiment.repeat_numbers
        self._classes = classes
        self._outputs = number_outputs(experiment.sequence)
        self.transforms = draw_transforms(experiment.sequence, dataset.info.shape, experiment.seed, self._repeats)
        self.has_transforms = experiment.sequence.transforms
        self._order, self._starts = _by_class(dataset.train_labels, dataset.info.n_classes)
        per_class = self.sizes.train_per_class
        used = np.asarray(self._class_sizes.train) if per_class is None else np.full(dataset.info.n_classes, per_class)
        self._used = used[classes]  # (T, R, C) images of each label
        self._ends = self._used.cumsum(axis=2)  # (T, R, C) where the block of each label ends
        self._joint_orders: dict[int, tuple[int, np.ndarray]] = {}
        self._joint_tails: dict[int, np.ndarray] = {}

    def task(self, task: int) -> TaskArrays:
        """All training samples of one task: the labels' blocks one after the other, each in the source's order.

        A task smaller than N (``train_per_class: all``) is filled up at its end with resampled images of its own.
        """
        return self._gather(self.task_rows(task))

    def eval_transform(self, tasks: Sequence[int]) -> Transform | None:
        """What is done to the evaluation images in some tasks, leading axes (R, len(tasks)); None: nothing in any task."""
        return self.transforms.table(tasks, self.dataset.info.shape)

    def task_rows(self, task: int) -> TaskRows:
        """The rows of ``task(task)`` as indices, for a gather on the device."""
        tasks = np.full(self.n_train, task)
        columns = [self._locate(position, tasks, self._own_samples(task, position)) for position in range(len(self._repeats))]
        return _stacked(columns)

    def cumulative_rows(self, task: int, batch_size: int, total_batches: int) -> TaskRows:
        """The batches of a task that are drawn from all data of the tasks up to it.

        Per repeat: epoch after epoch a new permutation of the union, whose last partial batch is dropped, until there are as many
        batches as a task has. Task 0 is that of plain training. A task that is smaller than N enters as it is.

        Returns:
            Rows (total batches * B, R), batch after batch.
        """
        columns = []
        for position, repeat in enumerate(self._repeats):
            ends = self._ends[: task + 1, position, -1].cumsum()  # of the tasks' own samples among those of all
            n_union = max(int(ends[-1]), batch_size)
            numbers = batch_order(self._seed, repeat, task, n_union, batch_size, total_batches).ravel() % ends[-1]
            tasks = np.searchsorted(ends, numbers, side="right")
            columns.append(self._locate(position, tasks, numbers - np.concatenate([[0], ends])[tasks]))
        return _stacked(columns)

    def cumulative_images(self, task: int, batch_size: int, total_batches: int) -> TaskArrays:
        """The images at ``cumulative_rows``: a copy for every visit."""
        return self._gather(self.cumulative_rows(task, batch_size, total_batches))

    def joint_segment(self, segment: int, rows: int) -> TaskArrays:
        """Piece ``segment`` of the shuffled mixture of all tasks.

        Per repeat the mixture is an endless stream: epoch after epoch a new permutation of all T*N (task, sample) pairs. It
        is cut into consecutive pieces of ``rows``. Labels and transforms are those of the sample's own task. Cheapest
        when segments are asked for in order: one permutation per repeat is held (4 bytes * T * N).

        Returns:
            images (rows, R, *shape), labels (rows, R).
        """
        return self._gather(self.joint_rows(segment, rows))

    def joint_rows(self, segment: int, rows: int) -> TaskRows:
        """The rows of ``joint_segment`` as indices, for a gather on the device."""
        columns = []
        for position in range(len(self._repeats)):
            pairs = self._joint_pairs(position, segment * rows, rows)
            tasks, samples = np.divmod(pairs, self.n_train)
            columns.append(self._locate(position, tasks, self._joint_samples(position, tasks, samples)))
        return _stacked(columns)

    def eval_pools(self) -> EvalPools:
        """The first P samples of each class of the evaluated split, in the source's order."""
        n_classes = self.dataset.info.n_classes
        if self._from_validation:
            images, order = self.dataset.train_images, self._order
            begins = self._starts + np.asarray(self._class_sizes.train)
        else:
            images = self.dataset.test_images
            order, begins = _by_class(self.dataset.test_labels, n_classes)
        indices = order[begins[:, None] + np.arange(self.sizes.test_per_class)]
        return EvalPools(_take(images, indices, self.shape), indices)

    def _gather(self, rows: TaskRows) -> TaskArrays:
        images = _take(self.dataset.train_images, rows.indices, self.shape)
        for task in np.unique(rows.tasks).tolist() if self.has_transforms else ():
            table = self.eval_transform([task])
            assert table is not None
            for position in range(len(self._repeats)):
                own = np.flatnonzero(rows.tasks[:, position] == task)
                one = Transform(table.index[position, 0], None if table.weight is None else table.weight[position, 0])
                for start in range(0, len(own), TRANSFORM_ROWS):
                    chosen = own[start : start + TRANSFORM_ROWS]
                    images[chosen, position] = transformed(images[chosen, position], one)
        return TaskArrays(images, rows.labels)

    def _locate(self, position: int, tasks: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(m,) source indices, outputs and tasks of the (m,) own samples of (m,) tasks, for one repeat."""
        ends = self._ends[tasks, position]
        labels = (samples[:, None] >= ends).sum(axis=1)
        within = samples - (self._ends - self._used)[tasks, position, labels]
        return self._order[self._starts[self._classes[tasks, position, labels]] + within], self._outputs[tasks, labels], tasks

    def _own_samples(self, task: int, position: int) -> np.ndarray:
        """(N,) which of a task's own samples stands at each row: all of them, then resampled ones.

        Resampling takes whole shuffled rounds, so no image comes more than once oftener than another.
        """
        n_own = int(self._ends[task, position, -1])
        samples = np.arange(self.n_train, dtype=np.int32)
        if n_own < self.n_train:
            rng = _generator(self._seed, self._repeats[position], task, FILL)
            samples[n_own:] = np.resize(rng.permutation(n_own), self.n_train - n_own)
        return samples

    def _joint_samples(self, position: int, tasks: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(m,) own samples at the (m,) rows of the (m,) tasks: ``_own_samples`` for many tasks at once."""
        fewest = int(self._ends[:, position, -1].min())
        if fewest == self.n_train:
            return rows
        if position not in self._joint_tails:
            n_tasks = len(self._classes)
            self._joint_tails[position] = np.stack([self._own_samples(task, position)[fewest:] for task in range(n_tasks)])
        tail = self._joint_tails[position]
        return np.where(rows < fewest, rows, tail[tasks, np.maximum(rows - fewest, 0)])

    def _joint_pairs(self, position: int, start: int, rows: int) -> np.ndarray:
        """(rows,) numbers task * N + sample of the mixture's stream from ``start`` on."""
        epoch_length = len(self._classes) * self.n_train
        pieces = []
        while rows > 0:
            epoch, offset = divmod(start, epoch_length)
            piece = self._joint_order(position, epoch, epoch_length)[offset : offset + rows]
            pieces.append(piece)
            start, rows = start + len(piece), rows - len(piece)
        return np.concatenate(pieces)

    def _joint_order(self, position: int, epoch: int, length: int) -> np.ndarray:
        """(T*N,) the permutation of one epoch; the last one of each repeat is kept."""
        held, order = self._joint_orders.get(position, (-1, np.empty(0, np.int32)))
        if held != epoch:
            self._joint_orders.pop(position, None)
            del order
            order = np.arange(length, dtype=np.int32 if length < 2**31 else np.int64)
            _generator(self._seed, self._repeats[position], epoch, JOINT).shuffle(order)
            self._joint_orders[position] = (epoch, order)
        return order


def _by_class(labels: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 indices sorted by class, within a class in the source's order, and (K,) where each class starts."""
    order = np.argsort(labels, kind="stable")
    return order, np.searchsorted(labels[order], np.arange(n_classes))


def _generator(seed: int, *spawn_key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=spawn_key)))


def _stacked(columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> TaskRows:
    indices, labels, tasks = (np.stack(parts, axis=1) for parts in zip(*columns, strict=True))
    return TaskRows(indices, labels.astype(np.int32), tasks)


def _take(images: np.ndarray, indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(*indices.shape, *shape), C-contiguous: the images at ``indices``.

    One take in the order of the output: on MNIST with R = 8 twice as fast as a take per repeat, and three times
    torch.index_select. Mode clip since mode raise buffers the output; indices are in range by construction.
    """
    out = np.empty((*indices.shape, int(np.prod(shape))), images.dtype)
    np.take(np.asarray(images).reshape(len(images), -1), indices, axis=0, out=out, mode="clip")
    return out.reshape(*indices.shape, *shape)
