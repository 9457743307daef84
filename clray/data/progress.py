"""A progress bar for preparation: drawn on terminals, silent everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called as (stage, images done, images in all); 0 in all where that is not known."""


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """A ``Progress`` that draws one bar per stage on stderr where that is a terminal, and does nothing elsewhere."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    stages: dict[str, TaskID] = {}
    with Bars(console=Console(stderr=True), transient=True) as bars:

        def draw(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total or None)
            bars.update(stages[stage], completed=done, total=total or None)

        yield draw


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total
