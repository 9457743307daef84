"""A replay buffer: M samples of the stream so far, in arrays of a fixed shape that travel through the scan.

A batch enters the buffer when the next one comes, so what is replayed beside a batch was seen before it. Within one call rows
are written first and drawn after: XLA then updates the buffer in place, while drawing before writing copies it every batch.
Rows are kept as they are stored in the source (uint8 where the images are), labels and tasks as int32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from clray.strategies.base import Context, StaticSizes, Unfrozen
from clray.strategies.selection import Selection, class_numbers
from clray.types import Array, Batch


class Samples(NamedTuple):
    """What is known of n samples."""

    images: Array  # [n, *input_shape], source dtype, unscaled
    labels: Array  # [n] int32
    tasks: Array  # [n] int32
    logits: Array | None  # [n, O] float32 when they were seen; None where they are not kept


class Buffer(NamedTuple):
    """State of a replay buffer."""

    stored: Unfrozen  # Samples with n = M
    selection: Any
    waiting: Samples  # n = B: the latest batch, which is not in the buffer yet
    is_waiting: Array  # bool scalar


class Replay(NamedTuple):
    """Samples drawn from a buffer, uniformly with replacement."""

    samples: Samples
    is_there: Array  # float32 scalar: 0 while the buffer is empty, 1 from then on


def no_samples(n: int, sizes: StaticSizes, with_logits: bool = False) -> Samples:
    """Arrays of zeros for n samples."""
    images = jnp.zeros((n, *sizes.input_shape), sizes.dtype)
    labels, tasks = jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32)
    return Samples(images, labels, tasks, jnp.zeros((n, sizes.n_outputs), jnp.float32) if with_logits else None)


def empty_buffer(size: int, selection: Selection, sizes: StaticSizes, with_logits: bool = False) -> Buffer:
    """A buffer of M = ``size`` slots."""
    waiting = no_samples(sizes.batch_size, sizes, with_logits)
    return Buffer(Unfrozen(no_samples(size, sizes, with_logits)), selection.init(), waiting, jnp.bool_(False))


def exchange(buffer: Buffer, selection: Selection, batch: Batch, n: int, ctx: Context) -> tuple[Buffer, Replay]:
    """Moves the waiting batch into the buffer, lets the current one wait (its logits are not known yet), and draws n samples."""
    bits = jax.random.bits(ctx.key, (ctx.sizes.batch_size + n,))
    buffer = take_in(buffer, selection, batch, bits[: ctx.sizes.batch_size], ctx)
    slots, filled = selection.draw(buffer.selection, bits[ctx.sizes.batch_size :])
    return buffer, Replay(jax.tree.map(lambda rows: rows[slots], buffer.stored.value), (filled > 0).astype(jnp.float32))


def take_in(buffer: Buffer, selection: Selection, batch: Batch, bits: Array, ctx: Context) -> Buffer:
    """The first half of ``exchange``, with random ``bits`` [B]."""
    waiting, size, n_rows = buffer.waiting, buffer.stored.value.labels.shape[0], ctx.sizes.batch_size
    placed, slots = selection.place(buffer.selection, class_numbers(waiting.tasks, waiting.labels, ctx.sizes), bits)
    slots = jnp.where(buffer.is_waiting, slots, size)
    stored = jax.tree.map(lambda rows, new: rows.at[slots].set(new, mode="drop"), buffer.stored.value, waiting)
    kept = jax.tree.map(lambda old, new: jnp.where(buffer.is_waiting, new, old), buffer.selection, placed)
    tasks = jnp.full(n_rows, ctx.task, jnp.int32)
    return Buffer(Unfrozen(stored), kept, Samples(batch.images[:n_rows], batch.labels[:n_rows], tasks, waiting.logits), jnp.bool_(True))


def append(batch: Batch, samples: Samples, weights: Array) -> Batch:
    """The batch with rows at its end.

    Args:
        weights: [n] of the new rows.
    """
    return Batch(
        jnp.concatenate([batch.images, samples.images]),
        jnp.concatenate([batch.labels, samples.labels]),
        jnp.concatenate([batch.weights, weights]),
    )
