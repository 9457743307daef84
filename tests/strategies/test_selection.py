"""What buffers keep: against plain loops over the stream, and by chi-square over many seeds."""

from __future__ import annotations

from collections import Counter, deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from clray.strategies.selection import Selection, class_balanced, reservoir, ring

B = 4
UNLIKELY = 1e-4
"""Seeds are fixed: a test of a right sampler fails once in ten thousand choices of the seed."""


def fill(selection: Selection, size: int, classes: np.ndarray, seed: int, n_seeds: int) -> np.ndarray:
    """Numbers of the samples in each slot (-1: none) at the end of a stream of classes (batches, B), for many seeds."""
    return history(selection, size, classes, seed, n_seeds)[:, -1]


def history(selection: Selection, size: int, classes: np.ndarray, seed: int, n_seeds: int) -> np.ndarray:
    """The same after every batch: (seeds, batches, slots)."""

    def one(key: jax.Array) -> jax.Array:
        def step(carry: tuple, batch: tuple) -> tuple:  # type: ignore[type-arg]
            state, slots = carry
            number, own, key = batch
            state, places = selection.place(state, own, jax.random.bits(key, (B,)))
            slots = slots.at[places].set(number, mode="drop")
            return (state, slots), slots

        numbers = jnp.arange(classes.size).reshape(classes.shape)
        stream = numbers, jnp.asarray(classes, jnp.int32), jax.random.split(key, len(classes))
        return jax.lax.scan(step, (selection.init(), jnp.full(size, -1)), stream)[1]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), n_seeds)))


def chi_square(counts: np.ndarray, expected: float | np.ndarray, variance_factor: float = 1.0) -> float:
    """p of counts with equal expectations; ``variance_factor`` corrects for draws without replacement."""
    statistic = ((counts - expected) ** 2 / expected).sum() / variance_factor
    return float(stats.chi2.sf(statistic, len(counts) - 1))


def test_reservoir_keeps_every_sample_of_the_stream_with_the_same_probability() -> None:
    size, n_samples, n_seeds = 6, 28, 6000
    kept = fill(reservoir(size), size, np.zeros((n_samples // B, B), int), 0, n_seeds)
    assert all(len(set(row)) == size for row in kept[:500].tolist()), "a sample is in two slots"
    counts = np.bincount(kept.ravel(), minlength=n_samples)
    # A count of draws without replacement varies less: (n - k)/(n - 1) of what independent draws would.
    assert chi_square(counts, n_seeds * size / n_samples, (n_samples - size) / (n_samples - 1)) > UNLIKELY


def test_reservoir_keeps_pairs_as_if_drawn_without_replacement() -> None:
    size, n_samples, n_seeds = 3, 8, 12000
    kept = fill(reservoir(size), size, np.zeros((n_samples // B, B), int), 1, n_seeds)
    pairs = Counter(tuple(sorted((row[i], row[j]))) for row in kept.tolist() for i in range(3) for j in range(i))
    assert len(pairs) == 28
    counts = np.array(list(pairs.values()))
    # Three pairs a seed that share members: more variable than independent draws by at most a factor of 2.
    assert chi_square(counts, n_seeds * 3 / 28, 2.0) > UNLIKELY


def test_reservoir_is_algorithm_r_sample_by_sample() -> None:
    size, n_batches = 5, 9
    selection, kept, slow, seen = reservoir(size), np.full(size, -1), [-1] * size, 0
    state = selection.init()
    for number in range(n_batches):
        bits = np.asarray(jax.random.bits(jax.random.key(number), (B,)))
        state, slots = selection.place(state, jnp.zeros(B, jnp.int32), jnp.asarray(bits))
        for sample, slot in zip(range(number * B, (number + 1) * B), np.asarray(slots), strict=True):
            if slot < size:
                kept[slot] = sample
        for sample, bit in zip(range(number * B, (number + 1) * B), bits.tolist(), strict=True):
            place = seen if seen < size else bit % (seen + 1)
            if place < size:
                slow[place] = sample
            seen += 1
    assert kept.tolist() == slow


def test_ring_keeps_the_latest_of_every_class() -> None:
    n_classes, size = 3, 7  # two slots a class, one left over
    classes = np.random.default_rng(0).choice(n_classes, (12, B), p=[0.6, 0.3, 0.1])
    queues = {label: deque(maxlen=2) for label in range(n_classes)}  # type: ignore[var-annotated]
    for sample, label in enumerate(classes.ravel().tolist()):
        queues[label].append(sample)
    (kept,) = fill(ring(size, n_classes), size, classes, 0, 1)
    for label, queue in queues.items():
        assert set(kept[2 * label : 2 * label + 2].tolist()) == set(queue)
    assert kept[6] == -1


STREAM = np.repeat(np.arange(3), 2 * B).reshape(-1, B)
"""8 samples of each of three classes, one class after the other."""


def test_class_balanced_gives_every_class_so_far_the_same_room() -> None:
    kept = history(class_balanced(6), 6, STREAM, 0, 50)
    for batch, room in enumerate(([4], [6], [3, 3], [3, 3], [2, 2, 2], [2, 2, 2])):
        for row in kept[:, batch].tolist():
            found = Counter(STREAM.ravel()[sample] for sample in row if sample >= 0)
            assert [found[label] for label in range(len(room))] == room
            assert len({sample for sample in row if sample >= 0}) == sum(room)


def test_class_balanced_leaves_room_that_a_class_cannot_fill_to_the_others() -> None:
    classes = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 2, 0]])
    for row in fill(class_balanced(7), 7, classes, 3, 50).tolist():
        assert Counter(classes.ravel()[sample] for sample in row) == {0: 5, 1: 1, 2: 1}


def test_class_balanced_keeps_every_sample_of_a_class_with_the_same_probability() -> None:
    n_seeds, size = 5000, 7  # 7 = 3 + 2 + 2: one class has a slot more, by chance
    kept = fill(class_balanced(size), size, STREAM, 4, n_seeds)
    for label in range(3):
        own = kept[(kept // 8) == label] - 8 * label
        counts = np.bincount(own, minlength=8)
        assert abs(len(own) / n_seeds - 7 / 3) < 0.05
        assert chi_square(counts, len(own) / 8) > UNLIKELY


@pytest.mark.parametrize(
    ("selection", "in_use"), [(reservoir(9), range(8)), (class_balanced(9), range(8)), (ring(9, 3), [0, 1, 2, 3, 6, 7, 8])]
)
def test_every_filled_slot_is_drawn_equally_often_and_no_other(selection: Selection, in_use: list[int]) -> None:
    state = selection.init()
    for classes in ([0, 0, 0, 0], [1, 2, 2, 2]):  # ring: class 1 has one sample in its three slots
        state, _ = selection.place(state, jnp.array(classes, jnp.int32), jax.random.bits(jax.random.key(0), (B,)))
    slots, filled = selection.draw(state, jax.random.bits(jax.random.key(1), (8000,)))
    assert filled == len(in_use)
    counts = np.bincount(np.asarray(slots), minlength=9)
    assert counts[[slot for slot in range(9) if slot not in in_use]].sum() == 0
    assert chi_square(counts[list(in_use)], 8000 / len(in_use)) > UNLIKELY


@pytest.mark.parametrize("selection", [reservoir(5), class_balanced(5), ring(5, 2)])
def test_an_empty_buffer_says_so(selection: Selection) -> None:
    slots, filled = selection.draw(selection.init(), jax.random.bits(jax.random.key(0), (6,)))
    assert filled == 0
    assert ((slots >= 0) & (slots < 5)).all()
