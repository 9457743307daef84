"""Evaluation factored by class.

Tasks are label assignments to the same class pools, so one pass of the network over the pools gives, for every class k of
the pool and every label y, how many samples of k are classified as y and the mean loss if y were right. Accuracy and loss
of any task are gathers from these tables: the cost does not grow with the number of tasks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from clray.core.program import Lane, LaneState, Pools, Spec
from clray.types import Array


class Evaluation(NamedTuple):
    """Of one lane."""

    accuracy: Array  # [E] float32; NaN in a diverged lane
    loss: Array  # [E] float32; NaN in a diverged lane
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


def evaluate(spec: Spec, state: LaneState, lane: Lane, pools: Pools) -> Evaluation:
    """Evaluates one lane on all its tasks."""
    n_classes, per_class = lane.pool.shape[0], pools.images.shape[1]
    # A pool over all K classes is in the order of the source: no gather, so all lanes share the scaled images.
    everything = n_classes == pools.images.shape[0]

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

    def count(logits: Array, hidden: Array) -> tuple[Array, Array, Array]:
        predicted = jnp.argmax(logits, axis=-1)
        hits = (predicted[..., None] == jnp.arange(logits.shape[-1])).sum(axis=1, dtype=jnp.int32)
        return hits, -jax.nn.log_softmax(logits).mean(axis=1), hidden[:, : spec.n_kept]

    at_once = classes_at_once(spec, n_classes, per_class)
    if at_once == n_classes:
        hits, losses, hidden = count(*tables(pools.images if everything else pools.images[lane.pool]))
    else:
        one_pass = tables if at_once else cut_class
        groups = lane.pool.reshape(-1, at_once) if at_once else lane.pool
        parts = jax.lax.map(lambda classes: count(*one_pass(pools.images[classes])), groups)
        hits, losses, hidden = (part.reshape(n_classes, *part.shape[2:]) for part in parts)

    label = jnp.arange(lane.labels.shape[1])
    accuracy = exact_fraction(hits[lane.labels, label].sum(axis=1), per_class * lane.labels.shape[1])
    loss = losses[lane.labels, label].mean(axis=1)
    # Parameters can be finite and yet too large for any logit to be: the last update of all has nothing after it to tell.
    frozen = state.diverged | ~jnp.isfinite(loss).all()
    return Evaluation(jnp.where(frozen, jnp.nan, accuracy), jnp.where(frozen, jnp.nan, loss), hidden)


def exact_fraction(hits: Array, n: int) -> Array:
    """``hits / n`` as the nearest float32: compiled, a division by a constant is a product with its rounded inverse."""
    quotient = hits / jnp.float32(n)
    return quotient + (hits - quotient * n) / n
