"""The quadratic penalty that the regularisers share: parameters are held where they were, the important ones harder."""

from __future__ import annotations

from typing import Annotated

import jax.numpy as jnp
from pydantic import Field

from clray.options import StrategyOptions, Traced
from clray.types import Array, Params

Importance = Annotated[float, Field(ge=0.0), Traced()]


class Regulariser(StrategyOptions):
    """Options of a strategy that adds ``importance`` times something to the loss."""

    importance: Importance = 1.0


def quadratic(params: Params, anchor: Params, importance: Params) -> Array:
    """sum_i importance_i (params_i - anchor_i)^2 over all parameters, a scalar; no factor 1/2."""
    total = jnp.float32(0.0)
    for path, leaf in params.items():
        total += jnp.sum(importance[path] * (leaf - anchor[path]) ** 2)
    return total


def zeros(params: Params) -> Params:
    """Of the shapes and dtypes of ``params``."""
    return {path: jnp.zeros_like(leaf) for path, leaf in params.items()}
