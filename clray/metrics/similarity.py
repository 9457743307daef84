"""How far representations of the same samples moved between two moments of training.

``x`` and ``y`` are (..., S, H): the same S samples at two moments, with any leading axes (repeats, tasks), which come back
one value each. Everything is computed from the S x S matrices of inner products, so the cost hardly depends on H. Units are
centred over the samples first. NaN where an input is NaN or all samples coincide.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clray.metrics.accuracy import Floats

RANK_TOLERANCE = 1e-6


def linear_cka(x: Floats, y: Floats, debiased: bool = False) -> Floats:
    """Linear centred kernel alignment, 1 for representations equal up to rotation and scale, 0 for unrelated ones.

    HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)) with HSIC the inner product of the centred Gram matrices. With few samples and
    many units it is well above 0 for unrelated representations; ``debiased`` takes the unbiased HSIC of Song et al. 2012
    instead, whose expectation is then 0 (and which may be negative). It needs S > 3.

    References: Kornblith et al. 2019 (arXiv 1905.00414), section 3; Nguyen et al. 2021 (arXiv 2010.15327), equation 3.
    """
    a, b = _centred(x), _centred(y)
    gram_a, gram_b = _inner(a, a), _inner(b, b)
    hsic = _unbiased_hsic if debiased else _hsic
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(hsic(gram_a, gram_b) / np.sqrt(hsic(gram_a, gram_a) * hsic(gram_b, gram_b)))


def procrustes_distance(x: Floats, y: Floats) -> Floats:
    """Distance that is left after the best rotation, 0 to sqrt(2).

    sqrt(2 - 2 ||x^T y||_*) with both centred and scaled to Frobenius norm 1; the nuclear norm is the largest inner product
    that a rotation can reach.

    References: Williams et al. 2021 (arXiv 2110.14739); Ding et al. 2021 (arXiv 2108.01661) report its square.
    """
    return _procrustes(_spectrum(x), _spectrum(y))


def class_mean_cosine(x: Floats, y: Floats, n_classes: int) -> Floats:
    """Cosine between the mean representation of a class at the two moments, averaged over the classes. Not centred.

    Args:
        n_classes: C; the samples are S/C of each class, label 0's first.
    """
    means = [_class_means(values, n_classes) for values in (x, y)]
    norms = np.linalg.norm(means[0], axis=-1) * np.linalg.norm(means[1], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((means[0] * means[1]).sum(axis=-1) / norms).mean(axis=-1))


def principal_angles(x: Floats, y: Floats, n_components: int = 3) -> Floats:
    """Angles in radians, ascending, between the subspaces of the first principal components of x and y: (..., n_components).

    arccos of the singular values of Q_x^T Q_y, with orthonormal bases Q of the two subspaces of unit space. NaN where one
    has fewer dimensions.

    References: Bjorck & Golub 1973, Numerical methods for computing angles between linear subspaces.
    """
    return _angles(_spectrum(x), _spectrum(y), n_components)


def similarities(x: Floats, y: Floats, n_classes: int, n_components: int = 3) -> dict[str, Floats]:
    """All measures at once, which shares most of the work: cka, procrustes, class_cosine, principal_angle (mean, radians)."""
    a, b = _spectrum(x), _spectrum(y)
    with np.errstate(invalid="ignore", divide="ignore"):
        cka = _hsic(a.gram, b.gram) / np.sqrt(_hsic(a.gram, a.gram) * _hsic(b.gram, b.gram))
    return {
        "cka": np.asarray(cka),
        "procrustes": _procrustes(a, b),
        "class_cosine": class_mean_cosine(x, y, n_classes),
        "principal_angle": _angles(a, b, n_components).mean(axis=-1),
    }


class _Spectrum(NamedTuple):
    """x = left * values * right^T, without the right vectors."""

    centred: Floats  # [..., S, H]
    gram: Floats  # [..., S, S]
    left: Floats  # [..., S, S], columns by falling value
    values: Floats  # [..., S]


def _spectrum(x: Floats) -> _Spectrum:
    centred = _centred(x)
    gram = _inner(centred, centred)
    broken = ~np.asarray(np.isfinite(gram).all(axis=(-2, -1), keepdims=True))
    powers, left = np.linalg.eigh(np.where(broken, 0.0, gram))
    values = np.sqrt(np.maximum(powers[..., ::-1], 0.0))
    return _Spectrum(centred, gram, left[..., ::-1], np.where(broken[..., 0], np.nan, values))


def _procrustes(a: _Spectrum, b: _Spectrum) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = [s.values / np.sqrt((s.values**2).sum(axis=-1, keepdims=True)) for s in (a, b)]
    core = scaled[0][..., :, None] * (np.swapaxes(a.left, -1, -2) @ b.left) * scaled[1][..., None, :]
    nuclear = _singular_values(core).sum(axis=-1)
    return np.sqrt(np.maximum(2.0 - 2.0 * nuclear, 0.0))


def _angles(a: _Spectrum, b: _Spectrum, n_components: int) -> Floats:
    kept = min(n_components, a.left.shape[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = []
        for s in (a, b):
            enough = s.values[..., :kept] > RANK_TOLERANCE * s.values[..., :1]
            scaled.append(s.left[..., :kept] / np.where(enough, s.values[..., :kept], np.nan)[..., None, :])
    core = np.swapaxes(scaled[0], -1, -2) @ _inner(a.centred, b.centred) @ scaled[1]
    angles = np.arccos(np.clip(_singular_values(core), -1.0, 1.0))
    missing = np.full((*angles.shape[:-1], n_components - kept), np.nan)
    return np.concatenate([angles, missing], axis=-1)


def _singular_values(matrices: Floats) -> Floats:
    broken = ~np.asarray(np.isfinite(matrices).all(axis=(-2, -1)))
    values = np.linalg.svd(np.where(broken[..., None, None], 0.0, matrices), compute_uv=False)
    return np.where(broken[..., None], np.nan, values)


def _centred(x: Floats) -> Floats:
    values = np.asarray(x, np.float64)
    return values - values.mean(axis=-2, keepdims=True)


def _inner(a: Floats, b: Floats) -> Floats:
    return a @ np.swapaxes(b, -1, -2)


def _class_means(x: Floats, n_classes: int) -> Floats:
    shape = (*x.shape[:-2], n_classes, x.shape[-2] // n_classes, x.shape[-1])
    return np.asarray(x, np.float64).reshape(shape).mean(axis=-2)


def _hsic(a: Floats, b: Floats) -> Floats:
    return np.asarray((a * b).sum(axis=(-2, -1)))


def _unbiased_hsic(a: Floats, b: Floats) -> Floats:
    """Song et al. 2012 (JMLR 13), equation 5, up to the factor 1 / (n (n - 3)) that cancels in CKA."""
    n = a.shape[-1]
    off = 1.0 - np.eye(n)
    a, b = a * off, b * off
    rows_a, rows_b = a.sum(axis=-1), b.sum(axis=-1)
    sums = rows_a.sum(axis=-1) * rows_b.sum(axis=-1) / ((n - 1) * (n - 2))
    return _hsic(a, b) + sums - 2.0 / (n - 2) * (rows_a * rows_b).sum(axis=-1)
