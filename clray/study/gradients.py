"""Gradients of many sets of samples under one network, and how similar they are to the gradient of everything.

Sets come as steps of a few programs, each one launch for many sets: a step adds the rows of a set to a running sum, tile by
tile, and compares the sum with the gradient of everything. Where a set holds the one before it (a larger fraction of the
same order), only the rows that are new are added. Nothing but three numbers a parameter array and set leaves the device.

``x`` and ``d`` of all rows (see ``taps``) are computed once for a network where they fit into the memory they may take; where
they do not (convolutions hold many copies of their input), they are computed anew for the rows of every tile.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from clray.core.evaluate import scale_images
from clray.core.program import Pools, Spec
from clray.models.taps import Recorded, Taps
from clray.types import Array, HostArray, Params, PlacedArray

TILE = 1024
SMALL_TILE = 128
BLOCK = 512
"""Rows of one pass: of the products of large sets, of small ones and of the ends of large ones, and of forward and backward."""

Rest = ParamSpec("Rest")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Loss:
    """The mean cross-entropy of one network, in evaluation mode. Equal ones share compiled programs.

    Attributes:
        spec: of the training program.
        stored: whether ``x`` and ``d`` of all rows are kept on the device.
    """

    spec: Spec
    stored: bool

    @property
    def taps(self) -> Taps:
        """The meetings of the network."""
        return _taps(self.spec)

    def of_sample(self, logits: Array, label: Array) -> Array:
        """Cross-entropy of one sample."""
        return -jax.nn.log_softmax(logits)[label]


@functools.lru_cache(maxsize=16)
def _taps(spec: Spec) -> Taps:
    model = spec.pure_model
    params, _ = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    with spec.products():  # the precision of a product is part of the program that is walked through
        return Taps(lambda p, image: model.apply(p, {}, image[None], train=False, key=None)[0][0], params, spec.input_shape)


def _compiled(function: Callable[Concatenate[Loss, Rest], Result]) -> Callable[Concatenate[Loss, Rest], Result]:
    """``jax.jit`` with ``loss`` static; matrix products have the precision of the experiment."""

    @functools.wraps(function)
    def in_precision(loss: Loss, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        with loss.spec.products():
            return function(loss, *args, **kwargs)

    compiled: Any = jax.jit(in_precision, static_argnames=("loss",))
    return compiled


class Rows(NamedTuple):
    """The samples of all past tasks of one network on a device; rows from ``n`` on are padding."""

    images: PlacedArray  # [n_max, *input_shape], source dtype
    labels: PlacedArray  # [n_max] int32
    n: PlacedArray  # int32 scalar


class Steps(NamedTuple):
    """Sets to be summed, one after the other. A step of no rows and size 0 is padding."""

    rows: HostArray  # [m] int32: numbers of the rows that are added, step after step
    starts: HostArray  # [steps] int32: where a step begins in ``rows``
    counts: HostArray  # [steps] int32: rows it adds
    sizes: HostArray  # [steps] int32: rows of the whole set
    fresh: HostArray  # [steps] bool: whether the sum starts from nothing


@functools.lru_cache(maxsize=64)
def record_bytes(spec: Spec, n_rows: int) -> int:
    """Bytes that ``x`` and ``d`` of ``n_rows`` samples take."""
    taps = _taps(spec)
    params, _ = jax.eval_shape(spec.pure_model.init, jax.eval_shape(lambda: jax.random.key(0)))
    images = jax.ShapeDtypeStruct((1, *spec.input_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    one = jax.eval_shape(lambda p, x, y: taps.record(p, x, Loss(spec, True).of_sample, y), params, images, labels)
    return n_rows * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))


def _record(loss: Loss, params: Params, pools: Pools, images: Array, labels: Array) -> Recorded:
    return loss.taps.record(params, scale_images(loss.spec, pools, images), loss.of_sample, labels)


@_compiled
def record_all(loss: Loss, params: Params, pools: Pools, rows: Rows) -> Recorded:
    """``x`` and ``d`` of all rows, [n_max, ...]; what belongs to padding is not computed."""
    n_max = rows.labels.shape[0]
    shapes = jax.eval_shape(lambda: _record(loss, params, pools, rows.images[:BLOCK], rows.labels[:BLOCK]))
    block = min(BLOCK, n_max)
    empty = jax.tree.map(lambda leaf: jnp.zeros((n_max, *leaf.shape[1:]), leaf.dtype), shapes)

    def one(number: Array, all_rows: Recorded) -> Recorded:
        start = jnp.minimum(number * block, n_max - block)
        images, labels = (jax.lax.dynamic_slice_in_dim(leaf, start, block) for leaf in (rows.images, rows.labels))
        new = _record(loss, params, pools, images, labels)
        return jax.tree.map(lambda old, part: jax.lax.dynamic_update_slice_in_dim(old, part, start, 0), all_rows, new)

    filled: Recorded = jax.lax.fori_loop(0, (rows.n + block - 1) // block, one, empty)
    return filled


@_compiled
def dense_factors(loss: Loss, params: Params, pools: Pools, images: PlacedArray, labels: PlacedArray) -> list[tuple[Array, Array]]:
    """``x`` (n, in) and ``d`` (n, out) of every dense layer, from the first to the head; what belongs to others is not kept."""
    n = labels.shape[0]
    block = min(BLOCK, n)
    rows = jnp.minimum(jnp.arange(-(-n // block) * block), n - 1).reshape(-1, block)

    def one(chosen: Array) -> list[tuple[Array, Array]]:
        own = _record(loss, params, pools, jnp.asarray(images)[chosen], jnp.asarray(labels)[chosen])
        meetings = zip(loss.taps.meetings, own.inputs, strict=True)
        return [(x[0].reshape(block, -1), own.deltas[m.delta].reshape(block, -1)) for m, x in meetings if m.is_dense]

    parts: list[tuple[Array, Array]] = jax.lax.map(one, rows)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1])[:n], parts)


@_compiled
def full_gradient(loss: Loss, params: Params, pools: Pools, rows: Rows) -> Params:
    """Gradient of the mean loss over all rows, by plain backward passes over blocks: independent of ``taps``."""
    n_max = rows.labels.shape[0]
    block = min(BLOCK, n_max)

    def one(number: Array, total: Params) -> Params:
        at = number * block + jnp.arange(block)
        chosen = jnp.minimum(at, n_max - 1)
        images, labels = rows.images[chosen], rows.labels[chosen]

        def mean(params: Params) -> Array:
            logits, _, _ = loss.spec.pure_model.apply(params, {}, scale_images(loss.spec, pools, images), train=False, key=None)
            return jnp.sum(jax.vmap(loss.of_sample)(logits, labels) * (at < rows.n)) / rows.n

        return jax.tree.map(jnp.add, total, jax.grad(mean)(params))

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradient: Params = jax.lax.fori_loop(0, (rows.n + block - 1) // block, one, zeros)
    return gradient


class Compared(NamedTuple):
    """Of every step and parameter array, in the order of ``Taps.names``."""

    dot: PlacedArray  # [steps, arrays] with the gradient of everything
    squared: PlacedArray  # [steps, arrays] squared norm
    distance: PlacedArray  # [steps, arrays] squared distance to the gradient of everything


@_compiled
def compare_sets(
    loss: Loss, params: Params, pools: Pools, rows: Rows, recorded: Recorded | None, everything: Params, steps: Steps
) -> Compared:
    """Sums the gradients of the sets of all steps and compares the mean of each with ``everything``.

    Args:
        recorded: of all rows; None computes what belongs to a tile when it is needed.
    """
    taps = loss.taps
    weights = taps.weights(params)
    padded = jnp.pad(steps.rows, (0, TILE))

    def tile(size: int, at: Array, end: Array, total: Any) -> Any:
        chosen = jax.lax.dynamic_slice_in_dim(padded, at, size)
        factors = (at + jnp.arange(size) < end).astype(jnp.float32)
        if recorded is None:
            own = _record(loss, params, pools, rows.images[chosen], rows.labels[chosen])
        else:
            own = jax.tree.map(lambda leaf: jnp.take(leaf, chosen, axis=0, mode="clip"), recorded)
        return jax.tree.map(jnp.add, total, taps.gradients(own, weights, factors))

    def one_step(total: Any, step: tuple[Array, Array, Array, Array]) -> tuple[Any, Compared]:
        start, count, size, fresh = step
        total = jax.tree.map(lambda leaf: jnp.where(fresh, 0.0, leaf), total)
        n_large = count // TILE
        end = start + count
        total = jax.lax.fori_loop(0, n_large, lambda i, t: tile(TILE, start + i * TILE, end, t), total)
        rest = start + n_large * TILE
        n_small = (end - rest + SMALL_TILE - 1) // SMALL_TILE
        total = jax.lax.fori_loop(0, n_small, lambda i, t: tile(SMALL_TILE, rest + i * SMALL_TILE, end, t), total)
        mean = {name: leaf / jnp.maximum(size, 1) for name, leaf in taps.to_parameters(params, total).items()}
        pairs = [(mean[name], everything[name]) for name in taps.names]
        return total, Compared(
            jnp.stack([jnp.vdot(a, b) for a, b in pairs]),
            jnp.stack([jnp.vdot(a, a) for a, _ in pairs]),
            jnp.stack([jnp.sum((a - b) ** 2) for a, b in pairs]),
        )

    empty = jax.tree.map(jnp.zeros_like, weights)
    each: Any = (steps.starts, steps.counts, steps.sizes, steps.fresh)
    compared: Compared = jax.lax.scan(one_step, empty, each)[1]
    return compared


def similarity(compared: Compared, everything: HostArray, sizes: HostArray, metric: str) -> tuple[HostArray, HostArray]:
    """One metric for every step.

    Args:
        compared: [..., arrays] each.
        everything: [..., arrays] squared norms of the gradient of everything.
        sizes: [arrays] numbers in each parameter array.
        metric: cosine; mse: mean squared difference; norm_ratio: norm of the set's gradient over that of everything's.

    Returns:
        [..., arrays] for each parameter array, and [...] for the whole gradient. NaN where a gradient is zero.
    """
    dot, squared, distance = (np.asarray(leaf, np.float64) for leaf in compared)
    norms, counts = np.asarray(everything, np.float64), np.asarray(sizes, np.float64)

    def value(dot: Any, squared: Any, distance: Any, norm: Any, count: Any) -> HostArray:
        with np.errstate(invalid="ignore", divide="ignore"):
            if metric == "cosine":
                found = dot / np.sqrt(squared * norm)
            elif metric == "mse":
                found = distance / count
            else:
                found = np.sqrt(squared / norm)
        return np.asarray(np.where(np.isfinite(found), found, np.nan), np.float32)

    sums = [part.sum(axis=-1) for part in (dot, squared, distance)]
    return value(dot, squared, distance, norms, counts), value(sums[0], sums[1], sums[2], norms.sum(axis=-1), counts.sum())


def make_steps(sets: Sequence[Sequence[HostArray]]) -> Steps:
    """Steps for chains of sets; each chain grows, from the smallest set to the largest.

    A set whose first rows are all of the one before it adds only what is new.

    Args:
        sets: chains of sets of row numbers.
    """
    parts, starts, counts, sizes, fresh = [], [], [], [], []
    at = 0
    for chain in sets:
        before: Any = None
        for rows in chain:
            nested = before is not None and len(before) <= len(rows) and np.array_equal(rows[: len(before)], before)
            new = np.sort(rows[len(before) :] if nested else rows)  # neighbours in memory are read one after the other
            parts.append(new)
            starts.append(at)
            counts.append(len(new))
            sizes.append(len(rows))
            fresh.append(not nested)
            at, before = at + len(new), rows
    whole = np.concatenate(parts) if parts else np.zeros(0)
    numbers = [np.asarray(values, np.int32) for values in (starts, counts, sizes)]
    return Steps(whole.astype(np.int32), numbers[0], numbers[1], numbers[2], np.asarray(fresh, bool))


def pad_steps(steps: Steps, n_rows: int, n_steps: int) -> Steps:
    """The steps in arrays of fixed lengths, so that they share a program."""
    few = (0, n_steps - len(steps.starts))
    return Steps(
        np.pad(steps.rows, (0, n_rows - len(steps.rows))),
        np.pad(steps.starts, few),
        np.pad(steps.counts, few),
        np.pad(steps.sizes, few),
        np.pad(steps.fresh, few),
    )
