"""Whether the memory sets that a study asks for can be made, from its file and a description of its data alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clray.data.sequence import draw_classes
from clray.data.sizes import class_sizes
from clray.data.source import DatasetInfo
from clray.errors import ConfigError
from clray.selection.base import Selecting, set_size
from clray.study.config import Study

if TYPE_CHECKING:
    from clray.sizes import Sizes


def check_study(study: Study, info: DatasetInfo, n_train: int) -> None:
    """Refuses selections and fractions that the smallest class of some past task cannot give.

    Args:
        n_train: N.

    Raises:
        ConfigError: the message names the key and what is valid.
    """
    n_classes = study.sequence.classes_per_task
    counts = np.asarray(class_sizes(info, study.dataset).train)
    per_class = study.dataset.train_per_class
    if per_class != "all":
        counts = np.full_like(counts, n_train // n_classes)
    classes = draw_classes(study.sequence, info.n_classes, study.seed, range(study.n_repeats))[:-1]  # (T-1, R, C)
    smallest = int(classes.ravel()[np.argmin(counts[classes.ravel()])])
    room = int(counts[smallest])
    for position, method in enumerate(study.memory.methods):
        if not isinstance(method, Selecting):
            raise ConfigError(f"memory.methods.{position}.name: {method.name!r} must derive from clray.selection.base.Selecting")
        if reason := method.misfit(room):
            raise ConfigError(f"memory.methods.{position}.{reason}")
        if method.is_balanced:
            _check_fractions(study, method, n_train, smallest, room)


def _check_fractions(study: Study, method: Selecting, n_train: int, smallest: int, room: int) -> None:
    n_classes = study.sequence.classes_per_task
    for position, fraction in enumerate(study.memory.fractions):
        each = set_size(fraction, n_train, n_classes, balanced=True) // n_classes
        if fraction < 1.0 and each > room:
            most = room * n_classes / n_train
            raise ConfigError(
                f"memory.fractions.{position}: {fraction:g} of {n_train} samples of a task is a balanced set of {each} of each class "
                f"(method {method.shown}), but class {smallest} has {room} training samples; use fractions up to {most:.3g} or 1, or leave "
                "dataset.train_per_class out, so that all classes are equally large"
            )


def most_rows(sizes: Sizes) -> int:
    """Different samples that a task of a study can train on."""
    return min(sizes.n_tasks * sizes.n_train, sizes.total_batches * sizes.batch_size)
