"""Random choices that compile to one call of the generator: each further call costs a quarter of a second of compile time on CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clray.types import Array


def below(bits: Array, bound: Array | int) -> Array:
    """Whole numbers from 0 to ``bound`` - 1, int32, from random bits (uint32). Off uniform by less than bound / 2^32."""
    return (bits % jnp.maximum(jnp.asarray(bound), 1).astype(jnp.uint32)).astype(jnp.int32)


def without_replacement(key: Array, size: int, n: int) -> Array:
    """[n] different numbers from 0 to ``size`` - 1 in random order, int32."""
    return jnp.argsort(jax.random.bits(key, (size,)))[:n].astype(jnp.int32)
