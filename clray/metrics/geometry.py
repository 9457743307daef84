"""Geometry of class manifolds: capacity, radius and dimension of the clouds of points that classes form in unit space.

The mean-field theory of Chung, Lee & Sompolinsky 2018 (Phys. Rev. X 8, 031003; arXiv 1710.06487). For a manifold with points
s in the D + 1 dimensions that it spans and Gaussian directions T in the same space,

    F(T) = min_V { |V - T|^2 : V . s >= margin for all s },    capacity alpha = 1 / E[F(T)].

V - T is a sum of points with non-negative weights; scaled to first coordinate 1, it is the anchor point s~(T). With
coordinates in which the centroid is at distance 1 along the first axis, radius^2 = E|s~_perp|^2 and
dimension = E[(t . s~_perp / |s~_perp|)^2], where perp leaves the first axis out and t is T without it. alpha is the number of
manifolds per unit up to which random labels of whole manifolds can be separated by a hyperplane through the origin: 2 for
points, less for larger manifolds.

Where we differ from the code that goes with Cohen et al. 2020: correlations between centroids are not removed, and coordinates
are taken in the span of the points themselves, so that what a manifold has in common with its centroid's direction is kept.
The quadratic programs are solved by quadprog (the extra ``geometry``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clray.metrics.accuracy import Floats

SPAN_TOLERANCE = 1e-7


class ManifoldGeometry(NamedTuple):
    """Of P manifolds."""

    capacity: Floats  # [P] manifolds per unit
    radius: Floats  # [P] relative to the distance of the centroid from the mean of all centroids
    dimension: Floats  # [P]


def is_available() -> bool:
    """Whether the solver is installed."""
    return importlib.util.find_spec("quadprog") is not None


def manifold_geometry(manifolds: Sequence[Floats], n_directions: int = 200, margin: float = 0.0, seed: int = 0) -> ManifoldGeometry:
    """Capacity, radius and dimension of each of P manifolds.

    Args:
        manifolds: P arrays (points, H).
        n_directions: Gaussian directions a manifold; the standard error of 1/capacity falls with its root.
        margin: kappa.
        seed: of the directions.

    Returns:
        NaN for manifolds with NaN, and where the centroid coincides with the mean of all centroids.
    """
    points = [np.asarray(manifold, np.float64) for manifold in manifolds]
    origin = np.mean([cloud.mean(axis=0) for cloud in points], axis=0)
    rng = np.random.default_rng(seed)
    return ManifoldGeometry(*np.array([_one(cloud - origin, n_directions, margin, rng) for cloud in points]).T)


def joint_capacity(capacities: Floats) -> float:
    """Capacity of several manifolds together: the harmonic mean, as each takes its share 1/alpha of the dimensions."""
    return float(1.0 / np.mean(1.0 / np.asarray(capacities)))


def span_coordinates(cloud: Floats) -> Floats | None:
    """Points (n, D + 1) in an orthonormal basis of their span whose first axis is the centroid's, which is at distance 1.

    None where the centroid is at the origin, or a point is NaN.
    """
    centroid = cloud.mean(axis=0)
    length = np.linalg.norm(centroid)
    if not np.isfinite(cloud).all() or length <= SPAN_TOLERANCE * np.abs(cloud).max():
        return None
    along = cloud @ (centroid / length)
    rest = cloud - np.outer(along, centroid / length)
    left, values, _ = np.linalg.svd(rest, full_matrices=False)
    kept = values > SPAN_TOLERANCE * max(values.max(initial=0.0), length)
    return np.column_stack([along, left[:, kept] * values[kept]]) / length


def _one(cloud: Floats, n_directions: int, margin: float, rng: np.random.Generator) -> tuple[float, float, float]:
    coordinates = span_coordinates(cloud)
    if coordinates is None:
        return (np.nan, np.nan, np.nan)
    directions = rng.standard_normal((n_directions, coordinates.shape[1]))
    needed, anchors = solve(coordinates, directions, margin)
    mean_needed = needed.mean()
    capacity = 1.0 / mean_needed if mean_needed > 0 else np.inf
    perpendicular = anchors[:, 1:]
    lengths = np.linalg.norm(perpendicular, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        aligned = np.where(lengths > 0, (directions[:, 1:] * perpendicular).sum(axis=1) / lengths, 0.0)
    return capacity, float(np.sqrt((lengths**2).mean())), float((aligned**2).mean())


def solve(points: Floats, directions: Floats, margin: float) -> tuple[Floats, Floats]:
    """F(T) and the anchor point for each direction T.

    Args:
        points: (n, D + 1).
        directions: (m, D + 1).

    Returns:
        (m,) and (m, D + 1), anchors with first coordinate 1. Where T itself fulfils all constraints the anchor is the point
        that comes nearest to breaking one. Where nothing fulfils them (a margin, and manifolds around the origin) F is
        infinite.
    """
    import quadprog

    identity, constraints = np.eye(points.shape[1]), np.ascontiguousarray(points.T)
    bounds = np.full(len(points), float(margin))
    needed, anchors = np.zeros(len(directions)), np.empty_like(directions)
    projections = directions @ constraints
    for index, direction in enumerate(directions):
        nearest = projections[index].argmin()
        anchors[index] = points[nearest]
        if projections[index, nearest] >= margin:
            continue
        try:
            multipliers = quadprog.solve_qp(identity, direction, constraints, bounds)[4]
        except ValueError:  # no solution, or one at the tip of a cone, where it loses its way
            multipliers = least_distance(points, direction, margin)
        if multipliers is None:
            needed[index] = np.inf
            continue
        # The weights are not unique at the tip of the cone; their sum of points is.
        moved = multipliers @ points
        needed[index] = moved @ moved
        anchors[index] = moved
    with np.errstate(invalid="ignore", divide="ignore"):
        return needed, anchors / anchors[:, :1]


def least_distance(points: Floats, direction: Floats, margin: float) -> Floats | None:
    """The weights (n,) of the solution for one direction, by non-negative least squares; None where there is none.

    References: Lawson & Hanson 1974, Solving least squares problems, chapter 23 (LDP).
    """
    from scipy.optimize import nnls

    system = np.vstack([points.T, margin - points @ direction])
    target = np.zeros(len(system))
    target[-1] = 1.0
    weights, distance = nnls(system, target)
    if distance < SPAN_TOLERANCE:
        return None
    return np.asarray(weights / (1.0 - system[-1] @ weights))
