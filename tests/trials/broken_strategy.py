"""A user's strategy with a bug in each of the places where it meets clray first."""

from __future__ import annotations

from typing import Any, Literal

from clray.options import StrategyOptions
from clray.strategies.base import Strategy


class Broken(StrategyOptions):
    """Fails where it is told to."""

    where: Literal["build", "init"] = "build"

    def build(self) -> Strategy:
        if self.where == "build":
            raise ZeroDivisionError("a bug in build")

        def init(params: Any, sizes: Any) -> Any:
            raise ZeroDivisionError("a bug in init")

        return Strategy(init=init)
