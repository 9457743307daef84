"""What is true of every selection: sizes, balance, no sample twice, the same again for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from clray.plugins import names, options_class
from clray.selection.base import Selecting, TaskView, set_size
from tests.selection.views import made_up_view

N, C = 90, 3
FRACTIONS = (0.01, 0.1, 0.3, 0.7)
DRAWS = 3
VARIANTS = [(name, {}) for name in names("selections")] + [
    ("kmeans", {"variant": "streaming", "on": "pixels"}),
    ("kmeans", {"num_centroids": 20}),
    ("gss", {"balanced": True, "batch": 1}),
    ("gss", {"gradients": "head", "batch": 2}),
    ("lambda", {"balanced": True}),
]


@pytest.fixture(scope="module")
def view() -> TaskView:
    return made_up_view(N, C, seed=0)


def selection(name: str, options: dict[str, object]) -> Selecting:
    made = options_class("selections", name).model_validate({"name": name, **options})
    assert isinstance(made, Selecting)
    return made


def drawn(method: Selecting, view: TaskView, seed: int = 0) -> tuple[list[int], list[list[np.ndarray]]]:
    sizes = [set_size(fraction, N, C, method.is_balanced) for fraction in FRACTIONS]
    return sizes, method.select(view, sizes, DRAWS, lambda draw, size: np.random.default_rng([seed, draw, size]))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_sets_have_their_sizes_and_no_sample_twice(view: TaskView, name: str, options: dict[str, object]) -> None:
    sizes, sets = drawn(selection(name, options), view)
    assert len(sets) == DRAWS
    for of_draw in sets:
        assert [len(rows) for rows in of_draw] == sizes
        for rows in of_draw:
            assert len(set(rows.tolist())) == len(rows)
            assert rows.min() >= 0
            assert rows.max() < N


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_balanced_sets_have_equally_many_of_each_class(view: TaskView, name: str, options: dict[str, object]) -> None:
    method = selection(name, options)
    for rows in (rows for of_draw in drawn(method, view)[1] for rows in of_draw):
        counts = np.bincount(view.labels[rows], minlength=C)
        if method.is_balanced:
            assert len(set(counts.tolist())) == 1
            assert counts.min() >= 1


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_the_same_seed_gives_the_same_sets(view: TaskView, name: str, options: dict[str, object]) -> None:
    method = selection(name, options)
    _, first = drawn(method, view)
    _, again = drawn(method, made_up_view(N, C, seed=0))
    _, other = drawn(method, view, seed=1)
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    same_as_other = all(np.array_equal(x, y) for a, b in zip(first, other, strict=True) for x, y in zip(a, b, strict=True))
    assert same_as_other == method.deterministic


def test_a_fraction_is_rounded_to_samples_and_a_balanced_one_to_samples_of_each_class() -> None:
    assert set_size(0.001, 90, 3, balanced=False) == 1
    assert set_size(0.001, 90, 3, balanced=True) == 3
    assert set_size(0.25, 90, 3, balanced=False) == 23
    assert set_size(0.25, 90, 3, balanced=True) == 24
    assert set_size(1.0, 91, 3, balanced=True) == 91
