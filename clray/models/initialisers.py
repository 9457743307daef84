"""The two conventions for initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flax import nnx
from jax.nn import initializers

from clray.models.product import dot_general

Initialiser = Callable[..., Any]


def initialisers(convention: str, fan_in: int) -> tuple[Initialiser, Initialiser]:
    """Initialisers of (kernel, bias) of a layer with ``fan_in`` inputs a unit.

    Args:
        convention: ``flax``: kernels lecun normal, biases zero. ``pytorch``: both uniform in +-1/sqrt(fan_in), which is
            what PyTorch's Linear and Conv2d default to (kaiming uniform with a = sqrt(5)).
    """
    if convention == "flax":
        return initializers.lecun_normal(), initializers.zeros
    bound = 1.0 / math.sqrt(fan_in)

    def uniform(key: Any, shape: tuple[int, ...], dtype: Any = None, out_sharding: Any = None) -> Any:
        del out_sharding
        return 2.0 * bound * initializers.uniform(1.0)(key, shape, dtype or "float32") - bound

    return uniform, uniform


def dense(convention: str, n_in: int, n_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer (n_in -> n_out) initialised by ``convention``."""
    kernel, bias = initialisers(convention, n_in)
    return nnx.Linear(n_in, n_out, kernel_init=kernel, bias_init=bias, dot_general=dot_general, rngs=rngs)
