"""Cumulative training: every batch of a task is drawn from all data of the tasks so far. An upper bound, beside the baseline ``joint``.

What van de Ven & Tolias 2018 (arXiv 1809.10635) call "offline", with one network that goes on from task to task. A task keeps its
length: with ``training.steps`` and with ``training.epochs`` alike it has as many batches as with any other strategy, so that results
differ in what was seen, not in how long was trained. Over the union of t tasks, an epoch of a task is thus a t-th of an epoch.

The core draws the batches (``StrategyOptions.trains_on``); there is no hook. Penalties compose with it, and see the current task
where they ask for its data. Memories of samples do not: nothing is left to replay.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from clray.options import StrategyOptions
from clray.strategies.base import Strategy


class Cumulative(StrategyOptions):
    """No options."""

    trains_on: ClassVar[Literal["task", "all_so_far"]] = "all_so_far"

    def needs_boundaries(self) -> str | None:
        return "its batches come from all data of the tasks so far"

    def build(self) -> Strategy:
        return Strategy()
