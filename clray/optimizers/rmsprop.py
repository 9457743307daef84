"""RMSProp with eps outside the square root, as in PyTorch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import optax
from pydantic import Field

from clray.options import OptimizerOptions, Traced


class RMSProp(OptimizerOptions):
    """RMSProp (Tieleman & Hinton 2012, Coursera lecture 6.5)."""

    keeps_finite: ClassVar[bool] = True
    learning_rate: Annotated[float, Field(gt=0.0), Traced()] = 1e-2
    decay: Annotated[float, Field(ge=0.0, lt=1.0), Traced()] = 0.99
    eps: Annotated[float, Field(ge=1e-30), Traced()] = 1e-8
    momentum: Annotated[float, Field(ge=0.0, lt=1.0), Traced(absent=0.0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0.0), Traced(absent=0.0)] = 0.0

    def build(self, hyper: dict[str, Any], learning_rate: Any) -> optax.GradientTransformation:
        parts = [] if self.weight_decay == 0.0 else [optax.add_decayed_weights(hyper["weight_decay"])]
        parts.append(optax.scale_by_rms(decay=hyper["decay"], eps=hyper["eps"], eps_in_sqrt=False))
        if self.momentum != 0.0:
            parts.append(optax.trace(decay=hyper["momentum"]))
        return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))
