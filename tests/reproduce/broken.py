"""A strategy that always fails."""

from __future__ import annotations

from typing import Any

from clray.options import StrategyOptions
from clray.strategies.base import Context, Strategy
from clray.types import Array, Batch, Params


class Broken(StrategyOptions):
    """Fails as soon as it is trained with."""

    def build(self) -> Strategy:
        def penalty(state: Any, params: Params, logits: Array, batch: Batch, ctx: Context) -> Array:
            raise ArithmeticError("broken on purpose")

        return Strategy(penalty=penalty)
