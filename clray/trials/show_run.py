"""Runs a plan before the eyes of a person: progress while it runs, then the table of trials, and what failed."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from clray.display import Display, count, failures_table, trials_table
from clray.trials.entry import execute
from clray.trials.plan import Plan
from clray.trials.sweep import SweepResult


def execute_and_show(plan: Plan, output: str, quiet: bool, **options: Any) -> SweepResult:
    """Runs and prints.

    Args:
        output: folder or URL; files go to ``<output>/<name>/``.
        quiet: print failures only.
        options: those of ``execute``.

    Raises:
        UserError: see ``execute``. Failed trials do not raise: see ``SweepResult.failed``.
    """
    with Display({trial.trial_id: trial.params for trial in plan.trials}, quiet) as display:
        result = execute(plan, output, display, **options)
    console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200)
    if not quiet:
        console.print(trials_table(result.rows))
        if result.kept:
            console.print(
                f"{count(len(result.kept), 'more trial')} with other settings in the same folder, kept; "
                "`clray table`, `plot` and `report` show them too",
                highlight=False,
            )
        console.print(f"files: {result.root}/  (trials.parquet, trials/); plots: clray report {result.root}", highlight=False, markup=False)
    if result.failed:
        Console(stderr=True, width=None if sys.stderr.isatty() else 200).print(failures_table(result.failed))
        print(f"logs and tracebacks: {result.root}/trials/<trial>/attempts/", file=sys.stderr)
        if not options.get("retry_failed"):
            print("once the cause is mended, give the command again with --retry-failed", file=sys.stderr)
    return result
