"""Uniform without replacement over the task."""

from __future__ import annotations

import numpy as np

from clray.selection.base import Selecting, TaskView
from clray.types import HostArray


class Random(Selecting):
    """No options."""

    def rank(self, task: TaskView, rng: np.random.Generator, largest: int) -> HostArray:
        del largest
        return rng.permutation(len(task.labels))
