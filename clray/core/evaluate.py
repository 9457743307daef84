"""Evaluation factored by class.

Tasks are label assignments to the same class pools, so one pass of the network over the pools gives tables from which
accuracy and loss of any task are gathered. What a table tells of a class k of the pool depends on the scenario:

``domain``  for every label y, how many samples of k are classified as y, and the mean loss if y were right. The cost does not grow
            with the number of tasks.
``task``    the same for every head and label: [U, E, C]. What grows with the number of tasks is the product of the head (T*C
            outputs) and a comparison a logit, not the rest of the network.
``class``   a class has one right output in all tasks, so one number a class.

Where images differ by task, an entry of the pool is a class under the transform of one task, E*C in all: a pass per task.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from clray.core.program import Lane, LaneState, Pools, Spec
from clray.core.scenario import choices_of, seen_at
from clray.strategies.choices import among
from clray.transform import transformed
from clray.types import Array

Tables = tuple[Array, Array, Array]
"""Hits int32 and losses [classes, ...] of whole classes, and hidden states [classes, S/C, H]."""


class Evaluation(NamedTuple):
    """Of one lane."""

    accuracy: Array  # [E] float32; NaN in a diverged lane
    loss: Array  # [E] float32; NaN in a diverged lane, and while the classes of the task are no choice
    hidden: Array  # [U, S/C, H] float32: the first samples of each class of the lane's pool


def scale_images(spec: Spec, pools: Pools, images: Array) -> Array:
    """Source dtype to model input: float32, scaled, normalised per channel."""
    scaled = images.astype(jnp.float32)
    if spec.scale != 1.0:
        scaled = scaled * spec.scale
    # What is left out here is left out of every batch: dividing a small batch by 1 costs as much as a small layer.
    return scaled if pools.mean is None else (scaled - pools.mean) / pools.deviation


def classes_at_once(spec: Spec, n_classes: int, per_class: int) -> int:
    """Whole classes of P samples that are evaluated in one pass: a divisor of U, or 0 where a class is too large for one."""
    return max((d for d in range(1, n_classes + 1) if n_classes % d == 0 and d * per_class <= spec.eval_rows), default=0)


def rows_at_once(spec: Spec, n_classes: int, per_class: int) -> int:
    """Samples that are evaluated in one pass; a class that is too large is cut into blocks of even size."""
    whole = classes_at_once(spec, n_classes, per_class)
    return whole * per_class if whole else -(-per_class // -(-per_class // spec.eval_rows))


def evaluate(spec: Spec, state: LaneState, lane: Lane, pools: Pools, task: Array) -> Evaluation:
    """Evaluates one lane on all its tasks, as while ``task`` is trained."""
    n_classes, per_class = lane.pool.shape[0], pools.images.shape[1]
    # A pool over all K classes is in the order of the source: no gather, so all lanes share the scaled images.
    everything = n_classes == pools.images.shape[0] and lane.transform is None

    def tables(images: Array) -> tuple[Array, Array]:
        """Logits and hidden states of whole classes, [classes, P, ...]."""
        rows = scale_images(spec, pools, images.reshape(-1, *spec.input_shape))
        logits, hidden, _ = spec.pure_model.apply(state.params, state.model_state, rows, train=False, key=None)
        return logits.reshape(-1, per_class, logits.shape[-1]), hidden.reshape(-1, per_class, hidden.shape[-1])

    def cut_class(images: Array) -> tuple[Array, Array]:
        """The same for one class that is too large for one pass."""
        size = rows_at_once(spec, n_classes, per_class)
        n_blocks = -(-per_class // size)
        blocks = images[jnp.minimum(jnp.arange(n_blocks * size), per_class - 1).reshape(n_blocks, size)]

        def one(block: Array) -> tuple[Array, Array]:
            rows = scale_images(spec, pools, block)
            return spec.pure_model.apply(state.params, state.model_state, rows, train=False, key=None)[:2]

        logits, hidden = jax.lax.map(one, blocks)
        return tuple(out.reshape(1, n_blocks * size, -1)[:, :per_class] for out in (logits, hidden))

    def look_up(group: Array, first: Array) -> Array:
        """Images of a group of classes [...], which stand in the pool from ``first`` on."""
        if everything and jax.default_backend() != "cpu":  # where the bits of hidden states would depend on the lanes beside
            return jax.lax.dynamic_slice_in_dim(pools.images, first, size) if at_once else pools.images[first]
        images = pools.images[group]
        if lane.transform is None:
            return images
        own = jax.tree.map(lambda leaf: leaf[first // spec.classes_per_task], lane.transform)
        return transformed(images.reshape(-1, *spec.input_shape), own).reshape(images.shape)

    right = right_outputs(spec, lane)
    # Where images are transformed, all classes of one pass are under the same transform.
    at_once = classes_at_once(spec, spec.classes_per_task if lane.transform is not None else n_classes, per_class)
    size = max(at_once, 1)
    if at_once == n_classes and lane.transform is None:
        images = pools.images if everything else pools.images[lane.pool]
        hits, losses, hidden = count(spec, lane, right, task, *tables(images))
    else:
        one_pass = tables if at_once else cut_class
        groups = lane.pool.reshape(-1, at_once) if at_once else lane.pool
        rights = None if right is None else right.reshape(-1, size)
        starts = jnp.arange(0, n_classes, size)

        def one_group(group: tuple[Array, Array | None, Array]) -> Tables:
            classes, own, first = group
            return count(spec, lane, own, task, *one_pass(look_up(classes, first)))

        parts = jax.lax.map(one_group, (groups, rights, starts))
        hits, losses, hidden = (part.reshape(n_classes, *part.shape[2:]) for part in parts)

    n_labels = lane.labels.shape[1]
    where: tuple[Array, ...] = (lane.labels,)
    if right is None:
        heads = (jnp.arange(lane.labels.shape[0])[:, None],) if spec.scenario == "task" else ()
        where = (lane.labels, *heads, jnp.arange(n_labels))
    accuracy = exact_fraction(hits[where].sum(axis=1), per_class * n_labels)
    loss = losses[where].mean(axis=1)
    # Parameters can be finite and yet too large for any logit to be: the last update of all has nothing after it to tell.
    frozen = state.diverged | ~jnp.isfinite(loss).all()
    if spec.seen and lane.outputs is not None:
        loss = jnp.where((lane.outputs < seen_at(spec, task)).all(axis=1), loss, jnp.nan)
    return Evaluation(jnp.where(frozen, jnp.nan, accuracy), jnp.where(frozen, jnp.nan, loss), hidden)


def right_outputs(spec: Spec, lane: Lane) -> Array | None:
    """[U] the right output for each entry of the pool, where there is one whatever the task; entries of no task have 0."""
    if spec.scenario == "domain" or (spec.scenario == "task" and lane.transform is None):
        return None
    return jnp.zeros(lane.pool.shape[0], jnp.int32).at[lane.labels].set(lane.outputs)


def count(spec: Spec, lane: Lane, right: Array | None, task: Array, logits: Array, hidden: Array) -> Tables:
    """The tables of whole classes from their logits [classes, P, O] and hidden states [classes, P, H].

    Args:
        right: [classes] the right outputs, or None where they depend on the task.
    """
    kept = hidden[:, : spec.n_kept]
    if right is not None:
        choices = choices_of(spec, right, task)
        logits = among(logits, None if choices is None else choices[:, None])
        hits = (jnp.argmax(logits, axis=-1) == right[:, None]).sum(axis=1, dtype=jnp.int32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), right[:, None, None], axis=-1)
        return hits, -chosen[..., 0].mean(axis=1), kept
    if lane.outputs is not None:
        own_heads = lane.outputs[:, 0] // spec.classes_per_task
        logits = logits.reshape(*logits.shape[:-1], -1, spec.classes_per_task)[:, :, own_heads]
    predicted = jnp.argmax(logits, axis=-1)
    hits = (predicted[..., None] == jnp.arange(logits.shape[-1])).sum(axis=1, dtype=jnp.int32)
    return hits, -jax.nn.log_softmax(logits).mean(axis=1), kept


def exact_fraction(hits: Array, n: int) -> Array:
    """``hits / n`` as the nearest float32: compiled, a division by a constant is a product with its rounded inverse."""
    quotient = hits / jnp.float32(n)
    return quotient + (hits - quotient * n) / n
