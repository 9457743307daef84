"""The first section of the page: what was varied, what it did, which trials there are and which failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import pandas as pd

from clray.report.figures import sweep as figures
from clray.report.html import Cell, Column, element, plain_table, table, text
from clray.report.labels import SHOWN_FIRST, count, metric, short_names, show_mean, show_settings, show_value
from clray.report.output import ReportFiles
from clray.report.sweep_files import SweepFiles
from clray.store.layout import SweepLayout
from clray.trials.status import FINISHED, read_json

MOST_FACTORS = 8
MOST_CELLS = 60_000
MOST_SETTINGS = 6
"""Settings with a visible column in the trials table, those that most trials have: metrics should stay on the screen."""
REASONS = ("failed", "interrupted", "diverged")


def sweep_section(sweep: SweepFiles, files: ReportFiles, name: str, shown: Collection[str]) -> str:
    """Section 1.

    Args:
        name: the metric that ranks trials.
        shown: ids of the trials that have a section of their own.
    """
    parts = [element("p", _summary(sweep), class_="lead"), _varied(sweep, files)]
    parts += [_factor_figures(sweep, files, name), _best(sweep, files), _failures(sweep, files), _trials(sweep, files, name, shown)]
    return element("section", element("h2", "The sweep") + "".join(parts), id="sweep")


def n_figures(sweep: SweepFiles) -> int:
    """How many figures the section makes."""
    factors = sweep.factors[:MOST_FACTORS]
    return len(factors) + (len(factors) == 2) + bool(factors)


def _summary(sweep: SweepFiles) -> str:
    counts = Counter(sweep.trials["status"])
    listed = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    going = " It is still running: this page shows what was committed when it was made." if sweep.alive else ""
    return text(f"{count(len(sweep.trials), 'trial')}: {listed or 'none yet'}.{going}")


def _ranked_by(sweep: SweepFiles, name: str) -> list[str]:
    """The metrics of figures: the one that ranks trials, and forgetting beside it."""
    second = "acc" if name == "forgetting" else "forgetting"
    return [metric for metric in (name, second) if metric in sweep.metrics]


def _varied(sweep: SweepFiles, files: ReportFiles) -> str:
    if not sweep.varied:
        return element("p", "Nothing was varied.")
    rows = []
    for key in sweep.varied:
        values = [show_value(value) for value in figures.ordered_values(sweep.trials[f"param.{key}"])]
        n_missing = int(sweep.trials[f"param.{key}"].isna().sum())
        listed = ", ".join(values) if len(values) <= 12 else f"{len(values)} values from {values[0]} to {values[-1]}"
        rows.append((key, listed + (f"; not set in {count(n_missing, 'trial')}" if n_missing else "")))
    links = files.table("varied", pd.DataFrame(rows, columns=["setting", "values"]))
    return element("h3", "What was varied" + links) + plain_table(("setting", "values"), rows)


def _factor_figures(sweep: SweepFiles, files: ReportFiles, name: str) -> str:
    factors, names = sweep.factors[:MOST_FACTORS], _ranked_by(sweep, name)
    if not factors or not names:
        return ""
    made = []
    if len(factors) == 2:
        keys = figures.along_first(sweep, factors)
        caption = f"{metric(name).title} for both settings. Mean and standard error over repeats."
        frame = figures.compare_table(sweep, keys, [name])
        made.append(files.figure("compare", lambda: figures.compare_figure(sweep, keys, name), text(caption), frame))
    for key in factors:
        caption = f"Over {key}. Blue: mean and standard error over repeats, of all trials with that value. Grey: trials."
        frame = figures.factor_table(sweep, key, names)
        made.append(files.figure(f"over-{key}", lambda key=key: figures.factor_figure(sweep, key, names), text(caption), frame))  # type: ignore[misc]
    caption = f"A line is a trial, bright for good {metric(name).title}."
    made.append(
        files.figure("parallel", lambda: figures.parallel_figure(sweep.finished, factors[: figures.MOST_AXES], names), text(caption)),
    )
    return element("h3", "What each setting does") + element("div", "".join(made), class_="figures")


def best_table(sweep: SweepFiles) -> pd.DataFrame:
    """A row a metric: its best setting. Trials that differ only in seed are one setting."""
    keys = [key for key in sweep.varied if key != "seed"]
    names = [name for name in sweep.metrics if metric(name).better]
    settings = figures.compare_table(sweep, keys, names) if keys else pd.DataFrame()
    rows = []
    for name in names if len(settings) else []:
        means = settings[f"{name}_mean"]
        if means.notna().any():
            best = settings.loc[means.idxmax() if metric(name).better == "high" else means.idxmin()]
            row = {"metric": name, "mean": best[f"{name}_mean"], "sem": best[f"{name}_sem"], "trials": int(best["trials"])}
            rows.append(row | {key: best[key] for key in keys})
    return pd.DataFrame(rows, columns=["metric", "mean", "sem", "trials", *keys])


def _best(sweep: SweepFiles, files: ReportFiles) -> str:
    best = best_table(sweep)
    if not len(best):
        return ""
    keys = list(best.columns[4:])
    links = files.table("best", best)
    rows = []
    for row in best.to_dict("records"):
        known = metric(row["metric"])
        setting = show_settings(keys, [row[key] for key in keys])
        rows.append((known.title, known.better, show_mean(row["mean"], row["sem"]), setting, known.meaning))
    titles = ("metric", "wanted", "best mean ± SEM", "setting", "meaning")
    plain = [row for row, name in zip(rows, best["metric"], strict=True) if not name.startswith(("area_", "corrected_"))]
    body = plain_table(titles, plain)
    if len(plain) < len(rows):
        rest = plain_table(titles, [row for row in rows if row not in plain])
        body += element("details", element("summary", "areas under the curve, and corrected for chance") + rest)
    return element("h3", "Best setting by each metric" + links) + element("div", body, class_="best")


def _failures(sweep: SweepFiles, files: ReportFiles) -> str:
    bad = sweep.trials[sweep.trials["status"].isin(REASONS) | (sweep.trials["n_diverged"].fillna(0) > 0)]
    if not len(bad):
        return ""
    rows = []
    for row in bad.to_dict("records"):
        if row["status"] in FINISHED:
            reason = f"{count(int(row['n_diverged']), 'repeat')} diverged" + (", left out of means" if row["status"] == "done" else "")
        else:
            reason = row["error"] if isinstance(row["error"], str) else "stopped before it was complete; running the sweep again goes on"
        place = SweepLayout().trial(row["trial_id"]).attempts
        rows.append((row["trial_id"], row["status"], show_value(row["attempts"]), reason, f"{place}/"))
    titles = ("trial", "status", "attempts", "what happened", "logs")
    links = files.table("failures", pd.DataFrame(rows, columns=list(titles)))
    return element("h3", "Failures" + links) + plain_table(titles, rows)


def _trials(sweep: SweepFiles, files: ReportFiles, name: str, shown: Collection[str]) -> str:
    links = files.table("trials", sweep.trials)
    if len(sweep.repeats):
        links += element("span", " by repeat:", class_="files") + files.table("repeats", sweep.repeats)
    keys, names = sweep.varied, _table_metrics(sweep, name)
    common = sorted(keys, key=lambda key: -sweep.trials[f"param.{key}"].notna().sum())[:MOST_SETTINGS]
    columns = [Column("trial", "trial"), Column("status", "status")]
    columns += [Column(key, short, key, number=True, hidden=key not in common) for key, short in zip(keys, short_names(keys), strict=True)]
    first = {*SHOWN_FIRST, name}
    columns += [Column(m, metric(m).title, metric(m).meaning, True, m not in first, metric(m).better) for m in names]
    columns.append(Column("seconds", "seconds", "wall time of the last attempt", number=True))
    rows = []
    for row in sweep.trials.to_dict("records"):
        trial_id = row["trial_id"]
        link = element("a", trial_id, href=f"#{trial_id}") if trial_id in shown else trial_id
        done = "" if pd.isna(row["tasks"]) else f", {count(int(row['tasks']), 'task')}"
        cells = [Cell(link), Cell(element("span", row["status"], class_=f"status {row['status']}") + done)]
        cells += [Cell(text(show_value(row[f"param.{key}"])), _number(row[f"param.{key}"])) for key in keys]
        cells += [Cell(_mean_cell(row, m), _number(row[f"{m}_mean"])) for m in names]
        cells.append(Cell("" if pd.isna(row["seconds"]) else f"{row['seconds']:.1f}", _number(row["seconds"])))
        rows.append(cells)
    tools = _tools(sweep, columns, names)
    body = table(columns, rows, interactive=True, id="trials", class_="trials")
    return element("h3", "Trials" + links, id="all-trials") + tools + body


def _table_metrics(sweep: SweepFiles, name: str) -> list[str]:
    """All metrics, or of very large sweeps only the main ones: a browser has to hold the table."""
    if len(sweep.trials) * len(sweep.metrics) <= MOST_CELLS:
        return sweep.metrics
    return [metric for metric in sweep.metrics if metric in (*SHOWN_FIRST, name)]


def _mean_cell(row: dict[str, object], name: str) -> str:
    return show_mean(row[f"{name}_mean"], row[f"{name}_sem"]).replace(" ± ", " <small>±") + (
        "</small>" if pd.notna(row[f"{name}_sem"]) and pd.notna(row[f"{name}_mean"]) else ""
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not pd.isna(value) else None


def _tools(sweep: SweepFiles, columns: list[Column], names: list[str]) -> str:
    field = element("label", 'filter <input id="filter" type="search" placeholder="text, or learning_rate&lt;0.1 acc&gt;=0.7">')
    options = "".join(element("option", text(status), value=status) for status in dict.fromkeys(sweep.trials["status"]))
    status = element("label", f'status <select id="status"><option value="">all</option>{options}</select>')
    ranked = "".join(element("option", text(metric(m).title), value=m) for m in names if metric(m).better)
    best = element("label", f'best by <select id="best"><option value="">choose a metric</option>{ranked}</select>')
    boxes = "".join(
        element("label", f'<input type="checkbox" value="{text(c.key)}"{"" if c.hidden else " checked"}> {text(c.title)}')
        for c in columns[2:]
    )
    chooser = element("details", element("summary", "columns") + element("div", boxes, class_="boxes"), class_="chooser")
    return element("div", field + status + best + element("output", "", id="shown") + chooser, class_="tools")


def traceback_of(sweep: SweepFiles, trial_id: str) -> str:
    """The end of a failed trial's traceback, empty where there is none."""
    layout = SweepLayout().trial(trial_id)
    try:
        lines = sweep.storage.read_bytes(layout.traceback).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-30:])


def attempts_of(sweep: SweepFiles, trial_id: str) -> list[tuple[str, ...]]:
    """(attempt, host, start, end, outcome, error) of every attempt."""
    layout = SweepLayout().trial(trial_id)
    numbers = sorted(n for name in sweep.storage.list_names(layout.attempts) if (n := layout.attempt_of(name)) is not None)
    records = [(n, read_json(sweep.storage, layout.attempt(n)) or {}) for n in numbers]
    keys = ("host", "start", "end", "outcome", "error")
    return [(str(n), *(str(record.get(key) or "") for key in keys)) for n, record in records]
