"""The outputs of the head that a sample is classified among: all, those of its task, or those of the classes so far."""

from __future__ import annotations

import jax.numpy as jnp

from clray.types import Array

NO_CHOICE = -1e20
"""Logit of an output that is no choice: its probability is exactly 0, and products with it stay finite in float32."""


def among(logits: Array, choices: Array | None) -> Array:
    """Logits [..., O] with ``NO_CHOICE`` where ``choices`` (bool, None: all) is False; gradients there are zero."""
    return logits if choices is None else jnp.where(choices, logits, NO_CHOICE)


def only(values: Array, choices: Array | None) -> Array:
    """Values [..., O] with 0 where ``choices`` (bool, None: all) is False."""
    return values if choices is None else jnp.where(choices, values, 0.0)
