"""Makes the report of a sweep: reads, measures, draws, writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from clray.errors import UserError
from clray.metrics import geometry as manifolds
from clray.report.labels import find_metric, metric
from clray.report.measure_store import MeasureStore
from clray.report.measures import N_KINDS, measure
from clray.report.output import ReportFiles
from clray.report.page import page
from clray.report.page_origin import origin_section
from clray.report.page_sweep import n_figures, sweep_section
from clray.report.page_trial import MOST_INNER_FIGURES, OUTER_FIGURES, ShownTrial, inside_section, trials_section
from clray.report.sweep_files import SweepFiles, open_sweep, with_metrics
from clray.trials.status import FINISHED


def build_report(
    folder: str, trial_ids: Sequence[str] = (), show: int = 3, metric_name: str = "acc", geometry: bool = False, quiet: bool = False
) -> str:
    """Writes ``report/`` of a sweep.

    Args:
        folder: of the sweep, or its URL.
        trial_ids: trials that get a section of their own (beginnings of ids); by default ``show`` of them.
        show: how many trials get one.
        metric_name: ranks trials.
        geometry: also measure the geometry of class manifolds.
        quiet: no progress bar.

    Returns:
        Where the page is.

    Raises:
        UserError: no sweep, no such trial or metric, a folder that cannot be written, or the solver for ``geometry`` is missing.
    """
    if geometry and not manifolds.is_available():
        raise UserError("--geometry needs quadprog: pip install 'clray[geometry]'")
    sweep = open_sweep(folder)
    for trial_id in trial_ids:
        sweep.trial(trial_id)  # a wrong one is an error before the work begins
    store = MeasureStore(sweep.storage)
    with progress_bar(quiet) as bar:
        finished = int(sweep.trials["status"].isin(FINISHED).sum())
        task = bar.add_task("metrics", total=finished)
        sweep = with_metrics(sweep, store, lambda: bar.advance(task))
        name = find_metric(metric_name, sweep.metrics) if sweep.metrics else metric_name
        chosen = [(trial_id, "chosen") for trial_id in trial_ids] or choose(sweep, name, show)
        shown = []
        for trial_id, why in chosen:
            files = sweep.trial(trial_id)
            curves = files.curves()
            measures = None
            if curves is not None:
                task = bar.add_task(f"measures of {files.trial_id}", total=N_KINDS * curves.n_tasks)
                measures = measure(files, curves, store, geometry, lambda task=task: bar.advance(task))  # type: ignore[misc]
            shown.append(ShownTrial(files, why, curves, measures))
        with_curves = sum(trial.curves is not None for trial in shown)
        task = bar.add_task("figures", total=n_figures(sweep) + with_curves * (OUTER_FIGURES + MOST_INNER_FIGURES) + 1)
        report = ReportFiles(sweep.storage, lambda: bar.advance(task))
        sections = [
            sweep_section(sweep, report, name, {trial.files.trial_id for trial in shown}),
            trials_section(sweep, report, shown),
            inside_section(sweep, report, shown),
            origin_section(sweep, report, shown, folder),
        ]
        place = report.page(page(sweep.name, sections))
        bar.update(task, total=bar.tasks[task].completed)
    return place


def choose(sweep: SweepFiles, name: str, show: int) -> list[tuple[str, str]]:
    """Trials that get a section of their own, and why: best, worst, and evenly between them by rank.

    Trials that are not finished come after those that are, the furthest first; then diverged and failed ones.
    """
    ranked = sweep.finished
    if f"{name}_mean" in ranked.columns:
        ranked = ranked[ranked[f"{name}_mean"].notna()].sort_values(f"{name}_mean", ascending=metric(name).better == "low", kind="stable")
    ids = list(ranked["trial_id"])
    n_shown = min(show, len(ids))
    places = sorted({round(place) for place in np.linspace(0, len(ids) - 1, n_shown)}) if n_shown else []
    title = metric(name).title
    reasons = {0: f"best {title}", len(ids) - 1: f"worst {title}"} if len(ids) > 1 else {}
    chosen = [(ids[place], reasons.get(place, f"rank {place + 1} of {len(ids)} by {title}" if len(ids) > 1 else "")) for place in places]
    others = sweep.trials[~sweep.trials["trial_id"].isin(ids)].sort_values("tasks", ascending=False, kind="stable", na_position="last")
    for row in others.to_dict("records"):
        if len(chosen) < show:
            chosen.append((row["trial_id"], row["status"]))
    return chosen


def progress_bar(quiet: bool) -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )
