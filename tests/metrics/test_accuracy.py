"""Metrics of the accuracy matrix against loops written from the papers, one repeat at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clray.metrics.accuracy import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forgetting_from_first,
    forward_transfer,
    learning_accuracy,
    mean_and_sem,
    summary,
)

NAN = math.nan


def loops(a: np.ndarray, b: np.ndarray, tasks: list[int]) -> dict[str, float]:
    """One repeat, from the definitions.

    Args:
        a: (T, E), accuracy on evaluated task tasks[j] after training on task i.
        b: (E,), accuracy before any training.
    """
    last = len(a) - 1

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else NAN

    columns = list(enumerate(tasks))
    return {
        # Lopez-Paz & Ranzato 2017: ACC = 1/T sum_i R_{T,i}; BWT = 1/(T-1) sum_{i<T} R_{T,i} - R_{i,i};
        # FWT = 1/(T-1) sum_{i>1} R_{i-1,i} - b_i
        "acc": mean([a[last, j] for j, _ in columns]),
        "bwt": mean([a[last, j] - a[task, j] for j, task in columns if task < last]),
        "fwt": mean([a[task - 1, j] - b[j] for j, task in columns if task > 0]),
        # Chaudhry et al. 2018, equation 3: f_j = max_{l in 1..k-1} a_{l,j} - a_{k,j}, averaged over j < k
        "forgetting": mean([max(a[i, j] for i in range(last)) - a[last, j] for j, task in columns if task < last]),
        "forgetting_from_first": mean([a[task, j] - a[last, j] for j, task in columns if task < last]),
        # Riemer et al. 2019: accuracy on each task directly after learning it
        "learning_acc": mean([a[task, j] for j, task in columns]),
    }


@st.composite
def trials(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A matrix (T, E, R), a first row (E, R), and the evaluated tasks in any order."""
    n_tasks, n_repeats = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    tasks = draw(st.lists(st.integers(0, n_tasks - 1), min_size=1, max_size=n_tasks, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random((n_tasks, len(tasks), n_repeats)), rng.random((len(tasks), n_repeats)), tasks


@given(trials())
def test_every_metric_equals_its_loop(trial: tuple[np.ndarray, np.ndarray, list[int]]) -> None:
    matrix, initial, tasks = trial
    found = summary(matrix, initial, np.asarray(tasks))
    expected = [loops(matrix[..., repeat], initial[..., repeat], tasks) for repeat in range(matrix.shape[2])]
    assert sorted(found) == sorted(expected[0])
    for name, values in found.items():
        np.testing.assert_allclose(values, [repeat[name] for repeat in expected], rtol=1e-12, atol=1e-12, err_msg=name)


def test_three_tasks_by_hand() -> None:
    matrix = np.array([[0.9, 0.5, 0.4], [0.6, 0.8, 0.3], [0.7, 0.4, 1.0]])[..., None]
    initial = np.array([0.5, 0.45, 0.55])[:, None]
    tasks = np.arange(3)
    assert average_accuracy(matrix) == pytest.approx([(0.7 + 0.4 + 1.0) / 3])
    assert learning_accuracy(matrix, tasks) == pytest.approx([(0.9 + 0.8 + 1.0) / 3])
    assert forgetting(matrix, tasks) == pytest.approx([((0.9 - 0.7) + (0.8 - 0.4)) / 2])
    assert backward_transfer(matrix, tasks) == pytest.approx([((0.7 - 0.9) + (0.4 - 0.8)) / 2])
    assert forward_transfer(matrix, initial, tasks) == pytest.approx([((0.5 - 0.45) + (0.3 - 0.55)) / 2])


def test_forgetting_counts_from_the_best_and_backward_transfer_from_the_own_end() -> None:
    matrix = np.array([[0.6, 0.95], [0.8, 0.7], [0.5, 0.5]])[..., None]  # task 0 peaks after task 1, task 1 before its own
    tasks = np.arange(2)
    assert forgetting(matrix, tasks) == pytest.approx([((0.8 - 0.5) + (0.95 - 0.5)) / 2])
    assert forgetting_from_first(matrix, tasks) == pytest.approx([((0.6 - 0.5) + (0.7 - 0.5)) / 2])


def test_one_task_has_no_transfer_and_no_forgetting() -> None:
    found = summary(np.array([[[0.75, 0.5]]]), np.array([[0.5, 0.5]]), np.array([0]))
    np.testing.assert_array_equal(found["acc"], [0.75, 0.5])
    np.testing.assert_array_equal(found["learning_acc"], [0.75, 0.5])
    for name in ("forgetting", "forgetting_from_first", "bwt", "fwt"):
        np.testing.assert_array_equal(found[name], [NAN, NAN], err_msg=name)


def test_evaluating_the_last_task_alone_leaves_nothing_to_forget() -> None:
    found = summary(np.array([[[0.4]], [[0.9]]]), np.array([[0.3]]), np.array([1]))
    assert np.isnan(found["forgetting"]).all()
    assert np.isnan(found["bwt"]).all()
    assert found["fwt"] == pytest.approx([0.1])
    assert found["learning_acc"] == pytest.approx([0.9])


def test_evaluating_the_first_task_alone_leaves_nothing_to_transfer_forward() -> None:
    found = summary(np.array([[[0.9]], [[0.4]]]), np.array([[0.3]]), np.array([0]))
    assert np.isnan(found["fwt"]).all()
    assert found["forgetting"] == pytest.approx([0.5])


def test_the_order_of_evaluated_tasks_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    matrix, initial, tasks = rng.random((5, 3, 2)), rng.random((3, 2)), np.array([0, 2, 4])
    turned = [2, 0, 1]
    straight, shuffled = summary(matrix, initial, tasks), summary(matrix[:, turned], initial[turned], tasks[turned])
    for name, values in straight.items():
        np.testing.assert_allclose(values, shuffled[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_repeat_that_diverged_stays_visible_and_alone(after: int) -> None:
    rng = np.random.default_rng(1)
    matrix, initial = rng.random((3, 3, 2)), rng.random((3, 2))
    healthy = summary(matrix.copy(), initial, np.arange(3))
    matrix[after:, :, 1] = NAN
    found = summary(matrix, initial, np.arange(3))
    for name, values in found.items():
        assert values[0] == healthy[name][0], name
    for name in ("acc", "forgetting", "forgetting_from_first", "bwt", "learning_acc"):
        assert math.isnan(found[name][1]), name


def test_metrics_leave_their_input_as_it_was() -> None:
    rng = np.random.default_rng(2)
    matrix, initial, tasks = rng.random((3, 3, 2)), rng.random((3, 2)), np.arange(3)
    before = matrix.copy(), initial.copy(), tasks.copy()
    summary(matrix, initial, tasks)
    for now, then in zip((matrix, initial, tasks), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_mean_and_standard_error_by_hand() -> None:
    mean, sem = mean_and_sem(np.array([0.5, 0.7, 0.9]))
    assert mean == pytest.approx(0.7)
    assert sem == pytest.approx(math.sqrt((0.04 + 0.0 + 0.04) / 2) / math.sqrt(3))


def test_mean_and_standard_error_leave_nan_out() -> None:
    assert mean_and_sem(np.array([0.5, NAN, 0.7, 0.9])) == mean_and_sem(np.array([0.5, 0.7, 0.9]))


def test_one_value_has_a_mean_and_no_standard_error() -> None:
    mean, sem = mean_and_sem(np.array([NAN, 0.25]))
    assert mean == 0.25
    assert math.isnan(sem)


def test_no_value_has_neither() -> None:
    assert all(math.isnan(value) for value in mean_and_sem(np.array([NAN, NAN])))
