"""Stochastic gradient descent as in PyTorch: ``g + weight_decay * w`` enters the momentum buffer ``v = momentum * v + g``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import optax
from pydantic import Field, model_validator

from clray.options import OptimizerOptions, Traced


class SGD(OptimizerOptions):
    """SGD. A momentum or weight decay of 0 leaves its state and arithmetic out of the program."""

    keeps_finite: ClassVar[bool] = True
    momentum: Annotated[float, Field(ge=0.0, lt=1.0), Traced(absent=0.0)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0), Traced(absent=0.0)] = 0.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs momentum above 0")
        return self

    def build(self, hyper: dict[str, Any], learning_rate: Any) -> optax.GradientTransformation:
        momentum = None if self.momentum == 0.0 else hyper["momentum"]
        step = optax.sgd(learning_rate, momentum=momentum, nesterov=self.nesterov)
        if self.weight_decay == 0.0:
            return step
        return optax.chain(optax.add_decayed_weights(hyper["weight_decay"]), step)
