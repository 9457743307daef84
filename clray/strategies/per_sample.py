"""Means over the samples of a task of squared or absolute gradients, which are not linear in the loss: a gradient a sample.

Where a network is made of dense layers, no such gradient is ever written down. That of a layer is an outer product of the sample's
input ``x`` and delta ``d``, and ``(x d)^2 = x^2 d^2``, ``|x d| = |x| |d|``: the sum over samples is the matrix product
``sum_i f(x_i) f(d_i)^T``, as in BackPACK's "sum of squared gradients" (Dangel et al. 2020, arXiv 1912.10985, section 2.3).

In other networks (convolutions, parameters that are used twice) samples follow one another, and the gradient of each is added to the
sum as it arises. Taking several at once there was 5 to 100 times slower on CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from clray.models.taps import Taps
from clray.strategies.base import Context, TaskData
from clray.strategies.drawing import without_replacement
from clray.types import Array, Params

Objective = Callable[[Array, Array, Array, Array], Array]
"""``(logits [O], label scalar, key, turn int32 scalar) -> scalar`` of one sample, whose gradient is measured."""

Measure = Callable[[Array], Array]
"""Of every element, with ``measure(a * b) = measure(a) * measure(b)``: ``jnp.square`` or ``jnp.abs``."""

BLOCK = 128
"""Samples that go through the network at once."""


def mean_over_samples(
    objective: Objective, measure: Measure, params: Params, data: TaskData, n_samples: int | None, ctx: Context, n_turns: int = 1
) -> Params:
    """Averages the measure of a gradient over a task, or over some of its samples.

    Args:
        objective: what the gradient is taken of, with respect to the parameters.
        n_samples: so many different samples, drawn with ``ctx.key``; None: all.
        n_turns: a sample contributes so many times, in turn 0 to ``n_turns`` - 1, and its contributions add up.

    Returns:
        Shaped like ``params``.
    """
    size = data.labels.shape[0]
    draw_key, sample_key = jax.random.split(ctx.key)
    rows = jnp.arange(size) if n_samples is None else without_replacement(draw_key, size, n_samples)
    taps, places = _dense_places(params, data, ctx)
    if taps is None:
        total = _one_by_one(objective, measure, params, data, rows, sample_key, ctx, n_turns)
    else:
        total = _in_blocks(taps, places, objective, measure, params, data, rows, sample_key, ctx, n_turns)
    return jax.tree.map(lambda leaf: leaf / rows.shape[0], total)


def _dense_places(params: Params, data: TaskData, ctx: Context) -> tuple[Taps | None, dict[str, int]]:
    def logits(params: Params, image: Array) -> Array:
        return ctx.forward(params, image[None])[0][0]

    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in params.items()}
    try:
        taps = Taps(logits, shapes, data.images.shape[1:])
    except NotImplementedError:
        return None, {}
    places = taps.dense_places(shapes)
    return (None, {}) if places is None else (taps, places)


def _in_blocks(
    taps: Taps,
    places: dict[str, int],
    objective: Objective,
    measure: Measure,
    params: Params,
    data: TaskData,
    rows: Array,
    key: Array,
    ctx: Context,
    n_turns: int,
) -> Params:
    n_blocks = -(-rows.shape[0] // BLOCK)
    numbers = jnp.arange(n_blocks * BLOCK)
    padded = rows[jnp.minimum(numbers, rows.shape[0] - 1)].reshape(n_blocks, BLOCK)
    real = (numbers < rows.shape[0]).reshape(n_blocks, BLOCK)

    def add(total: Params, visit: tuple[Array, Array, Array]) -> tuple[Params, None]:
        chosen, counted, turn = visit
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(chosen)

        def own(logits: Array, facts: tuple[Array, Array, Array]) -> Array:
            label, sample_key, counts = facts
            return jnp.where(counts, objective(logits, label, sample_key, turn), 0.0)

        recorded = taps.record(params, ctx.scale(data.images[chosen]), own, (data.labels[chosen], keys, counted))
        sums = taps.sum_of_products(recorded, places, measure)
        return {name: leaf + sums[name].reshape(leaf.shape) for name, leaf in total.items()}, None

    visits = (jnp.repeat(padded, n_turns, axis=0), jnp.repeat(real, n_turns, axis=0), jnp.tile(jnp.arange(n_turns), n_blocks))
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), visits)[0]


def _one_by_one(
    objective: Objective, measure: Measure, params: Params, data: TaskData, rows: Array, key: Array, ctx: Context, n_turns: int
) -> Params:
    def add(total: Params, visit: tuple[Array, Array]) -> tuple[Params, None]:
        row, turn = visit
        image = ctx.scale(data.images[row])

        def value(params: Params) -> Array:
            return objective(ctx.forward(params, image[None])[0][0], data.labels[row], jax.random.fold_in(key, row), turn)

        return jax.tree.map(lambda leaf, slope: leaf + measure(slope), total, jax.grad(value)(params)), None

    visits = jnp.repeat(rows, n_turns), jnp.tile(jnp.arange(n_turns), rows.shape[0])
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), visits)[0]
