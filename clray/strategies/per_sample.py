"""Means over the samples of a task of something that is not linear in the loss, such as squared gradients.

Such a mean takes a gradient a sample. They are computed in chunks, as many samples at once as fit a bounded amount of memory.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from clray.strategies.base import Context, TaskData
from clray.strategies.drawing import without_replacement
from clray.types import Array, Params

NUMBERS_AT_ONCE = 2**21
"""Gradient entries of one lane that are held at once: 8 MB."""

Contribution = Callable[[Array, Array, Array], Params]
"""``(image [*input_shape] scaled, label scalar, key) -> Params``, of one sample."""


def mean_over_samples(contribution: Contribution, data: TaskData, n_samples: int | None, ctx: Context) -> Params:
    """Averages a contribution over a task, or over some of its samples.

    Args:
        n_samples: so many different samples, drawn with ``ctx.key``; None: all.
    """
    size = data.labels.shape[0]
    draw_key, sample_key = jax.random.split(ctx.key)
    rows = jnp.arange(size) if n_samples is None else without_replacement(draw_key, size, n_samples)
    one = jax.eval_shape(contribution, ctx.scale(data.images[0]), data.labels[0], sample_key)
    n_numbers = sum(leaf.size for leaf in jax.tree.leaves(one))
    n_rows = rows.shape[0]
    chunk = max(1, min(n_rows, NUMBERS_AT_ONCE // n_numbers))
    n_chunks = -(-n_rows // chunk)
    positions = jnp.arange(n_chunks * chunk).reshape(n_chunks, chunk)

    def add(total: Params, position: Array) -> tuple[Params, None]:
        row = rows[jnp.minimum(position, n_rows - 1)]
        keys = jax.vmap(lambda at: jax.random.fold_in(sample_key, at))(position)
        parts = jax.vmap(contribution)(ctx.scale(data.images[row]), data.labels[row], keys)
        counts = (position < n_rows).astype(jnp.float32)  # the last chunk is filled up
        return jax.tree.map(lambda sums, part: sums + jnp.tensordot(counts, part, axes=1), total, parts), None

    total, _ = jax.lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one), positions)
    return jax.tree.map(lambda leaf: leaf / n_rows, total)
