"""Means over the samples of a task of something that is not linear in the loss, such as squared gradients.

Such a mean takes a gradient a sample. They are computed one after the other: then the gradient of a layer, an outer product,
is never written to memory but added to the sum as it arises. Taking several samples at once was 5 to 100 times slower on CPU,
and lanes are there to run side by side.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from clray.strategies.base import Context, TaskData
from clray.strategies.drawing import without_replacement
from clray.types import Array, Params

Contribution = Callable[[Array, Array, Array, Array], Params]
"""``(image [*input_shape] scaled, label scalar, key, turn int32 scalar) -> Params``, of one sample."""


def mean_over_samples(contribution: Contribution, data: TaskData, n_samples: int | None, ctx: Context, n_turns: int = 1) -> Params:
    """Averages a contribution over a task, or over some of its samples.

    Args:
        n_samples: so many different samples, drawn with ``ctx.key``; None: all.
        n_turns: a sample contributes so many times, in turn 0 to ``n_turns`` - 1, and its contributions add up.
    """
    size = data.labels.shape[0]
    draw_key, sample_key = jax.random.split(ctx.key)
    rows = jnp.arange(size) if n_samples is None else without_replacement(draw_key, size, n_samples)

    def of(row: Array, turn: Array) -> Params:
        return contribution(ctx.scale(data.images[row]), data.labels[row], jax.random.fold_in(sample_key, row), turn)

    def add(total: Params, visit: tuple[Array, Array]) -> tuple[Params, None]:
        return jax.tree.map(jnp.add, total, of(*visit)), None

    visits = jnp.repeat(rows, n_turns), jnp.tile(jnp.arange(n_turns), rows.shape[0])
    shapes = jax.eval_shape(of, rows[0], visits[1][0])
    total, _ = jax.lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), visits)
    return jax.tree.map(lambda leaf: leaf / rows.shape[0], total)
