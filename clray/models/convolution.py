"""A two-dimensional convolution as a matrix product over shifted copies of its input.

The usual convolution is not fit for lanes: under ``vmap`` over kernels it becomes a grouped convolution, and inside a scan on
a CPU that falls to a loop some fifty times slower than this. Here every lane is one row block of a batched matrix product,
on any device. The price is memory: kernel height * kernel width copies of the input while a layer runs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from clray.models.initialisers import initialisers
from clray.models.product import product


class Convolution(nnx.Module):
    """(B, height, width, n_in) -> (B, height, width, n_out): stride 1, zero padding that keeps the size.

    Attributes:
        kernel: (kernel height, kernel width, n_in, n_out).
        bias: (n_out,).
    """

    def __init__(self, n_in: int, n_out: int, size: int, init: str, rngs: nnx.Rngs):
        kernel, bias = initialisers(init, n_in * size * size)
        self.kernel = nnx.Param(kernel(rngs.params(), (size, size, n_in, n_out), jnp.float32))
        self.bias = nnx.Param(bias(rngs.params(), (n_out,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        size, _, _, n_out = self.kernel.shape
        batch, height, width, _ = x.shape
        before, after = (size - 1) // 2, size // 2
        padded = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
        shifted = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
        columns = jnp.concatenate(shifted, axis=-1).reshape(batch * height * width, -1)
        out = product(columns, self.kernel[...].reshape(-1, n_out)) + self.bias[...]
        return out.reshape(batch, height, width, n_out)


def max_pool(x: jax.Array) -> jax.Array:
    """2 x 2 max pooling with stride 2; an odd last row or column is dropped, as in PyTorch."""
    batch, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
