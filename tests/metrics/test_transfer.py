"""More metrics of the accuracy matrix, against loops written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clray.metrics.accuracy import summary
from clray.metrics.curves import area_matrix
from clray.metrics.transfer import (
    Course,
    anytime_accuracy,
    course_metrics,
    forgetting_slope,
    matrix_metrics,
    stability_ratio,
    zero_shot,
)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def slope(values: list[float]) -> float:
    """Of the least-squares line through (0, values[0]), (1, values[1]), ..."""
    return float(np.polyfit(range(len(values)), values, 1)[0])


def loops(a: np.ndarray, tasks: list[int]) -> dict[str, float]:
    """One repeat: a (T, E), accuracy on evaluated task tasks[j] after training on task i."""
    n = len(a)
    columns = list(enumerate(tasks))
    seen = [mean([a[i, j] for j, task in columns if task <= i]) for i in range(n) if min(tasks) <= i]
    return {
        "stability_ratio": mean([(a[-1, j] - a[t, j]) / (a[-1, j] + a[t, j]) for j, t in columns if t < n - 1]),
        "zero_shot": mean([a[i, j] for j, task in columns for i in range(task)]),
        "anytime_acc": mean(seen),
        "forgetting_slope": mean([slope([a[i, j] for i in range(t, n)]) for j, t in columns if t < n - 1]),
    }


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    n_tasks, n_repeats = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    tasks = draw(st.lists(st.integers(0, n_tasks - 1), min_size=1, max_size=n_tasks, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return 0.05 + 0.95 * rng.random((n_tasks, len(tasks), n_repeats)), tasks


FUNCTIONS = {
    "stability_ratio": stability_ratio,
    "zero_shot": zero_shot,
    "anytime_acc": anytime_accuracy,
    "forgetting_slope": forgetting_slope,
}


@given(matrices())
def test_every_metric_equals_its_loop(drawn: tuple[np.ndarray, list[int]]) -> None:
    matrix, tasks = drawn
    expected = [loops(matrix[..., repeat], tasks) for repeat in range(matrix.shape[2])]
    for name, function in FUNCTIONS.items():
        found = function(matrix, np.asarray(tasks))
        np.testing.assert_allclose(found, [repeat[name] for repeat in expected], rtol=1e-9, atol=1e-9, err_msg=name)


def test_three_tasks_by_hand() -> None:
    matrix = np.array([[0.9, 0.5, 0.4], [0.6, 0.8, 0.3], [0.3, 0.4, 1.0]])[..., None]
    tasks = np.arange(3)
    assert stability_ratio(matrix, tasks) == pytest.approx([((0.3 - 0.9) / 1.2 + (0.4 - 0.8) / 1.2) / 2])
    assert zero_shot(matrix, tasks) == pytest.approx([(0.5 + 0.4 + 0.3) / 3])
    assert anytime_accuracy(matrix, tasks) == pytest.approx([(0.9 + 0.7 + 1.7 / 3) / 3])
    assert forgetting_slope(matrix, tasks) == pytest.approx([(-0.3 - 0.4) / 2])


def test_keeping_everything_has_no_slope_and_losing_everything_a_ratio_of_minus_one() -> None:
    kept = np.full((4, 4, 1), 0.8)
    assert forgetting_slope(kept, np.arange(4)) == pytest.approx([0.0])
    assert stability_ratio(kept, np.arange(4)) == pytest.approx([0.0])
    lost = np.triu(np.full((4, 4), 0.8)).T[..., None].copy()
    lost[-1, :-1] = 0.0
    assert stability_ratio(lost, np.arange(4)) == pytest.approx([-1.0])


def test_one_task_has_no_transfer() -> None:
    matrix, tasks = np.array([[[0.7, 0.9]]]), np.array([0])
    for function in (stability_ratio, zero_shot, forgetting_slope):
        np.testing.assert_array_equal(function(matrix, tasks), [math.nan, math.nan])
    np.testing.assert_array_equal(anytime_accuracy(matrix, tasks), [0.7, 0.9])


@given(matrices())
def test_correcting_for_chance_moves_accuracies_and_scales_differences(drawn: tuple[np.ndarray, list[int]]) -> None:
    end, tasks = drawn
    n_tasks, n_evaluated, n_repeats = end.shape
    accuracy = np.random.default_rng(0).random((n_tasks, 2, n_repeats, n_evaluated))
    course = Course(accuracy, np.array([3, 6]), end, end[0], np.asarray(tasks), None)
    found = course_metrics(course, 0.5)
    for prefix, raw in (("corrected_", ""), ("corrected_area_", "area_")):
        for name in ("acc", "learning_acc", "anytime_acc", "zero_shot"):
            np.testing.assert_allclose(found[prefix + name], (found[raw + name] - 0.5) / 0.5, atol=1e-12)
        for name in ("forgetting", "bwt", "fwt", "forgetting_slope"):
            np.testing.assert_allclose(found[prefix + name], found[raw + name] / 0.5, atol=1e-12)


def test_metrics_of_a_course_hold_those_of_trials_parquet_and_of_areas() -> None:
    rng = np.random.default_rng(1)
    end, initial, tasks = rng.random((4, 3, 2)), rng.random((3, 2)), np.array([0, 2, 3])
    accuracy, steps = rng.random((4, 5, 2, 3)), np.arange(1, 6)
    found = course_metrics(Course(accuracy, steps, end, initial, tasks, None), 0.5)
    assert "expert_transfer" not in found
    for name, values in summary(end, initial, tasks).items():
        np.testing.assert_array_equal(found[name], values)
    for name, values in matrix_metrics(area_matrix(accuracy, steps, end, initial), initial, tasks).items():
        np.testing.assert_array_equal(found[f"area_{name}"], values)
