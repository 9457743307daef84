"""From experiments and sizes to what the core is called with: specs, lanes and evaluation pools. Pure functions on host arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from clray.config import Experiment
from clray.core.program import Lane, Pools, Spec
from clray.data.cache import Dataset
from clray.data.sequence import number_outputs, seen_outputs
from clray.sizes import Sizes
from clray.strategies.finetune import Finetune
from clray.transform import Transform
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
        n_outputs=sizes.n_outputs,
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
        scenario=experiment.sequence.scenario,
        seen=seen_outputs(experiment.sequence) if experiment.training.active_classes == "seen" else (),
    )


def baseline_spec(spec: Spec) -> Spec:
    """The program of the expert baseline: plain training that logs no tensors."""
    plain = (Finetune(name="finetune"),)
    return dataclasses.replace(spec, strategy=plain, n_kept=0, log_weights=False, n_segments=1, window=0, threshold=0.0)


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


def choice_facts(experiment: Experiment, task: int) -> dict[str, str]:
    """Which outputs the argmax of the evaluation runs over while ``task`` is trained: the metadata of its tables."""
    sequence = experiment.sequence
    if sequence.scenario != "class":
        over = "labels of the task" if sequence.scenario == "domain" else "head of the task"
        return {"argmax_over": over, "n_choices": str(sequence.classes_per_task)}
    seen = experiment.training.active_classes == "seen"
    n_choices = seen_outputs(sequence)[task if seen else -1]
    return {"argmax_over": "classes so far" if seen else "all classes", "n_choices": str(n_choices)}


def make_lanes(
    experiment: Experiment, pool: HostArray, labels: HostArray, tasks: Sequence[int] | None = None, transform: Transform | None = None
) -> Lane:
    """Host arrays with leading axis R that set the repeats of one trial apart.

    Args:
        pool: (R, U) classes each repeat evaluates on.
        labels: (R, E, C) positions in it.
        tasks: the E evaluated tasks; default those of the experiment.
        transform: of their images, leading axes (R, E).
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
        outputs=_outputs(experiment, tasks, len(repeats)),
        transform=transform,
    )


def _outputs(experiment: Experiment, tasks: Sequence[int] | None, n_repeats: int) -> HostArray | None:
    if experiment.sequence.scenario == "domain":
        return None
    evaluated = experiment.eval_task_numbers if tasks is None else tasks
    own = number_outputs(experiment.sequence)[list(evaluated)]
    return np.repeat(own[None], n_repeats, axis=0)


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


def transformed_pool(classes: HostArray) -> tuple[HostArray, HostArray]:
    """The same where the images of every task are changed in their own way: an entry for each class of each task.

    Args:
        classes: (E, R, C) of the evaluated tasks.

    Returns:
        pool (R, E*C), task after task, and labels (R, E, C), positions in it.
    """
    n_tasks, n_repeats, per_task = classes.shape
    positions = np.arange(n_tasks * per_task).reshape(1, n_tasks, per_task)
    return np.moveaxis(classes, 1, 0).reshape(n_repeats, -1), np.repeat(positions, n_repeats, axis=0)


def make_pools(images: HostArray, experiment: Experiment, dataset: Dataset, flat: bool) -> Pools:
    """Evaluation images and the normalisation of all images.

    Args:
        images: (K, P, *input_shape).
        flat: whether the input is (D,): channels are fastest, so the per-channel numbers repeat along D.
    """
    mean: Any = None
    deviation: Any = None
    if experiment.dataset.normalize == "standard":
        mean, deviation = dataset.mean.astype(np.float32), dataset.std.astype(np.float32)
        if flat:
            n_pixels = images.shape[-1] // len(mean)
            mean, deviation = np.tile(mean, n_pixels), np.tile(deviation, n_pixels)
    return Pools(images, mean, deviation)
