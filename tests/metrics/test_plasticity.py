"""Measures of units in use and of weights, against loops and cases that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clray.metrics import plasticity as p


@st.composite
def activations(draw: st.DrawFn) -> np.ndarray:
    """(2, 3, n, H), ReLU-like, some units silent."""
    n, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    hidden = np.maximum(rng.normal(0, 1, (2, 3, n, width)), 0)
    hidden[..., rng.random(width) < 0.3] = 0.0
    return hidden


def loops(h: np.ndarray) -> dict[str, float]:
    """One (n, H) matrix."""
    n, width = h.shape
    activity = [sum(abs(h[i, k]) for i in range(n)) / n for k in range(width)]
    average = sum(activity) / width
    values = np.linalg.svd(h, compute_uv=False)
    share = values[values > 1e-9] / values.sum() if values.sum() > 0 else np.array([])
    return {
        "dormant_ratio": sum(a <= 0.025 * average for a in activity) / width,
        "active_fraction": sum(h[i, k] > 0 for i in range(n) for k in range(width)) / (n * width),
        "stable_rank": (h**2).sum() / values[0] ** 2 if values[0] > 0 else np.nan,
        "effective_rank": np.exp(-sum(s * np.log(s) for s in share)) if len(share) else np.nan,
        "feature_norm": sum(np.sqrt(sum(h[i, k] ** 2 for k in range(width))) for i in range(n)) / n,
        "feature_variance": sum(sum((h[i, k] - h[:, k].mean()) ** 2 for i in range(n)) / n for k in range(width)) / width,
    }


@settings(deadline=None)
@given(activations())
def test_every_measure_equals_its_loop(hidden: np.ndarray) -> None:
    expected = [[loops(hidden[i, j]) for j in range(3)] for i in range(2)]
    for name in expected[0][0]:
        wanted = [[one[name] for one in row] for row in expected]
        # Singular values come from Gram matrices: what should be 0 is about 1e-7 of the largest.
        np.testing.assert_allclose(getattr(p, name)(hidden), wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_ranks_of_orthogonal_directions_are_their_number() -> None:
    hidden = np.zeros((5, 8))
    hidden[np.arange(5), np.arange(5)] = 3.0
    assert p.stable_rank(hidden) == pytest.approx(5)
    assert p.effective_rank(hidden) == pytest.approx(5)


def test_ranks_of_one_direction_are_one() -> None:
    hidden = np.outer(np.arange(1, 6), np.ones(8))
    assert p.stable_rank(hidden) == pytest.approx(1)
    assert p.effective_rank(hidden) == pytest.approx(1, abs=1e-5)


def test_a_silent_layer_is_all_dormant_and_has_no_rank() -> None:
    hidden = np.zeros((4, 6))
    assert p.dormant_ratio(hidden) == 1.0
    assert p.active_fraction(hidden) == 0.0
    assert np.isnan(p.stable_rank(hidden))
    assert np.isnan(p.effective_rank(hidden))


def test_dormant_is_relative_to_the_average_unit() -> None:
    hidden = np.tile([1.0, 1.0, 1.0, 0.001], (3, 1))
    assert p.dormant_ratio(hidden) == pytest.approx(0.25)
    assert p.dormant_ratio(1000 * hidden) == pytest.approx(0.25)
    assert p.dormant_ratio(hidden, threshold=0.0) == 0.0


@pytest.mark.parametrize(
    "measure", [p.dormant_ratio, p.active_fraction, p.stable_rank, p.effective_rank, p.feature_norm, p.feature_variance]
)
def test_a_repeat_that_diverged_stays_visible_and_alone(measure: object) -> None:
    hidden = np.random.default_rng(0).random((2, 5, 4))
    healthy = measure(hidden)  # type: ignore[operator]
    hidden[1, 2, 3] = np.nan
    found = measure(hidden)  # type: ignore[operator]
    assert found[0] == healthy[0]
    assert np.isnan(found[1])


def test_weights_by_hand() -> None:
    weights = {"a.kernel": np.array([[[3.0, -4.0]], [[0.0, 2.0]]]), "a.bias": np.array([[0.0], [-2.0]])}  # two repeats
    start = {"a.kernel": np.zeros((2, 1, 2)), "a.bias": np.array([[12.0], [-2.0]])}
    np.testing.assert_allclose(p.weight_magnitude(weights), [7 / 3, 4 / 3])
    np.testing.assert_allclose(p.weight_norm(weights["a.kernel"]), [5.0, 2.0])
    np.testing.assert_allclose(p.weight_distance(weights, start), [13.0, 2.0])
    np.testing.assert_array_equal(p.weight_distance(weights, weights), [0.0, 0.0])


def test_small_movements_of_large_weights_are_not_rounded_away() -> None:
    before = {"w": np.full((1, 10), 1000.0, np.float32)}
    after = {"w": before["w"] + np.float32(2**-10)}
    assert p.weight_distance(after, before) == pytest.approx(np.sqrt(10) * 2**-10)
