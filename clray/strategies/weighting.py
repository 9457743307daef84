"""How much of the loss is about the past: ``(1 - share) * loss of the current task + share * loss of the past``.

``alpha``    a constant share; 0 is plain training, 1/2 weighs both alike (one batch of each, as in Chaudhry et al. 2019).
``by_task``  1 - 1/t in the t-th task, so that every task so far counts the same (van de Ven & Tolias 2019).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clray.options import StrategyOptions, Traced
from clray.strategies.base import Context
from clray.types import Array

Kind = Literal["alpha", "by_task"]
ALPHA = 0.5


class Weighted(StrategyOptions):
    """Options of a strategy that weighs a loss of the past against that of the current task."""

    weighting: Kind = "alpha"
    alpha: Annotated[float, Field(ge=0.0, le=1.0), Traced()] = Field(ALPHA, description="share of the past in the loss (weighting alpha)")

    @model_validator(mode="after")
    def _alpha_is_used(self) -> Weighted:
        if self.weighting == "by_task" and self.alpha != ALPHA:
            raise ValueError("alpha is used only with weighting: alpha")
        return self


def share_of_past(kind: Kind, ctx: Context) -> Array:
    """A scalar in [0, 1]."""
    if kind == "by_task":
        return 1.0 - 1.0 / (ctx.task + 1.0)
    return ctx.hyper["alpha"]
