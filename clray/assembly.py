"""From experiments and sizes to what the core is called with: specs, lanes and evaluation pools. Pure functions on host arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from clray.config import Experiment
from clray.core.program import Lane, Pools, Spec
from clray.data.cache import Dataset
from clray.sizes import Sizes
from clray.strategies.finetune import Finetune
from clray.types import HostArray

EVAL_ROWS = 2048
EVAL_ROWS_OF_IMAGES = 256
"""Samples evaluated in one pass: convolutions hold many copies of their input while they run."""


def make_spec(experiment: Experiment, sizes: Sizes) -> Spec:
    """The static description of the training program of an experiment."""
    boundaries = experiment.training.boundaries
    return Spec(
        model=experiment.model.structure(),
        optimizer=experiment.optimizer.structure(),
        strategy=tuple(options.structure() for options in experiment.strategy),
        input_shape=sizes.input_shape,
        dtype=sizes.dtype,
        scale=1.0 / 255.0 if sizes.dtype == "uint8" else 1.0,
        n_tasks=sizes.n_tasks,
        classes_per_task=sizes.classes_per_task,
        n_outputs=sizes.classes_per_task,
        n_train=sizes.n_train,
        batch_size=sizes.batch_size,
        total_batches=sizes.total_batches,
        log_frequency=experiment.logging.log_frequency,
        n_kept=sizes.n_kept,
        log_weights=experiment.logging.weights,
        reset_optimizer=experiment.training.reset_optimizer,
        precision=experiment.training.precision,
        window=boundaries.window if boundaries.name == "detected" else 0,
        threshold=boundaries.threshold if boundaries.name == "detected" else 0.0,
        eval_rows=EVAL_ROWS_OF_IMAGES if experiment.model.takes_images else EVAL_ROWS,
    )


def baseline_spec(spec: Spec) -> Spec:
    """The program of the expert baseline: plain training that logs no tensors."""
    return dataclasses.replace(spec, strategy=(Finetune(name="finetune"),), n_kept=0, log_weights=False, window=0, threshold=0.0)


def joint_spec(spec: Spec, segment: int) -> Spec:
    """The program of the joint baseline: segments of one shuffled stream, with any schedule running over the whole of it.

    Args:
        segment: batches of one segment.
    """
    schedule = spec.optimizer.schedule.model_copy(update={"per": "sequence"})
    return dataclasses.replace(
        baseline_spec(spec),
        optimizer=spec.optimizer.model_copy(update={"schedule": schedule}),
        n_train=segment * spec.batch_size,
        total_batches=segment,
        log_frequency=segment,
        reset_optimizer=False,
    )


def segment_batches(total_batches: int, per_epoch: int) -> int:
    """Batches of one segment of the joint stream: a divisor of a task's batches, about an epoch's data at a time."""
    divisors = [d for d in range(1, total_batches + 1) if total_batches % d == 0 and d <= max(per_epoch, 1)]
    best = max(divisors)
    return best if best * 4 >= min(per_epoch, total_batches) else total_batches


def make_lanes(experiment: Experiment, pool: HostArray, labels: HostArray) -> Lane:
    """Host arrays with leading axis R that set the repeats of one trial apart.

    Args:
        pool: (R, U) classes each repeat evaluates on.
        labels: (R, E, C) positions in it.
    """
    repeats = np.asarray(experiment.repeat_numbers, np.int32)

    def column(value: float) -> HostArray:
        return np.full(len(repeats), value, np.float32)

    strategy = {f"{i}.{key}": column(v) for i, options in enumerate(experiment.strategy) for key, v in options.traced().items()}
    return Lane(
        seed=np.full(len(repeats), experiment.seed, np.uint32),
        repeat=repeats,
        optimizer={key: column(value) for key, value in experiment.optimizer.traced().items()},
        strategy=strategy,
        pool=pool.astype(np.int32),
        labels=labels.astype(np.int32),
    )


def stack_lanes(lanes: Sequence[Lane]) -> Lane:
    """The lanes of several trials one after the other: leading axis A."""
    import jax

    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *lanes)


def evaluation_pool(classes: HostArray, n_classes: int, n_pool: int) -> tuple[HostArray, HostArray]:
    """Which classes each repeat evaluates on, and where the classes of its tasks stand among them.

    Args:
        classes: (E, R, C) of the evaluated tasks.
        n_classes: K.
        n_pool: U. Repeats that use fewer are filled up with other classes, so that all have the same number.

    Returns:
        pool (R, U), sorted, and labels (R, E, C), positions in it.
    """
    pools, labels = [], []
    for own in np.moveaxis(classes, 1, 0):
        used = np.unique(own)
        spare = np.setdiff1d(np.arange(n_classes), used)[: n_pool - len(used)]
        pool = np.sort(np.concatenate([used, spare]))
        pools.append(pool)
        labels.append(np.searchsorted(pool, own))
    return np.stack(pools), np.stack(labels)


def make_pools(images: HostArray, experiment: Experiment, dataset: Dataset, flat: bool) -> Pools:
    """Evaluation images and the normalisation of all images.

    Args:
        images: (K, P, *input_shape).
        flat: whether the input is (D,): channels are fastest, so the per-channel numbers repeat along D.
    """
    mean: Any = np.float32(0.0)
    deviation: Any = np.float32(1.0)
    if experiment.dataset.normalize == "standard":
        mean, deviation = dataset.mean.astype(np.float32), dataset.std.astype(np.float32)
        if flat:
            n_pixels = images.shape[-1] // len(mean)
            mean, deviation = np.tile(mean, n_pixels), np.tile(deviation, n_pixels)
    return Pools(images, mean, deviation)
