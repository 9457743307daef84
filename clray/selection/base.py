"""The interface of selections: from what is known of a task to the rows of its memory sets.

A set of fraction p has ``round(p * N)`` rows, at least one; a balanced one has the same number of rows of each class, at least
one of each. A selection is drawn several times. Most selections are an order of the rows whose beginnings are the sets; then
the sets of one draw grow from fraction to fraction. Those of ``reservoir`` and ``gss`` are made anew for every size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from clray.options import SelectionOptions
from clray.types import HostArray

Generators = Callable[[int, int], np.random.Generator]
"""``(draw, size) -> generator``; size 0 for what all sizes of a draw share. Equal arguments give a generator that starts anew."""

Factors = Sequence[tuple[HostArray, HostArray]]
"""For each dense layer the inputs (N, in) and the deltas (N, out): a sample's gradient is their outer product."""


@dataclass(frozen=True)
class TaskView:
    """What a selection may look at. Rows are different samples; nothing that is not asked for is computed.

    Attributes:
        labels: (N,) position of the class in the task.
        n_classes: C.
        stream: (N,) rows in the order in which training first visits them.
        pixels: ``() -> (N, D)`` float32, scaled as the network gets them.
        hidden: ``() -> (N, H)`` under the network trained on the task.
        probabilities: ``() -> (N, C)`` softmax outputs of it.
        factors: ``() -> Factors`` of it.
    """

    labels: HostArray
    n_classes: int
    stream: HostArray
    pixels: Callable[[], HostArray]
    hidden: Callable[[], HostArray]
    probabilities: Callable[[], HostArray]
    factors: Callable[[], Factors]

    @property
    def rows_of(self) -> list[HostArray]:
        """The rows of each class, in their order."""
        return [np.flatnonzero(self.labels == label) for label in range(self.n_classes)]


class Selecting(SelectionOptions):
    """Base of all selections. Subclasses implement ``rank``, or ``select`` itself.

    Attributes:
        deterministic: every draw is the same.
    """

    deterministic: ClassVar[bool] = False

    @property
    def is_balanced(self) -> bool:
        """Whether sets have equally many rows of each class."""
        return False

    def rank(self, task: TaskView, rng: np.random.Generator, largest: int) -> HostArray:
        """Rows of the task, those to be remembered first in front; ``largest`` of them at least.

        Where ``is_balanced``, every beginning of a multiple of C rows has equally many of each class.
        """
        raise NotImplementedError

    def select(self, task: TaskView, sizes: Sequence[int], n_draws: int, generators: Generators) -> list[list[HostArray]]:
        """Row numbers of every set: ``n_draws`` lists, a set a size. No row comes twice in a set."""
        drawn = []
        for draw in range(n_draws):
            order = self.rank(task, generators(draw, 0), max(sizes))
            drawn.append([order[:size] for size in sizes])
        return drawn


def set_size(fraction: float, n_rows: int, n_classes: int, balanced: bool) -> int:
    """Rows of a set of a fraction of N = ``n_rows`` rows; see the module's text."""
    if fraction == 1.0:
        return n_rows
    unit = n_classes if balanced else 1
    return unit * max(1, int(fraction * n_rows / unit + 0.5))


def interleaved(orders: Sequence[HostArray]) -> HostArray:
    """One row of each class in turn; what is left over in longer classes comes last."""
    shared = min(map(len, orders))
    front = np.stack([order[:shared] for order in orders], axis=1).reshape(-1)
    return np.concatenate([front, *(order[shared:] for order in orders)])
