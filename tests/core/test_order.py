"""The order in which samples are visited: permutations, epoch by epoch, of their own for every seed, repeat and task."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clray.data.order import batch_order, task_order

N, B = 21, 4  # 5 batches an epoch, one sample left over


def epochs(order: np.ndarray) -> list[list[int]]:
    """The samples of each whole epoch."""
    per_epoch = N // B
    return [order[i : i + per_epoch].ravel().tolist() for i in range(0, len(order), per_epoch)]


@given(st.integers(1, 40), st.data(), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_every_epoch_visits_different_samples_and_leaves_less_than_a_batch(n: int, data: st.DataObject, total: int, seed: int) -> None:
    size = data.draw(st.integers(1, n))
    order = batch_order(seed, 3, 2, n, size, total)
    assert (order.shape, order.dtype) == ((total, size), np.int32)
    per_epoch = n // size
    for start in range(0, total, per_epoch):
        visited = order[start : start + per_epoch].ravel()
        assert len(set(visited.tolist())) == len(visited)
        assert visited.min() >= 0
        assert visited.max() < n


def test_batches_that_fill_the_epoch_visit_every_sample_once() -> None:
    order = batch_order(0, 0, 0, 20, 4, 15)
    assert [sorted(order[i : i + 5].ravel().tolist()) for i in (0, 5, 10)] == [list(range(20))] * 3


def test_the_sample_left_over_changes_so_all_are_used_over_epochs() -> None:
    left_over = [set(range(N)) - set(visited) for visited in epochs(batch_order(0, 0, 0, N, B, 100))]
    assert all(len(left) == 1 for left in left_over)
    assert len(set.union(*left_over)) > 5


def test_every_epoch_seed_repeat_and_task_has_an_order_of_its_own() -> None:
    drawn = [
        tuple(visited)
        for seed in (0, 1)
        for repeat in (0, 1, 2)
        for task in (0, 1, 2)
        for visited in epochs(batch_order(seed, repeat, task, N, B, 10))
    ]
    assert len(set(drawn)) == len(drawn) == 2 * 3 * 3 * 2


def test_the_first_batches_of_a_longer_training_are_those_of_a_shorter_one() -> None:
    np.testing.assert_array_equal(batch_order(0, 1, 2, N, B, 23)[:7], batch_order(0, 1, 2, N, B, 7))


def test_a_repeat_has_its_order_whatever_repeats_run_beside_it() -> None:
    together = task_order(5, (0, 3, 1), 2, N, B, 8)
    assert together.shape == (8, 3, B)
    for column, repeat in enumerate((0, 3, 1)):
        np.testing.assert_array_equal(together[:, column], batch_order(5, repeat, 2, N, B, 8))


@pytest.mark.parametrize("position", [0, 1, 2, 3, 20])
def test_every_sample_is_as_likely_at_every_position(position: int) -> None:
    counts = np.bincount(batch_order(7, 0, 0, N, 1, 4200 * N).reshape(4200, N)[:, position], minlength=N)
    # 4200 epochs: 200 expected, deviation sqrt(200 * 20/21) = 13.8; 21 samples stay within 5 deviations.
    assert np.abs(counts - 200).max() < 70
