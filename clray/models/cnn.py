"""A small convolutional network: three convolution blocks with pooling, then two dense layers (the second is the head)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import jax
from flax import nnx
from pydantic import Field

from clray.errors import ConfigError
from clray.models.convolution import Convolution, max_pool
from clray.models.initialisers import dense
from clray.options import Count, ModelOptions


class CNN(ModelOptions):
    """Options of the convolutional network."""

    takes_images: ClassVar[bool] = True
    channels: tuple[Count, Count, Count] = (32, 64, 64)
    kernel_size: Annotated[int, Field(ge=1, le=11)] = 3
    hidden: Count = Field(128, description="units of the first dense layer: H")

    def build(self, shape: tuple[int, ...], n_outputs: int, rngs: nnx.Rngs) -> CNNModule:
        if len(shape) != 3 or min(shape[:2]) < 8:
            raise ConfigError(f"model cnn halves images three times and needs at least 8 x 8 pixels, got shape {shape}")
        return CNNModule(self, shape, n_outputs, rngs)


class CNNModule(nnx.Module):
    """(B, height, width, channels) -> logits (B, n_outputs) and hidden (B, H)."""

    def __init__(self, options: CNN, shape: tuple[int, ...], n_outputs: int, rngs: nnx.Rngs):
        height, width, n_in = shape
        blocks = []
        for n_out in options.channels:
            blocks.append(Convolution(n_in, n_out, options.kernel_size, options.init, rngs))
            n_in, height, width = n_out, height // 2, width // 2
        self.blocks = nnx.List(blocks)
        self.hidden = dense(options.init, height * width * n_in, options.hidden, rngs)
        self.head = dense(options.init, options.hidden, n_outputs, rngs)

    def __call__(self, x: jax.Array, train: bool = False, rngs: Any = None) -> tuple[jax.Array, jax.Array]:
        del train, rngs
        for block in self.blocks:
            x = max_pool(jax.nn.relu(block(x)))
        x = jax.nn.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.head(x), x
