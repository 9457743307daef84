"""Greedy gradient-based sample selection: keeps samples whose gradients point elsewhere than those of the memory.

Aljundi et al. 2019 (arXiv 1903.08671, algorithm 2). In one pass in training order, a sample's score is 1 plus the largest cosine
similarity of its gradient to those of ``batch`` samples drawn from the memory (with replacement; the paper draws a subset). While
there is room it is kept. Afterwards, if its score is below 1 (it points away from all of them), a kept sample i drawn in proportion
to its score C_i is replaced with probability ``C_i / (C_i + score)``. The first sample of a memory gets the score ``FIRST``.

Gradients are those of the trained network (the paper uses the network as it is when the sample comes by). A sample's gradient of
a dense layer is the outer product of input a and delta d, so that inner products of gradients are ``sum (a_i . a_j)(d_i . d_j)``
over layers; biases count as one more input. Of networks with other layers only the dense ones count. ``balanced`` gives each
class an equal part of the memory, with a pass of its own; gradients within a class of a trained network mostly agree, and where all
do, the first samples of the pass stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from clray.options import Count
from clray.selection.base import Factors, Generators, Selecting, TaskView, interleaved
from clray.types import HostArray

FIRST = 0.1
BLOCK = 512
"""Samples whose similarities to all earlier ones are computed at once."""


class GSS(Selecting):
    """Options of gss."""

    batch: Count = Field(10, description="samples of the memory that a new one is compared with")
    gradients: Literal["all", "head"] = Field("all", description="of all dense layers, or of the last one")
    balanced: bool = False

    @property
    def is_balanced(self) -> bool:
        return self.balanced

    def select(self, task: TaskView, sizes: Sequence[int], n_draws: int, generators: Generators) -> list[list[HostArray]]:
        factors = task.factors() if self.gradients == "all" else task.factors()[-1:]
        lanes = [(draw, size) for draw in range(n_draws) for size in sizes]
        if not self.balanced:
            parts = self._pass(factors, task.stream, [size for _, size in lanes], [generators(*lane) for lane in lanes])
        else:
            rngs = [generators(*lane) for lane in lanes]
            streams = [task.stream[task.labels[task.stream] == label] for label in range(task.n_classes)]
            own = [self._pass(factors, stream, [size // task.n_classes for _, size in lanes], rngs) for stream in streams]
            parts = [interleaved(of_lane) for of_lane in zip(*own, strict=True)]
        return [parts[draw * len(sizes) : (draw + 1) * len(sizes)] for draw in range(n_draws)]

    def _pass(self, factors: Factors, stream: HostArray, sizes: Sequence[int], rngs: Sequence[np.random.Generator]) -> list[HostArray]:
        ordered = _unit([(a[stream], d[stream]) for a, d in factors])
        memory = Memory(sizes, len(stream))
        for start in range(0, len(stream), BLOCK):
            stop = min(start + BLOCK, len(stream))
            cosines = _products(ordered, slice(start, stop), stop)
            draws = np.stack([rng.random((stop - start, self.batch + 2), np.float32) for rng in rngs], axis=1)
            for number in range(start, stop):
                memory.offer(number, cosines[number - start], draws[number - start])
        return [stream[places[:size]] for places, size in zip(memory.kept, sizes, strict=True)]


class Memory:
    """Several memories that see the same stream.

    Args:
        sizes: of each memory.
        n_stream: samples of the stream.
    """

    def __init__(self, sizes: Sequence[int], n_stream: int):
        self.sizes = np.minimum(sizes, n_stream)
        self.kept = np.zeros((len(sizes), max(self.sizes)), np.int64)
        self._scores = np.zeros(self.kept.shape)
        self._lanes = np.arange(len(sizes))[:, None]

    def offer(self, number: int, cosines: HostArray, draws: HostArray) -> None:
        """One sample of the stream.

        Args:
            cosines: of its gradient to those of all samples before it.
            draws: (memories, batch + 2) uniform numbers.
        """
        if number == 0:
            self._scores[:, 0] = FIRST
            return
        filled = np.minimum(number, self.sizes)
        places = (draws[:, :-2] * filled[:, None]).astype(np.int64)
        score = 1.0 + cosines[self.kept[self._lanes, np.minimum(places, filled[:, None] - 1)]].max(axis=1)
        room = number < self.sizes
        self.kept[room, number if room.any() else 0] = number
        self._scores[room, number if room.any() else 0] = score[room]
        for lane in np.flatnonzero(~room & (score < 1.0)):
            sums = np.cumsum(self._scores[lane, : self.sizes[lane]])
            place = min(int(np.searchsorted(sums, draws[lane, -2] * sums[-1], side="right")), self.sizes[lane] - 1)
            old = self._scores[lane, place]
            if draws[lane, -1] * (old + max(score[lane], 0.0)) < old:
                self.kept[lane, place], self._scores[lane, place] = number, max(score[lane], 0.0)


def _unit(factors: Factors) -> list[tuple[HostArray, HostArray]]:
    """The factors with a one for the bias, divided so that every whole gradient has length 1."""
    extended = [(np.pad(a, ((0, 0), (0, 1)), constant_values=1.0), d) for a, d in factors]
    length = np.sqrt(sum(np.sum(a * a, axis=1) * np.sum(d * d, axis=1) for a, d in extended))
    scale = (1.0 / np.where(length > 0.0, length, 1.0)).astype(np.float32)
    return [(a, d * scale[:, None]) for a, d in extended]


def _products(factors: Factors, rows: slice, stop: int) -> HostArray:
    """(rows, stop) inner products of the gradients of some samples with those of all before ``stop``."""
    total: HostArray = sum((a[rows] @ a[:stop].T) * (d[rows] @ d[:stop].T) for a, d in factors)
    return total
