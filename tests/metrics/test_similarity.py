"""Similarity of representations: against the textbook formulas, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes, subspace_angles
from scipy.stats import ortho_group

from clray.metrics import similarity as s


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two related (2, S, H) arrays, S = 8."""
    width = draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(0, 1, (2, 8, width))
    return x, x + draw(st.sampled_from([0.1, 1.0, 10.0])) * rng.normal(0, 1, x.shape)


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019: ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) for centred columns."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def plain_procrustes(x: np.ndarray, y: np.ndarray) -> float:
    """By the best rotation itself."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    rotation, _ = orthogonal_procrustes(x, y)
    return float(np.linalg.norm(x @ rotation - y))


def plain_cosine(x: np.ndarray, y: np.ndarray, n_classes: int) -> float:
    size = len(x) // n_classes
    cosines = []
    for label in range(n_classes):
        a, b = x[label * size : (label + 1) * size].mean(axis=0), y[label * size : (label + 1) * size].mean(axis=0)
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return float(np.mean(cosines))


def principal_components(x: np.ndarray, k: int) -> np.ndarray:
    return np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:k].T


@settings(deadline=None)
@given(pairs())
def test_every_measure_equals_its_textbook_form(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    both = s.similarities(x, y, n_classes=2, n_components=2)
    for index in range(2):
        a, b = x[index], y[index]
        assert both["cka"][index] == pytest.approx(plain_cka(a, b))
        assert s.linear_cka(x, y)[index] == pytest.approx(plain_cka(a, b))
        assert both["procrustes"][index] == pytest.approx(plain_procrustes(a, b), abs=1e-6)
        assert s.procrustes_distance(x, y)[index] == pytest.approx(plain_procrustes(a, b), abs=1e-6)
        assert both["class_cosine"][index] == pytest.approx(plain_cosine(a, b, 2))
        angles = np.sort(subspace_angles(principal_components(a, 2), principal_components(b, 2)))
        np.testing.assert_allclose(s.principal_angles(x, y, 2)[index], angles, atol=1e-6)
        assert both["principal_angle"][index] == pytest.approx(angles.mean(), abs=1e-6)


def plain_unbiased_hsic(a: np.ndarray, b: np.ndarray) -> float:
    """Song et al. 2012, equation 5, written out."""
    n = len(a)
    a, b = a.copy(), b.copy()
    np.fill_diagonal(a, 0)
    np.fill_diagonal(b, 0)
    ones = np.ones(n)
    trace = np.trace(a @ b)
    middle = (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
    return float((trace + middle - 2 / (n - 2) * (ones @ a @ b @ ones)) / (n * (n - 3)))


@settings(deadline=None)
@given(pairs())
def test_debiased_cka_equals_the_ratio_of_unbiased_hsic(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair[0][0], pair[1][0]
    grams = [(z - z.mean(axis=0)) @ (z - z.mean(axis=0)).T for z in (x, y)]
    across, within = plain_unbiased_hsic(*grams), [plain_unbiased_hsic(gram, gram) for gram in grams]
    if min(within) > 1e-6:
        assert s.linear_cka(x, y, debiased=True) == pytest.approx(across / np.sqrt(within[0] * within[1]))


def test_debiased_cka_of_unrelated_representations_is_about_zero_and_the_plain_one_is_not() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (2, 400, 20, 100))
    assert abs(s.linear_cka(x, y, debiased=True).mean()) < 0.01
    assert s.linear_cka(x, y).mean() > 0.5


def test_rotation_and_scale_change_nothing_but_the_subspace() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (10, 6))
    y = 3.0 * x @ ortho_group.rvs(6, random_state=2) + 5.0
    assert s.linear_cka(x, y) == pytest.approx(1.0)
    assert s.procrustes_distance(x, y) == pytest.approx(0.0, abs=1e-6)
    assert s.principal_angles(x, y, 1)[0] > 0.1


def test_equal_representations_are_at_no_distance() -> None:
    x = np.maximum(np.random.default_rng(2).normal(0, 1, (4, 10, 30)), 0)
    same = s.similarities(x, x, 2)
    np.testing.assert_allclose(same["cka"], 1.0)
    np.testing.assert_allclose(same["class_cosine"], 1.0)
    np.testing.assert_allclose(same["procrustes"], 0.0, atol=1e-6)
    np.testing.assert_allclose(same["principal_angle"], 0.0, atol=1e-6)


def test_orthogonal_subspaces_are_at_right_angles() -> None:
    x, y = np.zeros((2, 8, 6))
    x[:, :2], y[:, 3:5] = np.random.default_rng(3).normal(0, 1, (2, 8, 2))
    np.testing.assert_allclose(s.principal_angles(x, y, 2), np.pi / 2)


def test_fewer_dimensions_than_asked_for_have_no_angles() -> None:
    x = np.zeros((5, 8))
    x[:, 0] = np.arange(5)
    assert np.isnan(s.principal_angles(x, x, 3)).any()
    assert s.principal_angles(x[:2], x[:2], 3).shape == (3,)


def test_samples_that_coincide_and_repeats_that_diverged_have_no_similarity() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1, (3, 6, 5))
    healthy = s.similarities(x, x[::-1], 2)
    y = x[::-1].copy()
    y[0], y[1, 2, 2] = 1.0, np.nan
    found = s.similarities(x, y, 2)
    for name, values in found.items():
        assert values[2] == pytest.approx(healthy[name][2]), name
        assert np.isnan(values[1]), name
        assert np.isnan(values[0]) or name == "class_cosine", name
