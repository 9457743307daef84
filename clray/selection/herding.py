"""Herding: of each class, one after the other, the sample that brings the mean of those chosen nearest to the class's mean.

Rebuffi et al. 2017 (iCaRL, arXiv 1611.07725, algorithm 4): with hidden states phi divided by their length and mu their mean over
the class, sample k is ``argmin_x |mu - (phi(x) + sum_{j<k} phi_j) / k|``, each sample at most once. As all phi have length 1,
that is the largest ``phi(x) . (k mu - sum_{j<k} phi_j)``, which a step updates by one product. The same in every draw.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from clray.selection.base import Selecting, TaskView, interleaved
from clray.types import HostArray

MOST_IN_MEMORY = 8192
"""Rows of a class up to which all inner products are computed at once."""


class Herding(Selecting):
    """No options."""

    deterministic: ClassVar[bool] = True

    @property
    def is_balanced(self) -> bool:
        return True

    def rank(self, task: TaskView, rng: np.random.Generator, largest: int) -> HostArray:
        del rng
        hidden = task.hidden()
        of_class = [min(len(rows), -(-largest // task.n_classes)) for rows in task.rows_of]
        return interleaved([rows[herd(hidden[rows], n)] for rows, n in zip(task.rows_of, of_class, strict=True)])


def herd(hidden: HostArray, n: int) -> HostArray:
    """(n,) rows of ``hidden`` (m, H) in the order in which they are chosen. Rows of length zero stay zero."""
    length = np.linalg.norm(hidden, axis=1, keepdims=True)
    phi = (hidden / np.where(length > 0.0, length, 1.0)).astype(np.float64)
    towards = phi @ phi.mean(axis=0)
    squared = np.sum(phi * phi, axis=1)
    products = phi @ phi.T if len(phi) <= MOST_IN_MEMORY else None
    against = 0.5 * squared
    chosen = np.empty(n, np.int64)
    for k in range(n):
        chosen[k] = np.argmax((k + 1) * towards - against)
        against += products[chosen[k]] if products is not None else phi @ phi[chosen[k]]
        against[chosen[k]] = np.inf
    return chosen
