"""Plain training on one task after the other. The lower bound every strategy is compared with."""

from __future__ import annotations

from clray.options import StrategyOptions
from clray.strategies.base import Strategy


class Finetune(StrategyOptions):
    """No options."""

    def needs_boundaries(self) -> str | None:
        return None

    def build(self) -> Strategy:
        return Strategy()
