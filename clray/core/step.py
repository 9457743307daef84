"""One training step of one lane."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clray.core.evaluate import exact_fraction, scale_images
from clray.core.program import Lane, LaneState, Pools, Spec
from clray.core.scenario import choices_of
from clray.options import Schedule
from clray.strategies.base import Context, Step, Unfrozen
from clray.strategies.choices import among
from clray.types import Array, Batch, Params, Purpose


class StepLog(NamedTuple):
    """Of one batch."""

    loss: Array  # float32 scalar, penalties included; what is minimised
    accuracy: Array  # float32 scalar, on the B rows of the task


class Clock(NamedTuple):
    """Where training stands; scalars shared by all lanes."""

    task: Array  # int32
    batch: Array  # int32, within the task, from 0
    horizon: Array  # int32, batches of the whole sequence


def lane_key(lane: Lane, task: Array, purpose: Purpose) -> Array:
    """The key of (seed, repeat, task, purpose)."""
    key = jax.random.fold_in(jax.random.key(lane.seed), lane.repeat)
    return jax.random.fold_in(jax.random.fold_in(key, task), int(purpose))


def schedule_factor(schedule: Schedule, done: Array, total: Array | int) -> Array | float:
    """Factor of the learning rate at the batch after ``done`` of ``total`` batches.

    ``cosine`` falls from 1 to ``final`` along half a cosine (Loshchilov & Hutter 2017, eq. 5, without restarts);
    ``warmup_cosine`` first rises linearly over ``warmup_fraction`` of the batches.
    """
    if schedule.name == "constant":
        return 1.0
    position = done.astype(jnp.float32) / total
    warmup = schedule.warmup_fraction if schedule.name == "warmup_cosine" else 0.0
    along = jnp.clip((position - warmup) / (1.0 - warmup), 0.0, 1.0)
    cosine = schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + jnp.cos(jnp.pi * along))
    if warmup == 0.0:
        return cosine
    rising = (done.astype(jnp.float32) + 1.0) / (warmup * total)
    return jnp.where(position < warmup, jnp.minimum(rising, 1.0), cosine)


def optimizer_of(spec: Spec, lane: Lane, done: Array, total: Array | int) -> optax.GradientTransformation:
    """The lane's optimizer with its learning rate for the coming batch. State structure does not depend on the rate."""
    rate = lane.optimizer["learning_rate"] * schedule_factor(spec.optimizer.schedule, done, total)
    return spec.optimizer.build(lane.optimizer, rate)


def row_losses(logits: Array, batch: Batch, choices: Array | None = None) -> Array:
    """[rows] cross-entropy of each row of a batch from its logits [rows, O], among its choices (bool [rows, O]; None: all)."""
    return optax.softmax_cross_entropy_with_integer_labels(among(logits, choices), batch.labels)


def context(spec: Spec, state: LaneState, lane: Lane, pools: Pools, clock: Clock, purpose: Purpose) -> Context:
    """What strategy hooks may look at."""

    def forward(params: Params, images: Array) -> tuple[Array, Array]:
        return spec.pure_model.apply(params, state.model_state, images, train=False, key=None)[:2]

    def choices(labels: Array, task: Array | None = None) -> Array | None:
        return choices_of(spec, labels, clock.task if task is None else task)

    def losses(logits: Array, batch: Batch) -> Array:
        return row_losses(logits, batch, choices(batch.labels))

    key = jax.random.fold_in(lane_key(lane, clock.task, purpose), clock.batch)
    scale = functools.partial(scale_images, spec, pools)
    task = clock.task if state.watch is None else state.watch.n_found
    return Context(lane.strategy, task, clock.batch, key, forward, scale, losses, spec.strategy_sizes, choices)


def train_step(
    spec: Spec, state: LaneState, lane: Lane, pools: Pools, images: Array, labels: Array, clock: Clock
) -> tuple[LaneState, StepLog]:
    """Trains one lane on one batch.

    Args:
        images: [B, *input_shape], source dtype.
        labels: [B] int32, numbers of outputs.

    A lane whose loss or update is not finite keeps its last finite state for good.
    """
    strategy = spec.chained_strategy
    ctx = context(spec, state, lane, pools, clock, Purpose.STEP)
    strategy_key, dropout_key = jax.random.split(ctx.key)
    in_batch, in_penalty, in_gradient, after_step = (ctx._replace(key=key) for key in jax.random.split(strategy_key, 4))
    raw = Batch(images, labels, jnp.ones(spec.batch_size, jnp.float32))
    strategy_state, raw = strategy.batch(state.strategy, raw, in_batch)
    batch = raw._replace(images=scale_images(spec, pools, raw.images))

    def objective(params: Params) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        logits, _, model_state = spec.pure_model.apply(params, state.model_state, batch.images, train=True, key=dropout_key)
        mean_loss = jnp.sum(ctx.losses(logits, batch) * batch.weights) / jnp.sum(batch.weights)
        return mean_loss + strategy.penalty(strategy_state, params, logits, batch, in_penalty), (logits, model_state)

    (loss, (logits, model_state)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    gradient = strategy.gradient(strategy_state, gradient, state.params, batch, in_gradient)

    if spec.optimizer.schedule.per == "task":
        optimizer = optimizer_of(spec, lane, clock.batch, spec.total_batches)
    else:
        optimizer = optimizer_of(spec, lane, state.batches, clock.horizon)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    strategy_state = strategy.after_step(strategy_state, Step(state.params, params, gradient, logits, batch), after_step)

    checked = gradient if spec.optimizer.keeps_finite else updates
    size = lane.optimizer["learning_rate"] * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(checked))
    diverged = state.diverged | ~jnp.isfinite(loss) | ~jnp.isfinite(size)
    moved = LaneState(params, model_state, optimizer_state, strategy_state, state.batches + 1, diverged)
    kept = _freeze(diverged, state._replace(diverged=diverged, watch=None), moved)
    hits = (jnp.argmax(among(logits[: spec.batch_size], ctx.choices(labels)), axis=-1) == labels).sum()
    log = StepLog(loss, exact_fraction(hits, spec.batch_size))
    return kept._replace(diverged=diverged, watch=state.watch), jax.tree.map(lambda value: jnp.where(diverged, jnp.nan, value), log)


def _freeze(diverged: Array, before: LaneState, after: LaneState) -> LaneState:
    def choose(old: Any, new: Any) -> Any:
        return new if isinstance(new, Unfrozen) else jnp.where(diverged, old, new)

    frozen: LaneState = jax.tree.map(choose, before, after, is_leaf=lambda node: isinstance(node, Unfrozen))
    return frozen
