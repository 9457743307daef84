"""Which samples of a stream a buffer of M slots keeps: a place for every new sample, or none.

``reservoir``       every sample of the stream so far is kept with the same probability (Vitter 1985; as in Chaudhry et al. 2019,
                    arXiv 1902.10486, algorithm 2).
``class_balanced``  every class so far has the same number of slots (those it can fill), and within a class every sample of its
                    stream is kept with the same probability. Costs a sort of the buffer a batch.
``ring``            every class of the whole sequence has a ring of M // (T * C) slots of its own from the start; its latest samples
                    are kept (Chaudhry et al. 2019, "ring buffer").

A class is a label of a task; in scenario class, a class of the sequence. A stream that visits a sample in every epoch offers it
in every epoch.

Slots that two samples of a batch would share go to the later one. All choices follow from random bits; shapes never change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from clray.strategies.base import StaticSizes
from clray.strategies.drawing import below
from clray.types import Array

Kind = Literal["reservoir", "class_balanced", "ring"]


class Selection(NamedTuple):
    """Pure functions over a pytree state.

    Attributes:
        init: ``() -> state``.
        place: ``(state, classes [B] int32, bits [B] uint32) -> (state, slots [B] int32)``; slot M: not kept.
        draw: ``(state, bits [n] uint32) -> (slots [n] int32, filled int32 scalar)``: filled slots, uniform with replacement.
    """

    init: Callable[[], Any]
    place: Callable[[Any, Array, Array], tuple[Any, Array]]
    draw: Callable[[Any, Array], tuple[Array, Array]]


def select(kind: Kind, size: int, sizes: StaticSizes) -> Selection:
    """A selection for M = ``size`` slots."""
    if kind == "reservoir":
        return reservoir(size)
    n_classes = sizes.n_outputs if sizes.scenario == "class" else sizes.n_tasks * sizes.classes_per_task
    return class_balanced(size) if kind == "class_balanced" else ring(size, n_classes)


def class_numbers(tasks: Array, labels: Array, sizes: StaticSizes) -> Array:
    """[B] number of the class within the sequence, from 0."""
    if sizes.scenario != "domain":
        return labels
    return tasks * sizes.classes_per_task + labels % sizes.classes_per_task


def reservoir(size: int) -> Selection:
    """Algorithm R. The state is the number of samples offered so far, int32."""

    def place(seen: Array, classes: Array, bits: Array) -> tuple[Array, Array]:
        number = seen + jnp.arange(classes.shape[0], dtype=jnp.int32)
        slots = jnp.where(number < size, number, jnp.minimum(below(bits, number + 1), size))
        return seen + classes.shape[0], _latest_only(slots, size)

    def draw(seen: Array, bits: Array) -> tuple[Array, Array]:
        filled = jnp.minimum(seen, size)
        return below(bits, filled), filled

    return Selection(lambda: jnp.int32(0), place, draw)


def ring(size: int, n_classes: int) -> Selection:
    """A ring a class. The state is the number of samples of each class offered so far, int32 [T*C]."""
    quota = size // n_classes

    def place(counts: Array, classes: Array, bits: Array) -> tuple[Array, Array]:
        del bits
        same = classes[:, None] == classes[None, :]
        rank = jnp.sum(jnp.tril(same, -1), axis=1, dtype=jnp.int32)  # samples of the class before it in the batch
        slots = classes * quota + (counts[classes] + rank) % quota
        return counts.at[classes].add(1), _latest_only(slots, size)

    def draw(counts: Array, bits: Array) -> tuple[Array, Array]:
        filled = jnp.minimum(counts, quota)
        ends = jnp.cumsum(filled)
        number = below(bits, ends[-1])
        owner = jnp.minimum(jnp.searchsorted(ends, number, side="right"), n_classes - 1)
        return owner * quota + number - (ends - filled)[owner], ends[-1]

    return Selection(lambda: jnp.zeros(n_classes, jnp.int32), place, draw)


class Balance(NamedTuple):
    """State of ``class_balanced``."""

    priorities: Array  # [M] uint32, random; a class keeps its samples of the lowest priorities
    classes: Array  # [M] int32
    filled: Array  # int32 scalar: slots 0 to filled - 1 are in use


def class_balanced(size: int) -> Selection:
    """Every sample gets a random priority; of each class the lowest are kept, as many as the other classes leave room for."""

    def place(state: Balance, classes: Array, bits: Array) -> tuple[Balance, Array]:
        n_new = classes.shape[0]
        priorities = jnp.concatenate([state.priorities, bits])
        everyone = jnp.concatenate([state.classes, classes])
        in_use = jnp.concatenate([jnp.arange(size) < state.filled, jnp.ones(n_new, bool)])
        rank = jnp.where(in_use, rank_in_class(jnp.where(in_use, everyone, -1), priorities), size + n_new)
        best = jnp.lexsort((priorities, rank))[:size]
        kept = jnp.zeros(size + n_new, bool).at[best].set(True) & in_use
        free = jnp.nonzero(~kept[:size], size=n_new, fill_value=size)[0]
        kept_new = kept[size:]
        slots = jnp.where(kept_new, free[jnp.cumsum(kept_new) - 1], size).astype(jnp.int32)
        written = Balance(
            state.priorities.at[slots].set(bits, mode="drop"),
            state.classes.at[slots].set(classes, mode="drop"),
            jnp.minimum(state.filled + n_new, size),
        )
        return written, slots

    def draw(state: Balance, bits: Array) -> tuple[Array, Array]:
        return below(bits, state.filled), state.filled

    return Selection(lambda: Balance(jnp.zeros(size, jnp.uint32), jnp.zeros(size, jnp.int32), jnp.int32(0)), place, draw)


def rank_in_class(classes: Array, priorities: Array) -> Array:
    """[n] how many of the same class have a lower priority."""
    order = jnp.lexsort((priorities, classes))
    place, ordered = jnp.arange(classes.shape[0]), classes[order]
    is_first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    start = jax.lax.cummax(jnp.where(is_first, place, 0))
    return jnp.zeros_like(place).at[order].set(place - start)


def _latest_only(slots: Array, size: int) -> Array:
    """Sends all but the last of those that share a slot to ``size``, which is nowhere."""
    again = jnp.triu(slots[:, None] == slots[None, :], 1).any(axis=1)
    return jnp.where(again, size, slots).astype(jnp.int32)
