"""Fisher information and MAS sensitivities against loops over samples and labels in PyTorch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from clray.strategies import per_sample
from clray.strategies.base import TaskData
from clray.strategies.fisher import fisher_diagonal
from clray.strategies.mas import sensitivity
from clray.strategies.per_sample import mean_over_samples
from clray.types import Params
from tests.strategies.by_hand import N_OUTPUTS, assert_close, context, in_torch, random_data, random_params, torch_gradient, torch_logits

PARAMS, DATA = random_params(0), random_data(0)


def slow_fisher(kind: str) -> dict[str, np.ndarray]:
    """mean_x sum_y weight(y) (d log p(y | x) / d theta)^2, one backward pass a sample and label."""
    params = in_torch(PARAMS)
    total: dict[str, Any] = dict.fromkeys(params, 0.0)
    n = len(DATA.labels)
    for image, label in zip(np.asarray(DATA.images), np.asarray(DATA.labels), strict=True):
        log_p = torch.log_softmax(torch_logits(params, image[None])[0], dim=0)
        p = log_p.exp().detach().numpy()
        weights = {"exact": p, "argmax": np.eye(N_OUTPUTS)[p.argmax()], "empirical": np.eye(N_OUTPUTS)[label]}[kind]
        for y in range(N_OUTPUTS):
            for name, gradient in torch_gradient(log_p[y], params).items():
                total[name] = total[name] + weights[y] * gradient**2 / n
    return total


@pytest.mark.parametrize("kind", ["exact", "argmax", "empirical"])
def test_diagonal_is_the_sum_over_samples_and_labels(kind: Any) -> None:
    assert_close(fisher_diagonal(PARAMS, DATA, kind, None, context()), slow_fisher(kind))


def test_labels_sampled_from_the_network_give_the_exact_diagonal_on_average() -> None:
    one = jax.jit(jax.vmap(lambda key: fisher_diagonal(PARAMS, DATA, "sampled", None, context()._replace(key=key))))
    found = one(jax.random.split(jax.random.key(1), 3000))
    for name, expected in slow_fisher("exact").items():
        drawn = np.asarray(found[name], np.float64)
        error = drawn.std(axis=0) / np.sqrt(len(drawn))
        # 43 numbers: five standard errors are exceeded once in 40,000 runs of this test, and its seed is fixed.
        assert (np.abs(drawn.mean(axis=0) - expected) <= 5 * error + 1e-6).all(), name


def test_mas_is_the_mean_absolute_gradient_of_the_squared_norm_of_the_logits() -> None:
    params = in_torch(PARAMS)
    total: dict[str, Any] = dict.fromkeys(params, 0.0)
    for image in np.asarray(DATA.images):
        gradient = torch_gradient((torch_logits(params, image[None]) ** 2).sum(), params)
        total = {name: total[name] + np.abs(gradient[name]) / len(DATA.labels) for name in params}
    assert_close(sensitivity(PARAMS, DATA, None, context()), total)


def visited(n_samples: int | None, n_seeds: int) -> np.ndarray:
    """(seeds, 12): how often each of 12 samples enters a mean, times the number of those that do."""
    data = TaskData(jnp.eye(12), jnp.arange(12, dtype=jnp.int32))

    def forward(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return images @ params["kernel"], images

    def one(key: jax.Array) -> jax.Array:
        ctx = context()._replace(key=key, forward=forward, scale=lambda images: images)
        params = {"kernel": jnp.zeros((12, 1))}  # its gradient is the image, a unit vector
        return mean_over_samples(lambda logits, *_: logits[0], jnp.square, params, data, n_samples, ctx)["kernel"][:, 0]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n_seeds))) * (n_samples or 12)


@pytest.mark.parametrize("kind", ["exact", "argmax", "empirical", "sampled"])
def test_products_of_a_block_equal_gradients_one_by_one(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks that do not divide the number of samples: what fills up the last one must not count.
    monkeypatch.setattr(per_sample, "BLOCK", 5)
    assert len(DATA.labels) % 5
    in_blocks = fisher_diagonal(PARAMS, DATA, kind, None, context()), sensitivity(PARAMS, DATA, None, context())
    monkeypatch.setattr(per_sample, "_dense_places", lambda *_: (None, {}))
    one_by_one = fisher_diagonal(PARAMS, DATA, kind, None, context()), sensitivity(PARAMS, DATA, None, context())
    for found, expected in zip(in_blocks, one_by_one, strict=True):
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=1e-8)


def test_all_samples_are_visited_once() -> None:
    np.testing.assert_allclose(visited(None, 1), 1.0)


def test_a_smaller_sample_holds_different_samples_and_each_as_often_as_any_other() -> None:
    drawn = visited(5, 120)
    assert set(np.round(drawn, 4).ravel()) == {0.0, 1.0}
    assert (np.round(drawn).sum(axis=1) == 5).all()
    # 50 expected, deviation 5.4.
    assert np.abs(drawn.sum(axis=0) - 50).max() < 22
