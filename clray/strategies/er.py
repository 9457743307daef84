"""Experience replay: beside every batch, a batch from a small memory of earlier samples.

Rolnick et al. 2019 (arXiv 1811.11682); Chaudhry et al. 2019 (arXiv 1902.10486): the loss is the mean over the B rows of the task and
the replayed rows, which with equally many of both is ``alpha: 0.5``. Here the two means are weighted whatever their sizes, see
``weighting``, and how samples are chosen for the memory is in ``memories``.

By default the memory is filled during the current task too, as in the papers. Replayed rows are drawn with replacement. The step costs as
much as one with B + replay_batch rows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from pydantic import Field

from clray.options import Count, HookMemory, StrategyOptions
from clray.strategies.at_boundary import misfit
from clray.strategies.base import Context, StaticSizes, Strategy, StrategyState
from clray.strategies.buffer import append
from clray.strategies.memories import STREAMING, ReplayKind, memory_of
from clray.strategies.weighting import Weighted, share_of_past
from clray.types import Batch, Params


class Remembering(StrategyOptions):
    """Options of a strategy with a replay buffer."""

    keeps_samples: ClassVar[bool] = True
    memory_size: Count = Field(200, description="samples in the memory, of all tasks together")
    replay_batch: Count | None = Field(None, description="replayed samples a batch; default training.batch_size")
    selection: ReplayKind = "reservoir"

    def needs_boundaries(self) -> str | None:
        if self.selection not in STREAMING:
            return f"selection: {self.selection} chooses from the data of a task when it ends"
        return "selection: ring has a part of the memory for every class of every task" if self.selection == "ring" else None

    def misfit(self, sizes: Any) -> str | None:
        stream, n_classes = sizes.n_tasks * sizes.n_train, sizes.n_labels
        if self.memory_size > stream:
            return f"memory_size: {self.memory_size} is larger than the {stream} training samples of the sequence; use at most that"
        if self.selection not in STREAMING and self.memory_size < sizes.n_tasks:
            return f"memory_size: {self.memory_size} leaves no sample for each of the {sizes.n_tasks} tasks (selection {self.selection})"
        if self.selection == "ring" and self.memory_size < n_classes:
            return f"memory_size: {self.memory_size} leaves no slot for each of the {n_classes} classes of the sequence (selection ring)"
        return misfit(self.selection, sizes)

    def hook_memory(self, sizes: Any, on_gpu: bool) -> HookMemory:
        return HookMemory(rows=self.replay_batch or sizes.batch_size)


class ER(Weighted, Remembering):
    """Options of experience replay."""

    def build(self) -> Strategy:
        memory = memory_of(self.selection, self.memory_size)

        def init(params: Params, sizes: StaticSizes) -> StrategyState:
            del params
            return memory.init(sizes)

        def batch(state: StrategyState, batch: Batch, ctx: Context) -> tuple[StrategyState, Batch]:
            n_rows = self.replay_batch or ctx.sizes.batch_size
            state, replay = memory.exchange(state, batch, n_rows, ctx)
            share = share_of_past(self.weighting, ctx) * replay.is_there
            current = batch._replace(weights=(1.0 - share) * batch.weights / jnp.sum(batch.weights))
            return state, append(current, replay.samples, jnp.full(n_rows, share / n_rows))

        strategy = Strategy(init=init, batch=batch)
        return strategy if self.selection in STREAMING else strategy._replace(end_task=memory.end_task)
