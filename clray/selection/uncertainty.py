"""The samples that the trained network is least sure of: highest trace of the softmax's uncertainty, ``sum_k p_k (1 - p_k)``.

That is the trace of ``diag(p) - p p^T``, the Hessian of the cross-entropy with respect to the logits, which does not depend on
the label. The same in every draw; equal values keep the order of the rows.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from clray.selection.base import Selecting, TaskView, interleaved
from clray.types import HostArray


class Uncertainty(Selecting):
    """Options of ``lambda``."""

    deterministic: ClassVar[bool] = True
    balanced: bool = False

    @property
    def is_balanced(self) -> bool:
        return self.balanced

    def rank(self, task: TaskView, rng: np.random.Generator, largest: int) -> HostArray:
        del rng, largest
        p = task.probabilities().astype(np.float64)
        order = np.argsort(-np.sum(p * (1.0 - p), axis=1), kind="stable")
        return interleaved([order[task.labels[order] == label] for label in range(task.n_classes)]) if self.balanced else order
