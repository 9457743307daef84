"""Measured against published, a row a published number: as data, for a terminal, and as a page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from clray.display import count, show_value
from clray.reproduce.published import PublishedRow
from clray.reproduce.verdict import MOST_POINTS, MOST_SEMS, compare
from clray.trials.expand import Trial

Row = Mapping[str, Any]
"""A row of reproduction.parquet; see ``REPRODUCTION_SCHEMA``."""

MATCHES = "matches"
RULE = (
    f"A row matches where the difference is at most {MOST_SEMS:g} combined standard errors, sqrt(measured SEM^2 + published SEM^2), or "
    f"{MOST_POINTS:g} points, whichever is more, on either side."
)
TITLES = ("method", "scenario", "measured", "published", "points", "SEM", "verdict")
STYLES = {MATCHES: "green", "above": "yellow", "below": "yellow"}


def compared(row: PublishedRow, trial: Trial, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """One published number with what was measured.

    Args:
        result: the trial's row as in trials.parquet; None where there is none.

    Returns:
        The columns of ``REPRODUCTION_SCHEMA``. Without a measured mean the verdict says why: failed, diverged, or missing (the trial
        did not end, or measured no accuracy).
    """
    result = result or {}
    found: dict[str, Any] = {
        "method": row.method,
        "scenario": trial.experiment.sequence.scenario,
        "trial_id": trial.trial_id,
        "published_mean": row.mean,
        "published_sem": row.sem,
        "published_n": row.n,
        "n_diverged": result.get("n_diverged"),
        "source": row.source,
    }
    mean, sem = _percent(result.get("acc_mean")), _percent(result.get("acc_sem"))
    status = result.get("status")
    if mean is None or status != "done":
        return found | {"verdict": status if status in ("failed", "diverged") else "missing"}
    against = compare(mean, sem, row.mean, row.sem)
    return found | {
        "measured_mean": mean,
        "measured_sem": sem,
        "measured_n": len(trial.experiment.repeat_numbers) - (result.get("n_diverged") or 0),
        "difference": against.difference,
        "difference_in_sem": against.sems,
        "limit": against.limit,
        "verdict": against.verdict,
    }


def _percent(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else 100.0 * value


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of ``TITLES``."""
    published = _mean(row["published_mean"], row["published_sem"], row["published_n"])
    if "measured_mean" not in row:
        return (row["method"], row["scenario"], row["verdict"], published, "", "", row["verdict"])
    measured = _mean(row["measured_mean"], row["measured_sem"], row["measured_n"])
    sems = "" if row["difference_in_sem"] is None else f"{row['difference_in_sem']:+.1f}"
    return (row["method"], row["scenario"], measured, published, f"{row['difference']:+.2f}", sems, row["verdict"])


def _mean(mean: float, sem: float | None, n: int) -> str:
    return f"{mean:.2f} ({n})" if sem is None else f"{mean:.2f} ± {sem:.2f} ({n})"


def summary(rows: Sequence[Row]) -> str:
    """``11 of 12 rows match; 1 above``."""
    counts = Counter(row["verdict"] for row in rows)
    others = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()) if verdict != MATCHES)
    return f"{counts[MATCHES]} of {len(rows)} rows match" + (f"; {others}" if others else "")


def notes(rows: Sequence[Row], changed: Mapping[str, Any]) -> list[str]:
    """What has to be said beside the numbers: repeats that diverged, and settings that are not the paper's.

    Args:
        changed: dotted keys that were overridden, of those that matter for what is measured.
    """
    said = [
        f"{row['method']}, {row['scenario']}: {count(row['n_diverged'], 'repeat')} diverged and "
        f"{'is' if row['n_diverged'] == 1 else 'are'} left out of the measured mean"
        for row in rows
        if row["n_diverged"]
    ]
    if changed:
        listed = ", ".join(f"{key}={show_value(value)}" for key, value in changed.items())
        said.append(f"Settings differ from the paper's: {listed}")
    return said


def terminal_table(rows: Sequence[Row]) -> Table:
    """The table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left", title="accuracy in %, mean ± SEM (repeats)")
    for title in TITLES:
        table.add_column(title, justify="left" if title in ("method", "scenario", "verdict") else "right", no_wrap=title != "method")
    for row in rows:
        *plain, verdict = map(escape, cells(row))
        table.add_row(*plain, f"[{STYLES.get(verdict, 'red')}]{verdict}[/]")
    return table


def page(name: str, rows: Sequence[Row], changed: Mapping[str, Any]) -> str:
    """The page reproduction.md."""
    lines = [f"# {name}: measured against published", "", f"{summary(rows)}.", ""]
    lines += [f"| {' | '.join((*TITLES, 'source'))} |", "| --- | --- | ---: | ---: | ---: | ---: | --- | --- |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells(row), row["source"])) + " |" for row in rows]
    lines += ["", "Accuracy in %, averaged over all tasks after the last one: mean ± standard error (repeats). Points are measured minus"]
    lines += [f"published; SEM is the same in combined standard errors. {RULE}"]
    for note in notes(rows, changed):
        lines += ["", f"{note}."]
    return "\n".join(lines) + "\n"
