"""A fully connected network."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

import jax
from flax import nnx
from pydantic import Field

from clray.models.initialisers import dense
from clray.options import Count, ModelOptions


class MLP(ModelOptions):
    """Options of the fully connected network."""

    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256, 256)
    activation: Literal["relu", "tanh", "gelu", "elu"] = "relu"

    def build(self, shape: tuple[int, ...], n_outputs: int, rngs: nnx.Rngs) -> MLPModule:
        return MLPModule(self, math.prod(shape), n_outputs, rngs)


class MLPModule(nnx.Module):
    """(B, D) -> logits (B, n_outputs) and hidden (B, H), the activations that enter the head."""

    def __init__(self, options: MLP, n_inputs: int, n_outputs: int, rngs: nnx.Rngs):
        widths = (n_inputs, *options.hidden)
        self.hidden = nnx.List([dense(options.init, a, b, rngs) for a, b in itertools.pairwise(widths)])
        self.head = dense(options.init, widths[-1], n_outputs, rngs)
        self.activation = options.activation

    def __call__(self, x: jax.Array, train: bool = False, rngs: Any = None) -> tuple[jax.Array, jax.Array]:
        del train, rngs
        activation = getattr(jax.nn, self.activation)
        for layer in self.hidden:
            x = activation(layer(x))
        return self.head(x), x
