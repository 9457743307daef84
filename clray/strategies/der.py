"""Dark experience replay: replayed samples are to give the logits that the network gave when it saw them.

Buzzega et al. 2020 (arXiv 2004.07211), with (x', z') and (x'', y'') two independent draws from the memory:

``der``    ``CE + alpha * mean ||h(x') - z'||^2``                          (eq. 5)
``der++``  ``CE + alpha * mean ||h(x') - z'||^2 + beta * mean CE(x'', y'')``   (eq. 6)

Logits are those of the training pass in which a sample entered the memory, of the outputs that it was classified among then
(scenario task: its own head; class with active classes seen: the classes so far), or of the network at the end of the task where
samples are chosen then (see ``memories``). The squared norm sums over outputs, as in the
paper; the authors' code (Mammoth) takes the mean over them, so that its alpha is O times ours. Rows are drawn with replacement.
``der++`` trains on B + 2 * replay_batch rows.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from clray.options import HookMemory, Traced
from clray.strategies.base import Context, StaticSizes, Step, Strategy, TaskData
from clray.strategies.buffer import append
from clray.strategies.choices import NO_CHOICE, among, only
from clray.strategies.er import Remembering
from clray.strategies.memories import STREAMING, memory_of
from clray.types import Array, Batch, Params

Strength = Annotated[float, Field(ge=0.0), Traced()]


class State(NamedTuple):
    """State of DER and DER++."""

    buffer: Any  # of the memory
    logits: Array  # [replay_batch, O] float32: z' of the rows replayed in this batch
    is_there: Array  # float32 scalar: 0 while the buffer is empty
    start: Array  # int32 scalar: where the replayed rows begin in the batch


class DER(Remembering):
    """Options of dark experience replay."""

    alpha: Strength = 0.2

    def build(self) -> Strategy:
        return self._strategy(n_draws=1)

    def _strategy(self, n_draws: int) -> Strategy:
        memory = memory_of(self.selection, self.memory_size, with_logits=True)

        def n_rows(sizes: StaticSizes) -> int:
            return self.replay_batch or sizes.batch_size

        def init(params: Params, sizes: StaticSizes) -> State:
            del params
            return State(memory.init(sizes), jnp.zeros((n_rows(sizes), sizes.n_outputs)), jnp.float32(0.0), jnp.int32(0))

        def batch(state: State, batch: Batch, ctx: Context) -> tuple[State, Batch]:
            buffer, replay = memory.exchange(state.buffer, batch, n_draws * n_rows(ctx.sizes), ctx)
            start = jnp.int32(batch.labels.shape[0])
            # Weight 0 in the mean cross-entropy: the penalty below is all that is asked of these rows.
            extended = append(batch, replay.samples, jnp.zeros(replay.samples.labels.shape[0]))
            assert replay.samples.logits is not None
            return State(buffer, replay.samples.logits[: n_rows(ctx.sizes)], replay.is_there, start), extended

        def penalty(state: State, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array:
            del params
            n = n_rows(ctx.sizes)
            own = jax.lax.dynamic_slice_in_dim(logits, state.start, n)
            kept = None if ctx.choices(batch.labels) is None else state.logits != NO_CHOICE
            loss = ctx.hyper["alpha"] * jnp.sum(only(own - state.logits, kept) ** 2, axis=-1).mean()
            if n_draws == 2:
                again, rows = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, state.start + n, n), (logits, batch))
                loss += ctx.hyper["beta"] * ctx.losses(again, rows).mean()
            return state.is_there * loss

        def after_step(state: State, step: Step, ctx: Context) -> State:
            n_new = ctx.sizes.batch_size
            seen = among(step.logits[:n_new], ctx.choices(step.batch.labels[:n_new]))
            return state._replace(buffer=memory.seen(state.buffer, seen))

        def end_task(state: State, params: Params, data: TaskData, ctx: Context) -> State:
            return state._replace(buffer=memory.end_task(state.buffer, params, data, ctx))

        strategy = Strategy(init=init, batch=batch, penalty=penalty, after_step=after_step)
        return strategy if self.selection in STREAMING else strategy._replace(end_task=end_task)


class DERPlusPlus(DER):
    """Options of dark experience replay with labels."""

    beta: Strength = 0.5

    def hook_memory(self, sizes: Any, on_gpu: bool) -> HookMemory:
        return HookMemory(rows=2 * super().hook_memory(sizes, on_gpu).rows)

    def build(self) -> Strategy:
        return self._strategy(n_draws=2)
