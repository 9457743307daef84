"""One task of one chunk of lanes as one compiled program: a scan over logs of a scan over batches of a vmap over lanes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from clray.core.boundaries import fresh_watch, look_for_boundary
from clray.core.evaluate import Evaluation, evaluate
from clray.core.program import Lane, LaneState, Pools, Room, Spec, TaskArrays, TaskLogs
from clray.core.step import Clock, StepLog, context, lane_key, optimizer_of, train_step
from clray.core.transfer import zeros
from clray.strategies.base import TaskData, with_unfrozen, without_unfrozen
from clray.types import Array, PlacedArray, Purpose

Carry = TypeVar("Carry")


class Scores(NamedTuple):
    """The small part of an evaluation."""

    accuracy: Array  # [W, E] float32
    loss: Array  # [W, E] float32


QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For programs that run once: random bits take seconds to optimise and microseconds to draw."""


def fresh_lanes(spec: Spec, lanes: Lane, task: PlacedArray, purpose: Purpose = Purpose.INIT) -> LaneState:
    """Fresh state of W lanes.

    Args:
        task: int32 scalar; enters the key, so that an expert of every task starts from weights of its own.
        purpose: INIT for the learner, EXPERT and JOINT for the baselines.
    """

    def init(lane: Lane) -> LaneState:
        params, model_state = spec.pure_model.init(lane_key(lane, task, purpose))
        optimizer = optimizer_of(spec, lane, jnp.int32(0), 1).init(params)
        strategy = spec.chained_strategy.init(params, spec.strategy_sizes)
        watch = fresh_watch(spec, params, strategy) if spec.window else None
        return LaneState(params, model_state, optimizer, strategy, jnp.int32(0), jnp.bool_(False), watch)

    return jax.vmap(init)(lanes)


init_lanes = jax.jit(fresh_lanes, static_argnames=("spec", "purpose"), compiler_options=QUICK_COMPILE)
"""``fresh_lanes``, compiled."""


@functools.partial(jax.jit, static_argnames=("spec",))
def evaluate_lanes(spec: Spec, state: LaneState, lanes: Lane, pools: Pools, task: PlacedArray) -> Evaluation:
    """Evaluates W lanes outside training, as while ``task`` (int32 scalar) is trained: a leading axis W on every leaf."""
    with spec.products():
        return _evaluate_all(spec, state, lanes, pools, task)


def fresh_room(spec: Spec, state: LaneState, lanes: Lane, pools: Pools, device: jax.Device) -> Room:
    """Room on ``device`` for the logs of W lanes in one task, or in one of its segments; zeros."""
    n_logs = spec.n_logs // spec.n_segments
    logged = jax.eval_shape(functools.partial(evaluate_lanes, spec), state, lanes, pools, np.int32(0))
    large = _large(spec, state, logged)
    return zeros(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n_logs, *leaf.shape), leaf.dtype), large), device)


def _large(spec: Spec, state: LaneState, logged: Evaluation) -> Room:
    return Room(logged.hidden, state.params if spec.log_weights else {})


@functools.partial(jax.jit, static_argnames=("spec",), donate_argnames=("room",))
def train_task(
    spec: Spec, state: LaneState, lanes: Lane, pools: Pools, data: TaskArrays, task: Array, horizon: Array, segment: Array, room: Room
) -> tuple[LaneState, TaskLogs]:
    """Trains W lanes on one task, or on one of the equal segments of its logs where all logs would not fit on the device.

    Args:
        spec: static; equal specs and shapes compile once.
        data: of the task; its order has one row a batch.
        task: int32 scalar, number of the task.
        horizon: int32 scalar, batches of the whole sequence (for schedules over it).
        segment: int32 scalar, 0 to ``spec.n_segments - 1``, called in this order.
        room: see ``fresh_room``, or the large logs of an earlier call; gone afterwards.

    Returns:
        The state after the segment's last batch, and its logs (L / n_segments of them); the evaluation after the task's last
        batch is that of the last segment.
    """
    with spec.products():
        return _train(spec, state, lanes, pools, data, task, horizon, segment, room)


def _train(
    spec: Spec, state: LaneState, lanes: Lane, pools: Pools, data: TaskArrays, task: Array, horizon: Array, segment: Array, room: Room
) -> tuple[LaneState, TaskLogs]:
    batches = data.order, data.order_labels
    is_first, is_last = segment == 0, segment == spec.n_segments - 1
    begin = jax.vmap(_begin_task, in_axes=(None, 0, 0, None, None))
    state = _only(spec, is_first, lambda state: begin(spec, state, lanes, pools, task), state)
    step = jax.vmap(functools.partial(train_step, spec), in_axes=(0, 0, None, 0, 0, None))
    column = data.column

    def take(rows: Array, chosen: Array) -> Array:  # [N, columns, ...], [W, B] -> [W, B, ...]
        return jax.vmap(lambda own, chosen: own[chosen], in_axes=(1, 0))(rows, chosen) if column is None else rows[chosen, column[:, None]]

    def in_pool(images: Array) -> Array:
        return images if pools.train is None else pools.train[images]

    def one_batch(state: LaneState, batch: tuple[Array, tuple[Array, Array]]) -> tuple[LaneState, StepLog]:
        number, rows = batch
        chosen, labels = rows if column is None else jax.tree.map(lambda each: each[column], rows)
        if spec.cumulative:
            images = in_pool(chosen)
        else:
            images, labels = take(data.images, chosen), take(data.labels, chosen)
        clock = Clock(task, number, horizon)
        state, log = step(state, lanes, pools, images, labels, clock)
        return look_for_boundary(spec, state, lanes, pools, log.accuracy, clock) if spec.window else state, log

    def one_log(
        carry: tuple[LaneState, Room], window: tuple[Array, tuple[Array, tuple[Array, Array]]]
    ) -> tuple[tuple[LaneState, Room], tuple[StepLog, Scores]]:
        state, room = carry
        number, batches = window
        state, log = jax.lax.scan(one_batch, state, batches)
        logged = _evaluate_all(spec, state, lanes, pools, task)
        large = _large(spec, state, logged)
        room = jax.tree.map(lambda all_logs, one: jax.lax.dynamic_update_index_in_dim(all_logs, one, number, 0), room, large)
        return (state, room), (jax.tree.map(lambda x: x.mean(axis=0), log), Scores(logged.accuracy, logged.loss))

    def finish(carry: tuple[LaneState, Scores]) -> tuple[LaneState, Scores]:
        state, end = carry
        if n_logged < spec.total_batches:
            rest = jax.tree.map(lambda x: x[n_logged:], (numbers, batches))
            state, _ = jax.lax.scan(one_batch, state, rest)
            last = _evaluate_all(spec, state, lanes, pools, task)
            end = Scores(last.accuracy, last.loss)
        images = in_pool(data.images) if spec.cumulative else data.images
        if column is None:
            ended = jax.vmap(_end_task, in_axes=(None, 0, 0, None, 1, 1, None))
            return ended(spec, state, lanes, pools, images, data.labels, task), end

        def ended_in(state: LaneState, lane: Lane, own: Array) -> LaneState:
            return _end_task(spec, state, lane, pools, images[:, own], data.labels[:, own], task)

        return jax.vmap(ended_in)(state, lanes, column), end

    n_logged = spec.n_logs * spec.log_frequency
    per_segment = spec.n_logs // spec.n_segments
    numbers = jnp.arange(spec.total_batches, dtype=jnp.int32)
    windows = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(
            x[:n_logged].reshape(spec.n_logs, spec.log_frequency, *x.shape[1:]), segment * per_segment, per_segment
        ),
        (numbers, batches),
    )
    (state, room), (train, logged) = jax.lax.scan(one_log, (state, room), (jnp.arange(per_segment), windows))
    last = jax.tree.map(lambda x: x[-1], logged)
    state, end = _only(spec, is_last, finish, (state, last))
    return state, TaskLogs(logged.accuracy, logged.loss, train.accuracy, train.loss, room.hidden, room.weights, end.accuracy, end.loss)


def _only(spec: Spec, when: Array, function: Callable[[Carry], Carry], carry: Carry) -> Carry:
    """Applies ``function`` in one segment of a task only; a real branch, as the condition has no lane axis."""
    if spec.n_segments == 1:
        return function(carry)
    return jax.lax.cond(when, function, lambda same: same, carry)


def _evaluate_all(spec: Spec, state: LaneState, lanes: Lane, pools: Pools, task: PlacedArray) -> Evaluation:
    return jax.vmap(evaluate, in_axes=(None, 0, 0, None, None))(spec, state, lanes, pools, task)


def _begin_task(spec: Spec, state: LaneState, lane: Lane, pools: Pools, task: Array) -> LaneState:
    if state.watch is not None:
        return state._replace(watch=state.watch._replace(steps=jnp.zeros_like(state.watch.steps)))
    ctx = context(spec, state, lane, pools, Clock(task, jnp.int32(0), jnp.int32(1)), Purpose.BOUNDARY)
    key, _ = jax.random.split(ctx.key)
    strategy, params = spec.chained_strategy.begin_task(state.strategy, state.params, ctx._replace(key=key))
    fresh = optimizer_of(spec, lane, jnp.int32(0), 1).init(params) if spec.reset_optimizer else state.optimizer
    begun = state._replace(params=params, strategy=strategy, optimizer=fresh)
    return jax.tree.map(lambda old, new: jnp.where(state.diverged, old, new), state, begun)


def _end_task(spec: Spec, state: LaneState, lane: Lane, pools: Pools, images: Array, labels: Array, task: Array) -> LaneState:
    if state.watch is not None:
        return state
    ctx = context(spec, state, lane, pools, Clock(task, jnp.int32(0), jnp.int32(1)), Purpose.BOUNDARY)
    part = without_unfrozen(state.strategy)
    told = spec.chained_strategy.boundary(part, part, state.params, ctx._replace(key=jax.random.fold_in(ctx.key, 2)))
    _, key = jax.random.split(ctx.key)
    strategy = with_unfrozen(told, state.strategy)
    strategy = spec.chained_strategy.end_task(strategy, state.params, TaskData(images, labels), ctx._replace(key=key))
    return state._replace(strategy=jax.tree.map(lambda old, new: jnp.where(state.diverged, old, new), state.strategy, strategy))
