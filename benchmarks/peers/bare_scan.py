"""The limit of JAX on this machine: a jitted scan of a vmapped SGD step, with no logging, no files and no options."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def init(sizes: tuple[int, ...], n_lanes: int, seed: int = 0) -> list[tuple[Any, Any]]:
    """Weights and biases of an MLP, leading axis W."""
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(0, 1 / np.sqrt(a), (n_lanes, a, b)).astype(np.float32), np.zeros((n_lanes, b), np.float32))
        for a, b in itertools.pairwise(sizes)
    ]


def loss(params: list[tuple[Any, Any]], x: Any, y: Any) -> Any:
    """Mean cross-entropy of one lane."""
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = params[-1]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x @ w + b), y[:, None], axis=1))


@functools.partial(jax.jit, static_argnames="scale")
def train(params: Any, images: Any, labels: Any, order: Any, rate: Any, scale: float = 1.0) -> Any:
    """Images [N, W, D], labels [N, W], order [steps, W, B]; the final parameters."""

    def lane_step(params: Any, images: Any, labels: Any, rows: Any) -> Any:
        gradient = jax.grad(loss)(params, images[rows].astype(jnp.float32) * scale, labels[rows])
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient)

    def step(params: Any, rows: Any) -> Any:
        return jax.vmap(lane_step, in_axes=(0, 1, 1, 0))(params, images, labels, rows), None

    return jax.lax.scan(step, params, order)[0]
