"""Adam and AdamW. All of b1, b2 and eps are traced, never baked in: 1 - b2 rounds differently at compile time and drifts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import optax
from pydantic import Field

from clray.options import OptimizerOptions, Traced

Decay = Annotated[float, Field(ge=0.0, lt=1.0), Traced()]


class _AdamOptions(OptimizerOptions):
    keeps_finite: ClassVar[bool] = True
    learning_rate: Annotated[float, Field(gt=0.0), Traced()] = 1e-3
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Annotated[float, Field(ge=1e-30), Traced()] = 1e-8


class Adam(_AdamOptions):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980); weight decay is added to the gradient, as in PyTorch's Adam."""

    weight_decay: Annotated[float, Field(ge=0.0), Traced(absent=0.0)] = 0.0

    def build(self, hyper: dict[str, Any], learning_rate: Any) -> optax.GradientTransformation:
        step = optax.adam(learning_rate, b1=hyper["b1"], b2=hyper["b2"], eps=hyper["eps"])
        if self.weight_decay == 0.0:
            return step
        return optax.chain(optax.add_decayed_weights(hyper["weight_decay"]), step)


class AdamW(_AdamOptions):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101): weights shrink by ``learning_rate * weight_decay`` a step."""

    weight_decay: Annotated[float, Field(ge=0.0), Traced()] = 1e-2

    def build(self, hyper: dict[str, Any], learning_rate: Any) -> optax.GradientTransformation:
        return optax.adamw(learning_rate, b1=hyper["b1"], b2=hyper["b2"], eps=hyper["eps"], weight_decay=hyper["weight_decay"])
