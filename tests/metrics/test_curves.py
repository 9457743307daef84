"""Metrics of the whole course of the accuracy, against loops over one repeat and one task at a time."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clray.metrics.curves import (
    area_matrix,
    chance_corrected,
    expert_transfer,
    largest_dip,
    learning_time,
    mean_over_tasks,
    with_starts,
)
from clray.metrics.transfer import Course, course_metrics


class Trial(NamedTuple):
    """One random trial."""

    accuracy: np.ndarray
    steps: np.ndarray
    end: np.ndarray
    initial: np.ndarray
    tasks: np.ndarray


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    n_tasks, n_logs, n_repeats = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    tasks = draw(st.lists(st.integers(0, n_tasks - 1), min_size=1, max_size=n_tasks, unique=True))
    every = draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (n_tasks, n_logs, n_repeats, len(tasks))
    steps = every * np.arange(1, n_logs + 1)
    return Trial(rng.random(shape), steps, rng.random((n_tasks, len(tasks), n_repeats)), rng.random(shape[:1:-1]), np.asarray(tasks))


def course_of(trial: Trial, task: int, column: int, repeat: int) -> list[tuple[float, float]]:
    """(step, accuracy) of one column while one task is trained, from step 0."""
    before = trial.initial[column, repeat] if task == 0 else trial.end[task - 1, column, repeat]
    logs = trial.accuracy[task, :, repeat, column]
    return [(0.0, before), *((float(step), value) for step, value in zip(trial.steps, logs, strict=True))]


def trapezoid(points: list[tuple[float, float]]) -> float:
    return sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in itertools.pairwise(points))


@given(trials())
def test_area_is_the_average_over_the_batches_of_a_task(trial: Trial) -> None:
    found = area_matrix(trial.accuracy, trial.steps, trial.end, trial.initial)
    assert found.shape == trial.end.shape
    for (task, column, repeat), value in np.ndenumerate(found):
        points = course_of(trial, task, column, repeat)
        assert value == pytest.approx(trapezoid(points) / trial.steps[-1])


def test_area_of_a_straight_line_is_its_middle() -> None:
    steps = np.array([10, 20])
    accuracy = np.array([0.6, 0.8]).reshape(1, 2, 1, 1)
    assert area_matrix(accuracy, steps, np.array([[[0.8]]]), np.array([[0.4]])) == pytest.approx(0.6)


@given(trials(), st.sampled_from([0.1, 0.5]))
def test_learning_time_is_the_participation_ratio_of_what_is_not_learned(trial: Trial, chance: float) -> None:
    found = learning_time(trial.accuracy, trial.steps, trial.end, trial.initial, trial.tasks, chance)
    for (column, repeat), value in np.ndenumerate(found):
        points = course_of(trial, int(trial.tasks[column]), column, repeat)
        unlearned = [(step, 1 - (accuracy - chance) / (1 - chance)) for step, accuracy in points]
        squares = [(step, u * u) for step, u in unlearned]
        assert value == pytest.approx(trapezoid(unlearned) ** 2 / trapezoid(squares))


def one_task(accuracies: list[float], every: int = 1) -> tuple[np.ndarray, ...]:
    """A single task whose accuracy begins with the first value."""
    logs = np.array(accuracies[1:])
    steps = every * np.arange(1, len(accuracies))
    return logs.reshape(1, -1, 1, 1), steps, logs[-1:].reshape(1, 1, 1), np.array([[accuracies[0]]]), np.array([0])


def test_learning_time_of_nothing_learned_is_the_whole_task() -> None:
    assert learning_time(*one_task([0.5] * 11, every=3), 0.5) == pytest.approx(30)


def test_learning_time_of_a_task_known_from_the_start_is_zero() -> None:
    np.testing.assert_array_equal(learning_time(*one_task([1.0, 1.0, 1.0]), 0.5), 0.0)


def test_learning_time_of_a_sudden_insight_is_its_time() -> None:
    course = [0.5] * 400 + [1.0] * 600
    assert learning_time(*one_task(course), 0.5) == pytest.approx(400, rel=0.01)


def test_learning_time_of_an_exponential_is_twice_its_time_constant() -> None:
    course = list(1 - 0.5 * np.exp(-np.arange(2000) / 50))
    assert learning_time(*one_task(course), 0.5) == pytest.approx(100, rel=0.01)


@given(trials())
def test_largest_dip_is_the_largest_fall_from_any_earlier_value(trial: Trial) -> None:
    found = largest_dip(trial.accuracy, trial.end, trial.tasks)
    for (column, repeat), value in np.ndenumerate(found):
        own = int(trial.tasks[column])
        course = [trial.end[own, column, repeat]]
        for task in range(own + 1, len(trial.end)):
            course += [*trial.accuracy[task, :, repeat, column], trial.end[task, column, repeat]]
        falls = [course[s] - course[t] for s in range(len(course)) for t in range(s, len(course))]
        if own == len(trial.end) - 1:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(max(falls))


def test_largest_dip_sees_what_is_made_good_by_the_end_of_the_task() -> None:
    accuracy = np.array([[0.9, 0.9], [0.4, 0.85]]).reshape(2, 2, 1, 1)
    end = np.array([0.9, 0.9]).reshape(2, 1, 1)
    assert largest_dip(accuracy, end, np.array([0])) == pytest.approx(0.5)


def test_expert_transfer_by_hand() -> None:
    accuracy = np.array([0.5, 0.7]).reshape(1, 2, 1, 1)  # mean 0.6
    expert = np.array([0.7, 0.9]).reshape(1, 2, 1)  # mean 0.8
    assert expert_transfer(accuracy, expert, np.array([0])) == pytest.approx((0.6 - 0.8) / (1 - 0.8))
    assert expert_transfer(expert[..., None], expert, np.array([0])) == pytest.approx(0.0)
    assert np.isnan(expert_transfer(accuracy, np.ones((1, 2, 1)), np.array([0]))).all()


@given(trials())
def test_expert_transfer_equals_its_loop(trial: Trial) -> None:
    expert = np.random.default_rng(0).random((len(trial.end), len(trial.steps), trial.end.shape[2])) * 0.9
    found = expert_transfer(trial.accuracy, expert, trial.tasks)
    for (column, repeat), value in np.ndenumerate(found):
        task = int(trial.tasks[column])
        own, alone = trial.accuracy[task, :, repeat, column].mean(), expert[task, :, repeat].mean()
        assert value == pytest.approx((own - alone) / (1 - alone))


@given(trials())
def test_correction_for_chance_scales_dips_and_leaves_transfer_as_it_is(trial: Trial) -> None:
    dip, corrected = (largest_dip(f(trial.accuracy), f(trial.end), trial.tasks) for f in (np.asarray, lambda a: chance_corrected(a, 0.2)))
    np.testing.assert_allclose(corrected, dip / 0.8, atol=1e-12)
    expert = np.random.default_rng(7).random(trial.accuracy.shape[:3]) * 0.9
    raw = expert_transfer(trial.accuracy, expert, trial.tasks)
    np.testing.assert_allclose(
        expert_transfer(chance_corrected(trial.accuracy, 0.2), chance_corrected(expert, 0.2), trial.tasks), raw, atol=1e-9
    )


def test_chance_corrected_is_zero_for_guessing_and_one_for_perfect() -> None:
    np.testing.assert_allclose(chance_corrected(np.array([0.1, 0.55, 1.0, 0.0]), 0.1), [0, 0.5, 1, -1 / 9])


def test_mean_over_tasks_leaves_out_tasks_without_a_value() -> None:
    values = np.array([[0.2, np.nan], [0.4, 0.6], [np.nan, np.nan]])
    np.testing.assert_allclose(mean_over_tasks(values), [0.3, 0.6])
    assert np.isnan(mean_over_tasks(np.full((2, 1), np.nan))).all()


def test_the_curve_of_a_task_begins_where_the_one_before_ended() -> None:
    rng = np.random.default_rng(0)
    accuracy, end, initial = rng.random((2, 3, 2, 2)), rng.random((2, 2, 2)), rng.random((2, 2))
    full = with_starts(accuracy, end, initial)
    np.testing.assert_array_equal(full[:, 1:], accuracy)
    np.testing.assert_array_equal(full[0, 0], initial.T)
    np.testing.assert_array_equal(full[1, 0], end[0].T)


def test_a_repeat_that_diverged_stays_visible_and_alone() -> None:
    rng = np.random.default_rng(3)
    accuracy, end, initial = rng.random((3, 2, 2, 3)), rng.random((3, 3, 2)), rng.random((3, 2))
    steps, tasks, expert = np.array([4, 8]), np.arange(3), rng.random((3, 2, 2)) * 0.9
    healthy = course_metrics(Course(accuracy.copy(), steps, end.copy(), initial, tasks, expert), 0.5)
    accuracy[1:, :, 1], end[1:, :, 1] = np.nan, np.nan
    found = course_metrics(Course(accuracy, steps, end, initial, tasks, expert), 0.5)
    for name, values in found.items():
        assert values[0] == pytest.approx(healthy[name][0]), name
    for name in ("acc", "learning_time", "largest_dip", "expert_transfer", "area_acc", "corrected_acc", "anytime_acc", "forgetting_slope"):
        assert math.isnan(found[name][1]), name


def test_guessing_is_zero_too_where_outputs_are_added_with_tasks() -> None:
    """Tasks of two classes, all seen so far to choose from: a guess is right in 1/2, 1/4 and 1/6."""
    chance = 1 / np.array([2.0, 4.0, 6.0])
    end = np.broadcast_to(chance[:, None, None], (3, 3, 1))
    accuracy = np.broadcast_to(chance[:, None, None, None], (3, 2, 1, 3))
    course = Course(accuracy, np.array([4, 8]), end, np.full((3, 1), 0.5), np.arange(3), None)
    found = course_metrics(course, chance)
    for name in ("corrected_acc", "corrected_learning_acc", "corrected_largest_dip", "corrected_forgetting"):
        assert found[name] == pytest.approx([0.0], abs=1e-12), name
    assert found["learning_time"] == pytest.approx([8.0], rel=0.02)  # of a task that is never learned: all of its batches
    alike = course_metrics(course, 0.25)
    assert {name: values.tolist() for name, values in course_metrics(course, np.full(3, 0.25)).items()} == {
        name: values.tolist() for name, values in alike.items()
    }
