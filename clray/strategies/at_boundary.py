"""Which samples of a task are remembered when it ends, chosen inside the compiled program: shapes are fixed, loops have a length.

The selections are those of ``clray.selection`` (what each means, and where it comes from, is said there), with these limits:

``random``, ``class_balanced``   the same
``lambda``                       the same, not balanced
``herding``                      the same; classes take turns
``kmeans``                       ``CENTROIDS`` centroids a class, on hidden states, ``ROUNDS`` rounds of Lloyd's algorithm
``gss``                          gradients of the head alone, ``COMPARED`` samples of the memory; one pass in random order

A class with too few samples leaves its turns to the others. ``reservoir`` at the end of a task is ``random``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from clray.strategies.base import Context, TaskData
from clray.strategies.choices import among
from clray.strategies.drawing import without_replacement
from clray.strategies.selection import rank_in_class
from clray.types import Array, Params

BoundaryKind = Literal["random", "class_balanced", "kmeans", "gss", "lambda", "herding"]

CENTROIDS, ROUNDS = 4, 10
COMPARED = 10
FIRST = 0.1  # score of the first sample of gss
BLOCK = 256
"""Rows of one forward pass."""


def refuse_streaming(value: Any) -> Any:
    """Says why a memory that is filled at the end of a task has no ``reservoir`` or ``ring``. For a validator.

    Raises:
        ValueError: it is one of them.
    """
    if value in ("reservoir", "ring"):
        same = "which at the end of a task is random" if value == "reservoir" else "which needs an order of samples"
        raise ValueError(f"{value} places samples as they come by, {same}; choose one of {', '.join(get_args(BoundaryKind))}")
    return value


def misfit(selection: str, sizes: Any) -> str | None:
    """What does not fit the sizes of the experiment; see ``StrategyOptions.misfit``."""
    per_class = sizes.n_train // sizes.classes_per_task
    if selection == "kmeans" and per_class < CENTROIDS:
        return f"selection: kmeans makes {CENTROIDS} clusters of each class, which has {per_class} training samples"
    return None


def choose(kind: BoundaryKind, params: Params, data: TaskData, n: int, ctx: Context) -> Array:
    """[n] int32 different rows of a task that has just been learnt."""
    n_rows = data.labels.shape[0]
    classes = _within_task(data.labels, ctx)
    if kind == "random":
        return without_replacement(ctx.key, n_rows, n)
    if kind == "class_balanced":
        bits = jax.random.bits(ctx.key, (n_rows,))
        return jnp.lexsort((bits, rank_in_class(classes, bits)))[:n].astype(jnp.int32)
    logits, hidden = outputs(params, data.images, ctx)
    logits = among(logits, ctx.choices(data.labels))
    if kind == "lambda":
        p = jax.nn.softmax(logits)
        return jnp.argsort(-jnp.sum(p * (1.0 - p), axis=-1), stable=True)[:n].astype(jnp.int32)
    if kind == "herding":
        return herd(hidden, classes, n, ctx.sizes.classes_per_task)
    if kind == "kmeans":
        return cluster(hidden, classes, n, ctx.sizes.classes_per_task, ctx.key)
    delta = jax.nn.softmax(logits) - jax.nn.one_hot(data.labels, logits.shape[-1])
    return greedy(hidden, delta, n, ctx.key)


def _within_task(labels: Array, ctx: Context) -> Array:
    """[N] int32 below C: which class of the task a sample is of."""
    if ctx.sizes.scenario != "class":
        return labels % ctx.sizes.classes_per_task
    # Recurring classes keep their outputs, so those of a task need not be neighbours.
    own = jnp.unique(labels, size=ctx.sizes.classes_per_task, fill_value=jnp.iinfo(labels.dtype).max)
    return jnp.searchsorted(own, labels).astype(jnp.int32)


def outputs(params: Params, images: Array, ctx: Context) -> tuple[Array, Array]:
    """Logits [N, O] and hidden states [N, H] of stored images, a block at a time."""
    n_rows = images.shape[0]
    block = min(BLOCK, n_rows)
    n_blocks = -(-n_rows // block)
    rows = jnp.minimum(jnp.arange(n_blocks * block), n_rows - 1).reshape(n_blocks, block)
    parts = jax.lax.map(lambda chosen: ctx.forward(params, ctx.scale(images[chosen])), rows)
    logits, hidden = (part.reshape(n_blocks * block, -1)[:n_rows] for part in parts)
    return logits, hidden


def in_turns(n: int, n_classes: int, classes: Array, start: Any, score: Callable[[Any, Array, Array], Array], update: Any) -> Array:
    """[n] rows: class after class chooses its free sample of the highest score.

    Args:
        start: state of the scores.
        score: ``(state, class, turn) -> [N]``.
        update: ``(state, class, row) -> state``.
    """
    n_rows = classes.shape[0]

    def one(number: Array, carry: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
        state, free, chosen = carry
        label, turn = number % n_classes, number // n_classes
        own = free & (classes == label)
        allowed = jnp.where(own.any(), own, free)
        row = jnp.argmax(jnp.where(allowed, score(state, label, turn), -jnp.inf)).astype(jnp.int32)
        return update(state, label, row), free.at[row].set(False), chosen.at[number].set(row)

    _, _, chosen = jax.lax.fori_loop(0, n, one, (start, jnp.ones(n_rows, bool), jnp.zeros(n, jnp.int32)))
    return chosen


def herd(hidden: Array, classes: Array, n: int, n_classes: int) -> Array:
    """[n] rows; see ``clray.selection.herding``."""
    length = jnp.linalg.norm(hidden, axis=1, keepdims=True)
    phi = hidden / jnp.where(length > 0.0, length, 1.0)
    members = jax.nn.one_hot(classes, n_classes)
    means = (members.T @ phi) / jnp.maximum(members.sum(axis=0), 1.0)[:, None]
    half = 0.5 * jnp.sum(phi * phi, axis=1)

    def score(sums: Array, label: Array, turn: Array) -> Array:
        return phi @ ((turn + 1) * means[label] - sums[label]) - half

    return in_turns(n, n_classes, classes, jnp.zeros_like(means), score, lambda sums, label, row: sums.at[label].add(phi[row]))


def cluster(hidden: Array, classes: Array, n: int, n_classes: int, key: Array) -> Array:
    """[n] rows; see ``clray.selection.kmeans``."""
    n_rows = classes.shape[0]
    rank = rank_in_class(classes, jax.random.bits(key, (n_rows,)))
    place = jnp.where(rank < CENTROIDS, classes * CENTROIDS + rank, n_classes * CENTROIDS)
    start = jnp.zeros((n_classes * CENTROIDS, hidden.shape[1])).at[place].set(hidden, mode="drop")
    foreign = classes[:, None] != jnp.arange(n_classes * CENTROIDS)[None, :] // CENTROIDS

    def apart(centroids: Array) -> Array:
        return jnp.where(foreign, jnp.inf, jnp.sum(centroids * centroids, axis=1) - 2.0 * hidden @ centroids.T)

    def members(centroids: Array) -> Array:
        return jax.nn.one_hot(jnp.argmin(apart(centroids), axis=1), n_classes * CENTROIDS)

    def one_round(_: Array, centroids: Array) -> Array:
        own = members(centroids)
        counts = own.sum(axis=0)[:, None]
        return jnp.where(counts > 0, own.T @ hidden / jnp.maximum(counts, 1.0), centroids)

    centroids = jax.lax.fori_loop(0, ROUNDS, one_round, start)
    distance = apart(centroids) + jnp.sum(hidden * hidden, axis=1, keepdims=True)
    turns = jnp.argsort(-members(centroids).sum(axis=0).reshape(n_classes, CENTROIDS), axis=1, stable=True)

    def score(state: Any, label: Array, turn: Array) -> Array:
        del state
        # Finite for samples of other classes, so that they can step in where a class has none left.
        return -jnp.nan_to_num(distance[:, label * CENTROIDS + turns[label, turn % CENTROIDS]], posinf=1e30)

    return in_turns(n, n_classes, classes, (), score, lambda state, label, row: state)


def greedy(hidden: Array, delta: Array, n: int, key: Array) -> Array:
    """[n] rows; see ``clray.selection.gss``."""
    n_rows = hidden.shape[0]
    in_order, in_draws = jax.random.split(key)
    stream = without_replacement(in_order, n_rows, n_rows)
    draws = jax.random.uniform(in_draws, (n_rows, COMPARED + 2))
    inputs = jnp.concatenate([hidden, jnp.ones((n_rows, 1))], axis=1)
    size = jnp.linalg.norm(inputs, axis=1, keepdims=True) * jnp.linalg.norm(delta, axis=1, keepdims=True)
    unit = delta / jnp.where(size > 0.0, size, 1.0)

    def one(carry: tuple[Array, Array], item: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        kept, scores = carry
        number, row, draw = item
        filled = jnp.minimum(number, n)
        others = kept[jnp.minimum((draw[:-2] * filled).astype(jnp.int32), jnp.maximum(filled - 1, 0))]
        cosine = (inputs[others] @ inputs[row]) * (unit[others] @ unit[row])
        score = jnp.where(number == 0, FIRST, jnp.maximum(1.0 + cosine.max(), 0.0))
        sums = jnp.cumsum(scores)
        place = jnp.minimum(jnp.searchsorted(sums, draw[-2] * sums[-1], side="right"), n - 1)
        old = scores[place]
        replaces = (score < 1.0) & (draw[-1] * (old + score) < old)
        where = jnp.where(number < n, number, jnp.where(replaces, place, n))
        return (kept.at[where].set(row, mode="drop"), scores.at[where].set(score, mode="drop")), None

    numbers = jnp.arange(n_rows, dtype=jnp.int32)
    (kept, _), _ = jax.lax.scan(one, (jnp.zeros(n, jnp.int32), jnp.zeros(n)), (numbers, stream, draws))
    return kept
