"""The memory sets of one past task: what selections may look at, and the rows that they choose."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from clray.core.evaluate import scale_images
from clray.core.program import Pools, Spec
from clray.selection.base import Factors, Selecting, TaskView, set_size
from clray.study.config import Memory, Study
from clray.study.gradients import Loss, dense_factors
from clray.types import Array, HostArray, Params, PlacedArray

SELECT = 1_000_381
"""Last part of spawn keys, so that draws share no stream with classes or orders."""

BLOCK = 1024


def sizes_of_sets(memory: Memory, method: Selecting, n_train: int, n_classes: int) -> list[int]:
    """Rows of the set of every fraction."""
    return [set_size(fraction, n_train, n_classes, method.is_balanced) for fraction in memory.fractions]


def n_draws(memory: Memory, method: Selecting) -> int:
    """Different draws of a method: one where all are the same."""
    return 1 if method.deterministic else memory.num_samples


@functools.partial(jax.jit, static_argnames=("spec",))
def _outputs(spec: Spec, params: Params, pools: Pools, images: PlacedArray) -> tuple[Array, Array]:
    with spec.products():
        logits, hidden, _ = spec.pure_model.apply(params, {}, scale_images(spec, pools, images), train=False, key=None)
    return jax.nn.softmax(logits), hidden


def view_task(spec: Spec, params: Params, pools: Pools, images: HostArray, labels: HostArray, stream: HostArray) -> TaskView:
    """One task under one network, for selections; what they ask for is computed once and goes away with the view.

    Args:
        images: (N, *input_shape), source dtype.
        labels: (N,).
        stream: (N,) rows in training order.
    """

    @functools.cache
    def pixels() -> HostArray:
        given: Any = images
        return np.asarray(scale_images(spec, pools, given), np.float32).reshape(len(images), -1)

    @functools.cache
    def outputs() -> tuple[HostArray, HostArray]:
        n = len(images)
        block = min(BLOCK, n)
        starts = [min(start, n - block) for start in range(0, n, block)]
        parts = [_outputs(spec, params, pools, images[start : start + block]) for start in starts]
        whole = []
        for leaves in zip(*parts, strict=True):
            out = np.empty((n, leaves[0].shape[-1]), np.float32)
            for start, leaf in zip(starts, leaves, strict=True):
                out[start : start + block] = leaf
            whole.append(out)
        return whole[0], whole[1]

    def factors() -> Factors:
        found = dense_factors(Loss(spec, stored=True), params, pools, images, labels.astype(np.int32))
        return [(np.asarray(x), np.asarray(d)) for x, d in found]

    return TaskView(labels, spec.classes_per_task, stream, pixels, lambda: outputs()[1], lambda: outputs()[0], factors)


def choose(study: Study, method: Selecting, view: TaskView, repeat: int, task: int) -> HostArray:
    """Rows of all memory sets of one method, task and network, except those of everything.

    Returns:
        (draws, rows of all fractions below 1 one after the other) int32.
    """
    memory = study.memory
    sizes = [size for size in sizes_of_sets(memory, method, len(view.labels), view.n_classes) if size < len(view.labels)]
    key = zlib.crc32(method.shown.encode())

    def generator(draw: int, size: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(study.seed, spawn_key=(repeat, task, key, draw, size, SELECT)))

    draws = n_draws(memory, method)
    if not sizes:
        return np.zeros((draws, 0), np.int32)
    return np.stack([np.concatenate(sets) for sets in method.select(view, sizes, draws, generator)]).astype(np.int32)


def sets_of(rows: HostArray, sizes: Sequence[int], n_train: int) -> list[list[HostArray]]:
    """The inverse of how ``choose`` lays sets out: for each draw a set a fraction.

    Args:
        rows: (draws, rows of all fractions below 1).
        sizes: of all fractions.
    """
    ends = np.cumsum([size for size in sizes if size < n_train])
    everything: Any = np.arange(n_train, dtype=np.int32)
    drawn = []
    for row in rows:
        parts = iter(np.split(row, ends[:-1]) if len(ends) else [])
        drawn.append([next(parts) if size < n_train else everything for size in sizes])
    return drawn
