"""The memories of strategies that replay: filled batch by batch, or by a choice from the whole task when it ends.

``reservoir``, ``class_balanced`` and ``ring`` (see ``selection``) place every sample of the stream as it comes by, so that samples of
the current task are replayed too. The others (see ``at_boundary``) give every task ``memory_size // T`` samples, chosen from all of its
data with the network that has just learnt it; only earlier tasks are replayed, and logits are those of that network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from clray.strategies.at_boundary import choose
from clray.strategies.base import Context, StaticSizes, TaskData, Unfrozen
from clray.strategies.buffer import Buffer, Replay, Samples, empty_buffer, exchange
from clray.strategies.choices import among
from clray.strategies.drawing import below
from clray.strategies.selection import Kind, select
from clray.strategies.task_memory import no_memory
from clray.types import Array, Batch, Params

ReplayKind = Literal["reservoir", "class_balanced", "ring", "random", "kmeans", "gss", "lambda", "herding"]
STREAMING = get_args(Kind)


class Memory(NamedTuple):
    """Pure functions over a pytree state.

    Attributes:
        init: ``sizes -> state``.
        exchange: ``(state, batch, n, ctx) -> (state, Replay)``: takes a batch in and draws n samples.
        seen: ``(state, logits [B, O]) -> state``: the logits of the batch that was taken in.
        end_task: ``(state, params, data, ctx) -> state``.
    """

    init: Callable[[StaticSizes], Any]
    exchange: Callable[[Any, Batch, int, Context], tuple[Any, Replay]]
    seen: Callable[[Any, Array], Any]
    end_task: Callable[[Any, Params, TaskData, Context], Any]


def memory_of(kind: ReplayKind, size: int, with_logits: bool = False) -> Memory:
    """A memory of M = ``size`` samples."""
    return _streaming(kind, size, with_logits) if kind in STREAMING else _by_task(kind, size, with_logits)


def _streaming(kind: Any, size: int, with_logits: bool) -> Memory:
    def take(state: Buffer, batch: Batch, n: int, ctx: Context) -> tuple[Buffer, Replay]:
        return exchange(state, select(kind, size, ctx.sizes), batch, n, ctx)

    return Memory(
        init=lambda sizes: empty_buffer(size, select(kind, size, sizes), sizes, with_logits),
        exchange=take,
        seen=lambda state, logits: state._replace(waiting=state.waiting._replace(logits=logits)),
        end_task=lambda state, params, data, ctx: state,
    )


def _by_task(kind: Any, size: int, with_logits: bool) -> Memory:
    def take(state: Unfrozen, batch: Batch, n: int, ctx: Context) -> tuple[Unfrozen, Replay]:
        del batch
        per_task = state.value.labels.shape[1]
        rows = below(jax.random.bits(ctx.key, (n,)), ctx.task * per_task)
        drawn = jax.tree.map(lambda leaf: leaf[rows // per_task, rows % per_task], state.value)
        return state, Replay(drawn, (ctx.task > 0).astype(jnp.float32))

    def end_task(state: Unfrozen, params: Params, data: TaskData, ctx: Context) -> Unfrozen:
        rows = choose(kind, params, data, state.value.labels.shape[1], ctx)
        images = data.images[rows]
        labels = data.labels[rows]
        logits = among(ctx.forward(params, ctx.scale(images))[0], ctx.choices(labels)) if with_logits else None
        new = Samples(images, labels, jnp.full(rows.shape, ctx.task, jnp.int32), logits)
        return Unfrozen(jax.tree.map(lambda old, part: old.at[ctx.task].set(part, mode="drop"), state.value, new))

    def init(sizes: StaticSizes) -> Unfrozen:
        return Unfrozen(no_memory(size // sizes.n_tasks, sizes, with_logits))

    return Memory(init, take, lambda state, logits: state, end_task)
