"""A-GEM: a step may not raise the mean loss on a memory of the earlier tasks.

Chaudhry et al. 2019 (arXiv 1812.00420, eq. 11): with g_ref the gradient on ``reference_batch`` samples of the memory, a gradient g with
``g . g_ref < 0`` becomes ``g - (g . g_ref) / (g_ref . g_ref) g_ref``.

The memory is split evenly between the T tasks; a task's part is filled at its end, by default with samples drawn at random. Reference rows
are drawn with replacement, and their gradient is taken in evaluation mode. Costs a second gradient a batch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from pydantic import BeforeValidator, Field

from clray.options import Count, HookMemory, StrategyOptions
from clray.strategies.at_boundary import BoundaryKind, misfit, refuse_streaming
from clray.strategies.base import Context, StaticSizes, Strategy, TaskData
from clray.strategies.buffer import Samples
from clray.strategies.drawing import below
from clray.strategies.task_memory import mean_gradient, no_memory, remember
from clray.types import Array, Batch, Params


class AGEM(StrategyOptions):
    """Options of A-GEM."""

    keeps_samples: ClassVar[bool] = True
    memory_size: Count = Field(200, description="samples in the memory, split evenly between the tasks of the sequence")
    selection: Annotated[BoundaryKind, BeforeValidator(refuse_streaming)] = Field(
        "random", description="how samples are chosen when a task ends"
    )
    reference_batch: Count | None = Field(None, description="samples of the reference gradient; default training.batch_size")

    def needs_boundaries(self) -> str | None:
        return "its memory is filled from the data of a task when it ends"

    def misfit(self, sizes: Any) -> str | None:
        if not sizes.n_tasks <= self.memory_size <= sizes.n_tasks * sizes.n_train:
            return (
                f"memory_size: {self.memory_size} split between {sizes.n_tasks} tasks must leave each at least 1 and at most its "
                f"{sizes.n_train} training samples; use {sizes.n_tasks} to {sizes.n_tasks * sizes.n_train}"
            )
        return misfit(self.selection, sizes)

    def hook_memory(self, sizes: Any, on_gpu: bool) -> HookMemory:
        return HookMemory(rows=self.reference_batch or sizes.batch_size, gradients=1)

    def build(self) -> Strategy:
        def init(params: Params, sizes: StaticSizes) -> Samples:
            del params
            return no_memory(self.memory_size // sizes.n_tasks, sizes)

        def gradient(state: Samples, gradient: Params, params: Params, batch: Batch, ctx: Context) -> Params:
            del batch
            n_rows, per_task = self.reference_batch or ctx.sizes.batch_size, state.labels.shape[1]
            rows = below(jax.random.bits(ctx.key, (n_rows,)), ctx.task * per_task)
            reference = mean_gradient(params, jax.tree.map(lambda leaf: leaf[rows // per_task, rows % per_task], state), ctx)
            return project(gradient, reference, ctx.task > 0)

        def end_task(state: Samples, params: Params, data: TaskData, ctx: Context) -> Samples:
            return remember(state, params, data, ctx, self.selection)

        return Strategy(init=init, gradient=gradient, end_task=end_task)


def project(gradient: Params, reference: Params, is_there: Array) -> Params:
    """Takes the part of ``gradient`` that points against ``reference`` out of it; nothing where ``is_there`` is False."""
    dot = sum(jnp.vdot(leaf, reference[path]) for path, leaf in gradient.items())
    squared = sum(jnp.vdot(leaf, leaf) for leaf in reference.values())
    against = is_there & (dot < 0.0) & (squared > 0.0)
    factor = jnp.where(against, dot / jnp.where(against, squared, 1.0), 0.0)
    return {path: leaf - factor * reference[path] for path, leaf in gradient.items()}
