"""``clray reproduce``: what comes before and after the sweep itself."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from clray.config import Experiment
from clray.options import DatasetOptions
from clray.reproduce.comparison import MATCHES, RULE, Row, compared, notes, page, summary, terminal_table
from clray.reproduce.find import find_files
from clray.reproduce.match import match_rows
from clray.reproduce.published import PublishedRow, read_published
from clray.store.filesystem import Storage
from clray.store.layout import REPRODUCTION_SCHEMA, SweepLayout
from clray.trials.expand import Trial
from clray.trials.plan import Plan, fingerprint, plan_sweep
from clray.trials.sweep import SweepResult, sweep_root


class Match(NamedTuple):
    """A published row and the trial that it is about."""

    row: PublishedRow
    trial: Trial


def plan_reproduction(name: str, settings: Mapping[str, Any]) -> tuple[Plan, list[Match]]:
    """Plans the sweep and finds the trial of every published row.

    Args:
        name: a known table, or the path of a sweep file.
        settings: dotted key to value, as ``--set``.

    Raises:
        ConfigError: there is no such table, one of its files is not valid, or a row does not match exactly one trial.
    """
    sweep_file, published_file = find_files(name)
    published, document = read_published(published_file)
    plan = plan_sweep(sweep_file, settings)
    trials = match_rows(published, document, plan.sweep, plan.trials, settings, fingerprint)
    return plan, [Match(row, trial) for row, trial in zip(published.rows, trials, strict=True)]


def show_comparison(
    plan: Plan, matches: Sequence[Match], result: SweepResult, output: str, settings: Mapping[str, Any], quiet: bool
) -> bool:
    """Writes and prints measured against published; returns whether every row matches."""
    by_id = {row["trial_id"]: row for row in result.rows}
    rows = [compared(row, trial, by_id.get(trial.trial_id)) for row, trial in matches]
    changed = {key: value for key, value in settings.items() if _matters(key)}
    storage, layout = sweep_root(output, plan.name), SweepLayout()
    _write(storage, layout, rows, page(plan.name, rows, changed))
    good = all(row["verdict"] == MATCHES for row in rows)
    place = f"{result.root}/{layout.reproduction_page}"
    if not quiet:
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print()
        console.print(terminal_table(rows))
        for line in (f"{summary(rows)}. {RULE}", *notes(rows, changed), f"files: {place}, {layout.reproduction}"):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    elif not good:
        print(f"{summary(rows)}: {place}", file=sys.stderr)
    return good


def _matters(key: str) -> bool:
    """Whether a setting can change what is measured."""
    table, _, inner = key.partition(".")
    return table not in Experiment.not_in_identity if table != "dataset" else inner not in DatasetOptions.not_in_identity


def _write(storage: Storage, layout: SweepLayout, rows: Sequence[Row], text: str) -> None:
    buffer = io.BytesIO()
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in REPRODUCTION_SCHEMA]
    pq.write_table(pa.table(columns, schema=REPRODUCTION_SCHEMA), buffer, compression="zstd")
    storage.replace_bytes(layout.reproduction, buffer.getvalue())
    storage.replace_bytes(layout.reproduction_page, text.encode())
