"""Uniform without replacement within each class, equally many of each."""

from __future__ import annotations

import numpy as np

from clray.selection.base import Selecting, TaskView, interleaved
from clray.types import HostArray


class ClassBalanced(Selecting):
    """No options."""

    @property
    def is_balanced(self) -> bool:
        return True

    def rank(self, task: TaskView, rng: np.random.Generator, largest: int) -> HostArray:
        del largest
        return interleaved([rng.permutation(rows) for rows in task.rows_of])
