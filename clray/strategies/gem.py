"""GEM: a step may not raise the loss on the memory of any earlier task.

Lopez-Paz & Ranzato 2017 (arXiv 1706.08840): with g_k the gradient on the memory of task k, a gradient g for which some ``<g_k, g> < 0`` is
replaced by the nearest one for which all ``<g_k, x> >= 0``; see ``cone`` for the quadratic program and the margin.

``memory_size`` samples of every task are chosen when it ends, by default at random (the paper keeps the last ones; batches come in random
order, so this is the same in distribution). Gradients of the memories are taken in evaluation mode.

Costs: a gradient on ``memory_size`` samples for every earlier task in every batch, so that task t takes about
``1 + (t - 1) * memory_size / B`` times as long as plain training, and (T - 1) gradients in memory.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from pydantic import BeforeValidator, Field

from clray.options import Count, HookMemory, StrategyOptions, Traced
from clray.strategies.at_boundary import BoundaryKind, misfit, refuse_streaming
from clray.strategies.base import Context, StaticSizes, Strategy, StrategyState, TaskData
from clray.strategies.buffer import Samples
from clray.strategies.cone import multipliers
from clray.strategies.task_memory import mean_gradient, no_memory, remember
from clray.types import Array, Batch, Params


class GEM(StrategyOptions):
    """Options of GEM."""

    keeps_samples: ClassVar[bool] = True
    memory_size: Count = Field(32, description="samples of each task")
    selection: Annotated[BoundaryKind, BeforeValidator(refuse_streaming)] = Field(
        "random", description="how samples are chosen when a task ends"
    )
    margin: Annotated[float, Field(ge=0.0), Traced()] = Field(0.5, description="least weight of an earlier task in a changed gradient")

    def needs_boundaries(self) -> str | None:
        return "its memory is filled from the data of a task when it ends"

    def misfit(self, sizes: Any) -> str | None:
        if self.memory_size > sizes.n_train:
            return f"memory_size: {self.memory_size} is larger than the {sizes.n_train} training samples of a task; use at most that"
        return misfit(self.selection, sizes)

    def hook_memory(self, sizes: Any, on_gpu: bool) -> HookMemory:
        # Gradients of the earlier tasks, taken in turn: twice on a GPU; on a CPU once, or twice where batches follow the last log.
        gradients = 2 * (sizes.n_tasks - 1) if on_gpu else 4 * sizes.n_tasks // 3 + 1
        return HookMemory(rows=max(self.memory_size - sizes.batch_size, 0), gradients=gradients)

    def build(self) -> Strategy:
        def init(params: Params, sizes: StaticSizes) -> Samples:
            del params
            return no_memory(self.memory_size, sizes)

        def end_task(state: Samples, params: Params, data: TaskData, ctx: Context) -> Samples:
            return remember(state, params, data, ctx, self.selection)

        return Strategy(init=init, gradient=gradient, end_task=end_task)


def gradient(state: StrategyState, gradient: Params, params: Params, batch: Batch, ctx: Context) -> Params:
    del batch
    n_earlier = ctx.sizes.n_tasks - 1
    if n_earlier == 0:
        return gradient
    flat, unravel = ravel_pytree(gradient)

    def add(task: Array, rows: Array) -> Array:
        part = jax.tree.map(lambda leaf: leaf[task], state)
        return rows.at[task].set(ravel_pytree(mean_gradient(params, part, ctx))[0])

    # The bound has no lane axis, so the loop really is as short as the task is early.
    rows = jax.lax.fori_loop(0, jnp.minimum(ctx.task, n_earlier), add, jnp.zeros((n_earlier, flat.shape[0])))
    dots = rows @ flat
    changed = flat + multipliers(rows @ rows.T, dots, ctx.hyper["margin"]) @ rows
    return unravel(jnp.where(jnp.any(dots < 0.0), changed, flat))
