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
    return (images.astype(jnp.float32) * spec.scale - pools.mean) / pools.deviation


def evaluate(spec: Spec, state: LaneState, lane: Lane, pools: Pools) -> Evaluation:
    """Evaluates one lane on all its tasks."""
    n_classes, per_class = lane.pool.shape[0], pools.images.shape[1]
    at_once = max((d for d in range(1, n_classes + 1) if n_classes % d == 0 and d * per_class <= spec.eval_rows), default=1)

    def block(classes: Array) -> tuple[Array, Array, Array]:
        images = pools.images if at_once == pools.images.shape[0] == n_classes else pools.images[classes]
        rows = scale_images(spec, pools, images.reshape(-1, *pools.images.shape[2:]))
        logits, hidden, _ = spec.pure_model.apply(state.params, state.model_state, rows, train=False, key=None)
        by_class = (at_once, per_class, -1)
        logits, hidden = logits.reshape(by_class), hidden.reshape(by_class)
        predicted = jnp.argmax(logits, axis=-1)
        hits = (predicted[..., None] == jnp.arange(logits.shape[-1])).sum(axis=1, dtype=jnp.int32)
        losses = -jax.nn.log_softmax(logits).mean(axis=1)
        return hits, losses, hidden[:, : spec.n_kept]

    if at_once == n_classes:
        hits, losses, hidden = block(lane.pool)
    else:
        parts = jax.lax.map(block, lane.pool.reshape(-1, at_once))
        hits, losses, hidden = (part.reshape(n_classes, *part.shape[2:]) for part in parts)

    # A pool over all K classes is used in the order of the source, without a gather: then pool[u] == u must hold.
    label = jnp.arange(lane.labels.shape[1])
    accuracy = hits[lane.labels, label].sum(axis=1) / jnp.float32(per_class * lane.labels.shape[1])
    loss = losses[lane.labels, label].mean(axis=1)
    frozen = state.diverged
    return Evaluation(jnp.where(frozen, jnp.nan, accuracy), jnp.where(frozen, jnp.nan, loss), hidden)
