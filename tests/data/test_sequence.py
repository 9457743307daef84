from __future__ import annotations

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clray.config import Sequence
from clray.data import sequence as module
from clray.data.sequence import draw_classes
from clray.errors import ConfigError

seeds = st.integers(0, 2**32 - 1)
repeats = st.lists(st.integers(0, 2000), min_size=1, max_size=4, unique=True)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[Sequence, int]:
    """A sequence and a number of classes it fits."""
    policy = draw(st.sampled_from(["disjoint", "reuse"]))
    n_classes = draw(st.integers(2, 24))
    per_task = draw(st.integers(2, n_classes))
    n_tasks = draw(st.integers(1, n_classes // per_task if policy == "disjoint" else 60))
    return Sequence(n_tasks=n_tasks, classes_per_task=per_task, policy=policy), n_classes


@given(sequences(), seeds, repeats)
def test_every_task_has_different_classes_below_k(case, seed, repeats):
    sequence, n_classes = case
    classes = draw_classes(sequence, n_classes, seed, repeats)
    assert classes.shape == (sequence.n_tasks, len(repeats), sequence.classes_per_task)
    assert classes.dtype == np.int32
    assert classes.min() >= 0
    assert classes.max() < n_classes
    assert all(len(set(row)) == len(row) for row in classes.reshape(-1, classes.shape[-1]).tolist())


@given(sequences(), seeds, repeats)
def test_repeat_alone_equals_its_slice(case, seed, repeats):
    sequence, n_classes = case
    together = draw_classes(sequence, n_classes, seed, repeats)
    for position, repeat in enumerate(repeats):
        np.testing.assert_array_equal(draw_classes(sequence, n_classes, seed, [repeat])[:, 0], together[:, position])


@given(sequences(), seeds)
def test_a_longer_sequence_begins_with_the_shorter_one(case, seed):
    sequence, n_classes = case
    shorter = sequence.model_copy(update={"n_tasks": max(1, sequence.n_tasks // 2)})
    np.testing.assert_array_equal(
        draw_classes(shorter, n_classes, seed, [3]), draw_classes(sequence, n_classes, seed, [3])[: shorter.n_tasks]
    )


@given(sequences(), seeds)
def test_disjoint_tasks_share_no_class(case, seed):
    sequence, n_classes = case
    if sequence.policy == "disjoint":
        used = draw_classes(sequence, n_classes, seed, [0]).ravel().tolist()
        assert len(set(used)) == len(used)


@pytest.mark.parametrize("listed_sets", [module.LISTED_SETS, 0], ids=["listed", "remembered"])
@given(n_classes=st.integers(2, 8), per_task=st.integers(2, 4), n_tasks=st.integers(1, 150), seed=seeds)
@settings(max_examples=40)
def test_reused_class_sets_recur_only_after_all_were_used(listed_sets, n_classes, per_task, n_tasks, seed):
    per_task = min(per_task, n_classes)
    sequence = Sequence(n_tasks=n_tasks, classes_per_task=per_task, policy="reuse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LISTED_SETS", listed_sets)
        sets = [frozenset(row) for row in draw_classes(sequence, n_classes, seed, [1])[:, 0].tolist()]
    n_sets = math.comb(n_classes, per_task)
    for start in range(0, n_tasks, n_sets):
        a_round = sets[start : start + n_sets]
        assert len(set(a_round)) == len(a_round)


@pytest.mark.parametrize("listed_sets", [module.LISTED_SETS, 0], ids=["listed", "remembered"])
def test_reuse_draws_every_ordered_set_equally_often(listed_sets, monkeypatch):
    monkeypatch.setattr(module, "LISTED_SETS", listed_sets)
    first = draw_classes(Sequence(n_tasks=1, policy="reuse"), 4, 0, range(6000))[0]
    counts = {pair: int((first == pair).all(axis=1).sum()) for pair in itertools.permutations(range(4), 2)}
    assert sum(counts.values()) == 6000
    assert max(abs(count - 500) for count in counts.values()) < 5 * math.sqrt(500)


def test_reuse_is_fast_and_small_where_class_sets_are_countless():
    sequence = Sequence(n_tasks=500, classes_per_task=10, policy="reuse")
    tracemalloc.start()
    start = time.perf_counter()
    classes = draw_classes(sequence, 100, 0, range(10))
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 3
    assert peak < 20e6
    for position in range(10):
        assert len({frozenset(row) for row in classes[:, position].tolist()}) == 500


def test_fixed_classes_are_those_listed_for_every_repeat():
    listed = ((0, 3), (3, 1), (2, 0))
    classes = draw_classes(Sequence(n_tasks=3, policy="fixed", classes=listed), 4, 7, [0, 5])
    np.testing.assert_array_equal(classes[:, 0], listed)
    np.testing.assert_array_equal(classes[:, 1], listed)


@pytest.mark.parametrize(
    ("wanted", "numbers", "seen"),
    [
        ({}, [[0, 1], [0, 1], [0, 1]], None),
        ({"scenario": "task", "policy": "reuse"}, [[0, 1], [2, 3], [4, 5]], None),
        ({"scenario": "class"}, [[0, 1], [2, 3], [4, 5]], (2, 4, 6)),
        ({"scenario": "class", "policy": "fixed", "classes": ((7, 1), (1, 4), (9, 7))}, [[0, 1], [1, 2], [3, 0]], (2, 3, 4)),
        ({"scenario": "class", "policy": "permuted"}, [[0, 1], [2, 3], [4, 5]], (2, 4, 6)),
    ],
    ids=["domain", "task", "class", "class, fixed", "class, permuted"],
)
def test_every_label_has_its_output(wanted, numbers, seen):
    sequence = Sequence(n_tasks=3, **wanted)
    np.testing.assert_array_equal(module.number_outputs(sequence), numbers)
    assert module.count_outputs(sequence) == 1 + np.max(numbers)
    assert seen is None or module.seen_outputs(sequence) == seen


@pytest.mark.parametrize("policy", ["permuted", "rotated"])
def test_transformed_tasks_have_all_classes_in_order(policy):
    classes = draw_classes(Sequence(n_tasks=3, classes_per_task=10, policy=policy), 10, 0, [0, 4])
    np.testing.assert_array_equal(classes, np.broadcast_to(np.arange(10), (3, 2, 10)))


def test_repeats_and_seeds_differ():
    sequence = Sequence(n_tasks=5)
    draws = [draw_classes(sequence, 100, seed, [repeat]).tobytes() for seed in range(3) for repeat in range(3)]
    assert len(set(draws)) == 9


@pytest.mark.parametrize(
    ("sequence", "says"),
    [
        (Sequence(n_tasks=6), "at most 5"),
        (Sequence(n_tasks=4, classes_per_task=3), "at most 3"),
        (Sequence(n_tasks=1, classes_per_task=11, policy="reuse"), "at most 10"),
        (Sequence(n_tasks=1, policy="fixed", classes=((0, 10),)), "classes 0 to 9"),
    ],
)
def test_impossible_sequences_are_refused_with_the_limit(sequence, says):
    with pytest.raises(ConfigError, match=says):
        draw_classes(sequence, 10, 0, [0])
