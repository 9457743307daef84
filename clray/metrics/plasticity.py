"""How much of a network is still in use, and how far its weights went: from hidden activations and from weights.

``hidden`` is (..., n, H): n samples, H units, any leading axes (log points, repeats), which come back one value each.
Activations are not centred. Weights are mappings of parameter path to (..., *shape) with the leading axes given by
``n_leading``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clray.metrics.accuracy import Floats

DORMANT_BELOW = 0.025


def dormant_ratio(hidden: Floats, threshold: float = DORMANT_BELOW) -> Floats:
    """Fraction of units whose mean absolute activation is at most ``threshold`` times that of the average unit.

    s_i = E|h_i| / (1/H sum_k E|h_k|), dormant where s_i <= threshold; all units where the layer is silent.

    References: Sokar et al. 2023 (arXiv 2302.12902), definition 3.1, there with thresholds 0 to 0.1.
    """
    activity = np.abs(hidden).mean(axis=-2)
    average = activity.mean(axis=-1, keepdims=True)
    dormant = (activity <= threshold * average).mean(axis=-1)
    return np.where(np.isnan(average[..., 0]), np.nan, dormant)


def active_fraction(hidden: Floats) -> Floats:
    """Mean over samples of the fraction of units with a positive activation: one minus the sparsity of a ReLU layer."""
    return np.where(np.isnan(hidden).any(axis=(-2, -1)), np.nan, (hidden > 0).mean(axis=(-2, -1)))


def stable_rank(hidden: Floats) -> Floats:
    """Squared Frobenius norm over squared spectral norm of the (n, H) activations, 1 to min(n, H); NaN for all zeros.

    References: Rudelson & Vershynin 2007 (arXiv math/0503442).
    """
    return ranks(hidden)[0]


def effective_rank(hidden: Floats) -> Floats:
    """exp of the entropy of the singular values of the (n, H) activations, normalised to sum 1; NaN for all zeros.

    References: Roy & Vetterli 2007, The effective rank, EUSIPCO.
    """
    return ranks(hidden)[1]


def ranks(hidden: Floats) -> tuple[Floats, Floats]:
    """Stable and effective rank, from one decomposition."""
    powers = singular_powers(hidden)
    values = np.sqrt(powers)
    with np.errstate(invalid="ignore", divide="ignore"):
        stable = powers.sum(axis=-1) / powers.max(axis=-1)
        share = values / values.sum(axis=-1, keepdims=True)
        entropy = -np.where(share == 0.0, 0.0, share * np.log(share)).sum(axis=-1)
    return np.asarray(stable), np.exp(entropy)


def singular_powers(hidden: Floats) -> Floats:
    """Squared singular values of (..., n, H), ascending, by the smaller of the two Gram matrices; NaN where any input is."""
    x = np.asarray(hidden, np.float64)
    if x.shape[-2] < x.shape[-1]:
        x = np.swapaxes(x, -1, -2)
    gram = np.swapaxes(x, -1, -2) @ x
    broken = ~np.asarray(np.isfinite(gram).all(axis=(-2, -1)))
    powers = np.linalg.eigvalsh(np.where(broken[..., None, None], 0.0, gram))
    # Rounding leaves eigenvalues of about 1e-16 of the largest where there are none.
    powers = np.where(powers < 1e-14 * powers[..., -1:], 0.0, powers)
    return np.where(broken[..., None], np.nan, powers)


def feature_norm(hidden: Floats) -> Floats:
    """Mean over samples of the Euclidean norm of the activations."""
    return np.asarray(np.linalg.norm(np.asarray(hidden, np.float64), axis=-1).mean(axis=-1))


def feature_variance(hidden: Floats) -> Floats:
    """Mean over units of the variance over samples."""
    return np.asarray(np.asarray(hidden, np.float64).var(axis=-2).mean(axis=-1))


def weight_magnitude(weights: Mapping[str, Floats], n_leading: int = 1) -> Floats:
    """Mean absolute value over all parameters.

    References: Dohare et al. 2024, Loss of plasticity in deep continual learning, Nature 632.
    """
    total = sum(np.abs(_flat(array, n_leading)).sum(axis=-1, dtype=np.float64) for array in weights.values())
    return np.asarray(total / sum(_flat(array, n_leading).shape[-1] for array in weights.values()))


def weight_norm(array: Floats, n_leading: int = 1) -> Floats:
    """Euclidean norm of one parameter."""
    flat = _flat(array, n_leading).astype(np.float64)
    return np.asarray(np.sqrt((flat**2).sum(axis=-1)))


def weight_distance(weights: Mapping[str, Floats], reference: Mapping[str, Floats], n_leading: int = 1) -> Floats:
    """Euclidean distance between two sets of weights, over all parameters together."""
    squares = [weight_norm(np.asarray(array, np.float64) - reference[name], n_leading) ** 2 for name, array in weights.items()]
    return np.asarray(np.sqrt(np.sum(squares, axis=0)))


def _flat(array: Floats, n_leading: int) -> Floats:
    return np.asarray(array).reshape(*array.shape[:n_leading], -1)
