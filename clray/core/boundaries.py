"""Where tasks end, found from the training accuracy of a stream whose boundaries nobody tells.

Batches are counted through the whole sequence, in windows of a fixed length. At the end of a window its mean training accuracy (of
every batch before its step) is compared with that of the window before: where it is lower by more than the threshold, the task
is taken to have ended before this window, and the strategy's ``boundary`` is called with the weights and the state of then. The
next window is not compared, as it has no window of its own task before it.

Lanes look at the same time, so the branch is a real one and the time between looks costs nothing; what differs by lane is chosen
inside of it. A lane that diverged finds nothing any more.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from clray.core.program import Lane, LaneState, Pools, Spec, Watch
from clray.core.step import Clock, context
from clray.strategies.base import with_unfrozen, without_unfrozen
from clray.types import Array, Params, Purpose


def fresh_watch(spec: Spec, params: Params, strategy: Any) -> Watch:
    """Before the first window."""
    steps = jnp.zeros(spec.total_batches // spec.window + 1, jnp.int32)  # as many windows as can end within a task
    return Watch(jnp.float32(0.0), jnp.float32(jnp.nan), jnp.int32(0), steps, params, without_unfrozen(strategy))


def look_for_boundary(spec: Spec, state: LaneState, lanes: Lane, pools: Pools, accuracy: Array, clock: Clock) -> LaneState:
    """Counts a batch of W lanes, and looks for a boundary where it is the last one of a window.

    Args:
        state: after the batch's step.
        accuracy: [W] of the batch.
    """
    assert state.watch is not None
    watch = state.watch._replace(total=state.watch.total + jnp.where(state.diverged, 0.0, accuracy))
    number = clock.task * spec.total_batches + clock.batch + 1
    # Only what may change goes through the branch: buffers would be copied there.
    whole, part = state.strategy, without_unfrozen(state.strategy)
    seen = state._replace(strategy=part, watch=None, optimizer=())
    close = jax.vmap(_close_window, in_axes=(None, 0, 0, 0, None, None))
    part, watch = jax.lax.cond(
        number % spec.window == 0,
        lambda part, watch: close(spec, seen._replace(strategy=part), watch, lanes, pools, clock),
        lambda part, watch: (part, watch),
        part,
        watch,
    )
    return state._replace(strategy=with_unfrozen(part, whole), watch=watch)


def _close_window(spec: Spec, state: LaneState, watch: Watch, lane: Lane, pools: Pools, clock: Clock) -> tuple[Any, Watch]:
    accuracy = watch.total / spec.window
    found = (accuracy < watch.reference - spec.threshold) & ~state.diverged  # NaN is not lower than anything
    ctx = context(spec, state._replace(watch=watch), lane, pools, clock, Purpose.BOUNDARY)
    ended = spec.chained_strategy.boundary(state.strategy, watch.strategy, watch.params, ctx)
    strategy = jax.tree.map(lambda old, new: jnp.where(found, new, old), state.strategy, ended)
    n_in_task = jnp.sum(watch.steps > 0)
    steps = watch.steps.at[jnp.where(found, n_in_task, watch.steps.shape[0])].set(clock.batch + 1, mode="drop")
    reference = jnp.where(found, jnp.nan, accuracy)
    return strategy, Watch(jnp.float32(0.0), reference, watch.n_found + found, steps, state.params, strategy)
