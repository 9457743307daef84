"""The matrix product of a dense layer, with gradients in the form that CPUs compute fastest.

XLA's CPU library multiplies by a matrix as it lies in memory, and repacks it first where it is transposed. The gradient with
respect to the input, ``d @ kernel.T``, would repack the kernel in every step and for every lane. As ``(kernel @ d.T).T`` only the
small ``d`` is repacked. Likewise for the kernel of a narrow head, whose gradient has one column a class; behind such a head ``d @
kernel.T`` is a sum of outer products, which needs no library. Other platforms get the plain products. Measured in benchmarks/NOTES.md.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from clray.types import Array

NARROW = 16
"""Outputs up to which a layer is a narrow head."""


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """``x @ kernel``: [B, n_in] and [n_in, n_out] to [B, n_out]."""
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(saved: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return lax.platform_dependent(x, kernel, d, cpu=_transposed, default=_plain)


def _plain(x: Array, kernel: Array, d: Array) -> tuple[Array, Array]:
    return d @ kernel.T, x.T @ d


def _transposed(x: Array, kernel: Array, d: Array) -> tuple[Array, Array]:
    # The barriers keep XLA from folding the transpose back into the product.
    if kernel.shape[1] <= NARROW:
        dx = functools.reduce(jnp.add, [d[:, [k]] * kernel[:, k] for k in range(kernel.shape[1])])
        return dx, lax.optimization_barrier(_over(d, x, 0, 0)).T
    return lax.optimization_barrier(_over(kernel, d, 1, 1)).T, _over(x, d, 0, 0)


def _over(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())))


product.defvjp(_forward, _backward)


def dot_general(x: Array, kernel: Array, dimensions: Any, precision: Any = None, **options: Any) -> Array:
    """``product`` in the form in which flax's layers call it; anything but [..., n_in] x [n_in, n_out] goes to ``lax``."""
    if precision is None and dimensions == (((x.ndim - 1,), (0,)), ((), ())) and not any(options.values()):
        if x.ndim == 2:
            return product(x, kernel)
        return product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])
    return jnp.asarray(lax.dot_general(x, kernel, dimensions, precision=precision, **options))
