"""Some samples of every earlier task, chosen when the task ends; the part of each task is never changed again."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clray.strategies.at_boundary import BoundaryKind, choose
from clray.strategies.base import Context, StaticSizes, TaskData
from clray.strategies.buffer import Samples, no_samples
from clray.types import Array, Batch, Params


def no_memory(per_task: int, sizes: StaticSizes, with_logits: bool = False) -> Samples:
    """An empty memory of m = ``per_task`` samples of each task: leading axes [T, m]."""
    flat = no_samples(sizes.n_tasks * per_task, sizes, with_logits)
    return jax.tree.map(lambda leaf: leaf.reshape(sizes.n_tasks, per_task, *leaf.shape[1:]), flat)


def remember(memory: Samples, params: Params, data: TaskData, ctx: Context, selection: BoundaryKind) -> Samples:
    """Writes m samples of the task into the task's part of a memory with leading axes [T, m]."""
    n_kept = memory.labels.shape[1]
    rows = choose(selection, params, data, n_kept, ctx)
    new = Samples(data.images[rows], data.labels[rows], jnp.full(n_kept, ctx.task, jnp.int32), None)
    return jax.tree.map(lambda old, part: old.at[ctx.task].set(part, mode="drop"), memory, new)


def mean_gradient(params: Params, samples: Samples, ctx: Context) -> Params:
    """Gradient of the mean cross-entropy of stored samples, with the network in evaluation mode."""
    rows = Batch(ctx.scale(samples.images), samples.labels, jnp.ones(samples.labels.shape[0]))

    def loss(params: Params) -> Array:
        return ctx.losses(ctx.forward(params, rows.images)[0], rows).mean()

    return jax.grad(loss)(params)
