"""Reservoir sampling: one pass in training order that keeps every sample with the same probability (Vitter 1985, algorithm R).

The first M samples fill the memory; sample number i (from 0) after them takes the place of one drawn from i + 1, if that is
below M. Every size is a pass of its own, so the sets of a draw do not grow from one another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clray.selection.base import Generators, Selecting, TaskView
from clray.types import HostArray


class Reservoir(Selecting):
    """No options."""

    def select(self, task: TaskView, sizes: Sequence[int], n_draws: int, generators: Generators) -> list[list[HostArray]]:
        return [[reservoir(task.stream, size, generators(draw, size)) for size in sizes] for draw in range(n_draws)]


def reservoir(stream: HostArray, size: int, rng: np.random.Generator) -> HostArray:
    """(size,) samples of ``stream`` that are left after one pass."""
    kept = stream[:size].copy()
    numbers = np.arange(size, len(stream))
    places = rng.integers(0, numbers + 1)
    taken = places < size
    # Of several samples at one place the last stays: NumPy assigns in order.
    kept[places[taken]] = stream[size:][taken]
    return kept
