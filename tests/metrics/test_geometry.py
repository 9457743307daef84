"""Geometry of class manifolds on clouds and spheres whose capacity is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.optimize import linprog, nnls
from scipy.special import gamma

from clray.metrics.geometry import is_available, joint_capacity, least_distance, manifold_geometry, solve, span_coordinates

pytestmark = pytest.mark.skipif(not is_available(), reason="needs quadprog: pip install 'clray[geometry]'")


def sphere(dimension: int, radius: float, n_points: int) -> np.ndarray:
    """Points spread over a sphere around (1, 0, ..., 0), at right angles to the first axis: (n_points, 1 + dimension)."""
    if dimension == 1:
        surface = np.array([[-1.0], [1.0]])
    elif dimension == 2:
        angle = np.linspace(0, 2 * np.pi, n_points, endpoint=False)
        surface = np.column_stack([np.cos(angle), np.sin(angle)])
    else:
        surface = np.random.default_rng(0).normal(0, 1, (n_points, dimension))
        surface /= np.linalg.norm(surface, axis=1, keepdims=True)
    return np.column_stack([np.ones(len(surface)), radius * surface])


def ball_capacity(dimension: int, radius: float) -> float:
    """Capacity of a ball, margin 0, from its closed form (Chung, Lee & Sompolinsky 2016, arXiv 1512.01834, equation 6)."""

    def density(t: float, t0: float) -> float:
        chi = 2 ** (1 - dimension / 2) / gamma(dimension / 2) * t ** (dimension - 1) * np.exp(-(t**2) / 2)
        return float(chi * np.exp(-(t0**2) / 2) / np.sqrt(2 * np.pi))

    touching = dblquad(
        lambda t0, t: density(t, t0) * (radius * t - t0) ** 2 / (1 + radius**2), 0, 9, lambda t: -t / radius, lambda t: radius * t
    )
    inside = dblquad(lambda t0, t: density(t, t0) * (t0**2 + t**2), 0, 9, lambda t: -12, lambda t: -t / radius)
    return 1.0 / (touching[0] + inside[0])


def antipodal(points: np.ndarray) -> list[np.ndarray]:
    """The manifold and its mirror image, so that the mean of the centroids is the origin."""
    return [points, -points]


def test_points_have_capacity_two() -> None:
    cloud = np.array([[1.0, 0.0, 0.0]]) + 1e-5 * np.random.default_rng(0).normal(0, 1, (8, 3))
    found = manifold_geometry(antipodal(cloud), n_directions=20000)
    assert found.capacity == pytest.approx(2.0, rel=0.06)
    assert found.radius == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(("dimension", "radius"), [(1, 0.5), (2, 0.3), (2, 1.0), (3, 1.0)])
def test_spheres_have_the_capacity_of_their_closed_form(dimension: int, radius: float) -> None:
    found = manifold_geometry(antipodal(sphere(dimension, radius, 32 if dimension == 2 else 150)), n_directions=1500)
    assert found.capacity == pytest.approx(ball_capacity(dimension, radius), rel=0.08)


@pytest.mark.parametrize(("dimension", "radius"), [(2, 0.5), (3, 1.0)])
def test_anchor_points_of_a_sphere_lie_on_it(dimension: int, radius: float) -> None:
    """Small enough that anchors are never inside: they are at ``radius``, and t is aligned with them, so dimension is E|t|^2."""
    points = sphere(dimension, 0.01, 32 if dimension == 2 else 150)
    found = manifold_geometry(antipodal(points), n_directions=2000)
    assert found.radius == pytest.approx(0.01, rel=0.05)
    assert found.dimension == pytest.approx(dimension, rel=0.1)
    larger = manifold_geometry(antipodal(sphere(dimension, radius, 60)), n_directions=500)
    assert (larger.radius <= radius * 1.01).all()


def test_every_solution_is_that_of_non_negative_least_squares() -> None:
    """With margin 0, min |V - T|^2 over the cone {V : V.s >= 0} is the squared distance of T to it: |sum of lambda s|^2."""
    rng = np.random.default_rng(1)
    points, directions = rng.normal(0.4, 1, (9, 4)), rng.normal(0, 1, (200, 4))
    needed, anchors = solve(points, directions, 0.0)
    for index, direction in enumerate(directions):
        weights, _ = nnls(points.T, -direction)
        moved = weights @ points
        assert needed[index] == pytest.approx(moved @ moved, abs=1e-8)
        if needed[index] > 1e-6:
            np.testing.assert_allclose(anchors[index], moved / moved[0], rtol=1e-5, atol=1e-6)
        else:
            nearest = points[(points @ direction).argmin()]
            np.testing.assert_allclose(anchors[index], nearest / nearest[0])


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_both_solvers_agree(margin: float) -> None:
    rng = np.random.default_rng(8)
    points = np.array([1.5, 0, 0, 0]) + rng.normal(0, 0.5, (9, 4))
    directions = rng.normal(0, 1, (100, 4))
    needed, _ = solve(points, directions, margin)
    for wanted, direction in zip(needed, directions, strict=True):
        if wanted > 0:
            weights = least_distance(points, direction, margin)
            assert weights is not None
            assert ((weights @ points) ** 2).sum() == pytest.approx(wanted)
            assert (points @ (direction + weights @ points)).min() >= margin - 1e-9


def test_a_margin_costs_capacity_and_one_that_cannot_be_kept_costs_all() -> None:
    cloud = np.array([1, 0, 0, 0]) + np.random.default_rng(2).normal(0, 0.3, (10, 4))
    free, tight = (manifold_geometry(antipodal(cloud), 400, margin).capacity[0] for margin in (0.0, 0.5))
    assert tight < free
    around = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert np.isinf(solve(around, np.array([[0.3, 0.2]]), 1.0)[0]).all()


def separable(points: np.ndarray, labels: np.ndarray) -> bool:
    """Whether one hyperplane through the origin has each manifold (P, M, N) on its label's side."""
    signed = (labels[:, None, None] * points).reshape(-1, points.shape[-1])
    done = linprog(np.zeros(points.shape[-1]), -signed, -np.ones(len(signed)), bounds=(None, None), method="highs")
    return bool(done.status == 0)


def test_capacity_is_where_random_labels_stop_being_separable() -> None:
    """P random manifolds in N = P / capacity dimensions: separable above, not separable below."""
    rng = np.random.default_rng(3)
    n_manifolds, dimension, radius = 60, 2, 0.6
    shape = radius * sphere(dimension, 1.0, 12)[:, 1:]
    capacity = ball_capacity(dimension, radius)

    def fraction(n_units: int) -> float:
        done = []
        for _ in range(6):
            axes = rng.normal(0, 1 / np.sqrt(n_units), (n_manifolds, dimension + 1, n_units))
            points = axes[:, :1] + np.einsum("md,pdn->pmn", shape, axes[:, 1:])
            done.append(separable(points, rng.choice([-1, 1], n_manifolds)))
        return float(np.mean(done))

    assert fraction(round(1.3 * n_manifolds / capacity)) == 1.0
    assert fraction(round(0.75 * n_manifolds / capacity)) == 0.0
    found = manifold_geometry(antipodal(sphere(dimension, radius, 12)), n_directions=1500).capacity[0]
    assert found == pytest.approx(capacity, rel=0.1)


def test_coordinates_keep_inner_products() -> None:
    cloud = np.random.default_rng(4).normal(0.5, 1, (6, 20))
    coordinates = span_coordinates(cloud)
    assert coordinates is not None
    length = np.linalg.norm(cloud.mean(axis=0))
    np.testing.assert_allclose(coordinates @ coordinates.T * length**2, cloud @ cloud.T, atol=1e-9)
    np.testing.assert_allclose(coordinates.mean(axis=0), [1, *np.zeros(coordinates.shape[1] - 1)], atol=1e-12)


def test_scale_and_rotation_of_everything_change_nothing() -> None:
    rng = np.random.default_rng(5)
    clouds = list(rng.normal(0, 1, (4, 6, 10)))
    rotation = np.linalg.qr(rng.normal(0, 1, (10, 10)))[0]
    straight, turned = manifold_geometry(clouds, 300), manifold_geometry([7 * cloud @ rotation for cloud in clouds], 300)
    # The basis of a span is free up to signs, so the directions differ: equal within their sampling error only.
    for name, a, b in zip(straight._fields, straight, turned, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.25, err_msg=name)


def test_larger_clouds_have_less_capacity() -> None:
    rng = np.random.default_rng(6)
    noise = rng.normal(0, 1, (10, 30))
    capacities = [manifold_geometry(antipodal(np.eye(30)[0] + scale * noise), n_directions=300).capacity[0] for scale in (0.01, 0.05, 0.2)]
    assert all(after < before for before, after in itertools.pairwise(capacities))


def test_a_manifold_at_the_centre_or_with_nan_has_no_geometry() -> None:
    rng = np.random.default_rng(7)
    broken = rng.normal(0, 1, (5, 4))
    broken[2, 2] = np.nan
    assert np.isnan(manifold_geometry([broken, rng.normal(0, 1, (5, 4))], 10).capacity).all()  # the mean of the centroids is NaN too
    assert span_coordinates(np.array([[1.0, 0.0], [-1.0, 0.0]])) is None


def test_joint_capacity_is_the_harmonic_mean() -> None:
    assert joint_capacity(np.array([1.0, 0.5])) == pytest.approx(2 / 3)
