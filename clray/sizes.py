"""The static sizes of an experiment, from its file and a description of its data alone, and whether they fit together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clray.config import Experiment
from clray.data.sequence import check_classes, count_outputs
from clray.data.sizes import static_sizes
from clray.data.source import DatasetInfo
from clray.errors import ConfigError, ResourceError
from clray.process import machine_bytes
from clray.study.config import Study
from clray.study.sizes import check_study

MOST_TASKS = 100_000  # a folder each, and all (T, R, C) classes are drawn before the first
MOST_OUTPUTS = 65_536  # T*C of them where every task has a head of its own
MOST_STEPS = 2**31 - 1  # optimizers count in int32


@dataclass(frozen=True)
class Sizes:
    """One number an axis; see ``clray.types`` for the letters.

    Attributes:
        n_tasks: T.
        n_repeats: R.
        classes_per_task: C.
        n_classes: K.
        n_train: N.
        batch_size: B.
        total_batches: batches of one task.
        n_logs: L.
        n_eval_tasks: E.
        n_kept: S/C, samples of each class whose hidden states are kept.
        n_pool: P, evaluated samples of each class.
        n_pool_classes: U, classes a lane evaluates on; E*C where images are transformed.
        n_outputs: O, logits of the network.
        input_shape: (D,) or (height, width, channels).
        dtype: of the images on their way to the device, uint8 or float32.
        scenario: domain, task or class.
        n_source: images of the training split, of all classes.
    """

    n_tasks: int
    n_repeats: int
    classes_per_task: int
    n_classes: int
    n_train: int
    batch_size: int
    total_batches: int
    n_logs: int
    n_eval_tasks: int
    n_kept: int
    n_pool: int
    n_pool_classes: int
    n_outputs: int
    input_shape: tuple[int, ...]
    dtype: str
    n_source: int
    scenario: str = "domain"

    def after_the_last_log(self, log_frequency: int) -> str:
        """What is not logged of the end of a task, as a sentence; empty where the last log point is the end."""
        last = self.n_logs * log_frequency
        if last == self.total_batches:
            return ""
        return (
            f"the last log point of a task is after batch {last} of {self.total_batches}: weights and representations in files are of "
            "that batch, final metrics of the end. They are the same where logging.log_frequency divides the batches"
        )

    @property
    def n_subsamples(self) -> int:
        """S."""
        return self.n_kept * self.classes_per_task

    @property
    def n_labels(self) -> int:
        """Labels of the whole sequence that a buffer tells apart."""
        return self.n_outputs if self.scenario == "class" else self.n_tasks * self.classes_per_task


def sizes_of(experiment: Experiment, info: DatasetInfo) -> Sizes:
    """Derives all sizes.

    Raises:
        ConfigError: they do not fit together; the message names the key and what is valid.
    """
    sequence, training, logging = experiment.sequence, experiment.training, experiment.logging
    if sequence.n_tasks > MOST_TASKS:
        raise ConfigError(f"sequence.n_tasks: {sequence.n_tasks} is more than the {MOST_TASKS} tasks that one experiment can have")
    check_classes(sequence, info.n_classes)
    n_outputs = count_outputs(sequence)
    if n_outputs > MOST_OUTPUTS:
        raise ConfigError(
            f"sequence.n_tasks: {sequence.n_tasks} tasks of {sequence.classes_per_task} classes take {n_outputs} outputs in scenario "
            f"{sequence.scenario}, more than the {MOST_OUTPUTS} that a network can have; use at most "
            f"{MOST_OUTPUTS // sequence.classes_per_task} tasks, or scenario domain"
        )
    for split, counts in (("training", info.train_counts), ("test", info.test_counts)):
        if 0 in counts:
            raise ConfigError(
                f"dataset: class {counts.index(0)} has no {split} images; number the classes 0 to K-1, each with some in both splits"
            )
    pools = static_sizes(info, experiment)
    batch = training.batch_size
    if batch > pools.n_train:
        raise ConfigError(f"training.batch_size: {batch} is larger than the {pools.n_train} training samples of a task; use at most that")
    total = training.steps if training.steps is not None else (training.epochs or 0) * (pools.n_train // batch)
    if logging.log_frequency > total:
        raise ConfigError(
            f"logging.log_frequency: {logging.log_frequency} is larger than the {total} batches of a task, so nothing "
            f"would be logged; use 1 to {total}"
        )
    boundaries = training.boundaries
    if boundaries.name == "detected" and boundaries.window > total:
        raise ConfigError(
            f"training.boundaries.window: {boundaries.window} is larger than the {total} batches of a task, whose end would go "
            f"unnoticed; use 1 to {total}"
        )
    if total * sequence.n_tasks > MOST_STEPS:
        raise ConfigError(
            f"training: {sequence.n_tasks} tasks of {total} batches are more than the {MOST_STEPS} steps that can be counted; "
            "lower training.epochs, training.steps or sequence.n_tasks"
        )
    n_classes = sequence.classes_per_task
    if logging.n_subsamples % n_classes or logging.n_subsamples > pools.test_per_class * n_classes:
        raise ConfigError(
            f"logging.n_subsamples: {logging.n_subsamples} must be a multiple of the {n_classes} classes of a task and at "
            f"most {pools.test_per_class * n_classes}, the samples a task is evaluated on"
        )
    evaluated = len(experiment.eval_task_numbers)
    most_classes = evaluated * n_classes
    takes_images = experiment.model.takes_images
    sizes = Sizes(
        n_tasks=sequence.n_tasks,
        n_repeats=len(experiment.repeat_numbers),
        classes_per_task=n_classes,
        n_classes=info.n_classes,
        n_train=pools.n_train,
        batch_size=batch,
        total_batches=total,
        n_logs=total // logging.log_frequency,
        n_eval_tasks=evaluated,
        n_kept=logging.n_subsamples // n_classes if logging.representations == "dense" else 0,
        n_pool=pools.test_per_class,
        n_pool_classes=most_classes if sequence.transforms else min(most_classes, info.n_classes),
        n_outputs=n_outputs,
        input_shape=info.shape if takes_images else (info.shape[0] * info.shape[1] * info.shape[2],),
        dtype=info.dtype,
        scenario=sequence.scenario,
        n_source=sum(info.train_counts),
    )
    for position, options in enumerate(experiment.strategy):
        if reason := options.misfit(sizes):
            raise ConfigError(f"strategy.{f'{position}.' if len(experiment.strategy) > 1 else ''}{reason}")
    if isinstance(experiment, Study):
        check_study(experiment, info, pools.n_train)
    return sizes


def check_host(sizes: Sizes) -> None:
    """Refuses sizes of which one task does not fit into this machine's memory, before anything is drawn or read.

    A lower bound that needs no model: ``clray.memory.estimate`` counts more.

    Raises:
        ResourceError: with the arithmetic.
    """
    order = sizes.n_repeats * sizes.total_batches * sizes.batch_size * 4
    sample = math.prod(sizes.input_shape) * (1 if sizes.dtype == "uint8" else 4)
    images = sizes.n_repeats * sizes.n_train * (sample + 4)
    logs = sizes.n_logs * sizes.n_repeats * (2 * sizes.n_eval_tasks + 2) * 4
    need, available = 2 * (order + images) + logs, machine_bytes()
    if need > available:
        gib = 2**30
        raise ResourceError(
            f"training: a task takes at least {need / gib:.1f} GiB of host memory, and this machine has {available / gib:.1f}: twice "
            f"{images / gib:.1f} for its images and {order / gib:.1f} for the order of {sizes.total_batches} batches (the next task is "
            f"made ready meanwhile), and {logs / gib:.1f} for accuracy and loss at {sizes.n_logs} log points. Lower training.epochs or "
            "training.steps, n_repeats or dataset.train_per_class, or raise logging.log_frequency"
        )
