"""One figure on request: what ``clray plot`` makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from clray.errors import UserError, did_you_mean
from clray.report.build import choose
from clray.report.figures import drift as drift_figures
from clray.report.figures import study as study_figures
from clray.report.figures import sweep as sweep_figures
from clray.report.figures import trial as trial_figures
from clray.report.figures.style import figure_bytes, note, styled
from clray.report.labels import count, find_metric
from clray.report.measure_store import MeasureStore
from clray.report.measures import measure
from clray.report.study_files import read_study
from clray.report.sweep_files import SweepFiles, open_sweep, with_metrics
from clray.report.tables import with_settings
from clray.report.trial_files import TrialCurves, TrialFiles

KINDS = {
    "accuracy": "accuracy on every task over all batches of one trial",
    "loss": "the same of the loss",
    "matrix": "accuracy after each task of one trial",
    "forgetting": "accuracy lost on each task of one trial",
    "baselines": "each task of one trial against expert and joint",
    "drift": "how similar the representations of one trial stay",
    "since": "four measures of that drift over the number of later tasks",
    "weights": "how far the weights of one trial moved",
    "plasticity": "units in use, ranks and size of the hidden layer of one trial",
    "compare": "a metric over one or two settings of the sweep",
    "parallel": "all settings and a metric of the sweep, a line a trial",
    "similarity": "of a study: gradients on memory sets against gradients on everything",
    "downstream": "of a study: what networks trained with the memory sets reach",
}
OVER_REPEATS = "mean and standard error over {}"
NOTES = {
    "matrix": "mean over {}",
    "baselines": OVER_REPEATS + "{}",
    "compare": "mean and standard error over repeats, of all trials with that value",
    "parallel": "mean over repeats",
}
"""What a figure that stands alone says of its numbers, where it is not ``OVER_REPEATS``."""
MOST_NAMED = 4
OF_SWEEP = ("compare", "parallel")
OF_STUDY = ("similarity", "downstream")
INNER = ("drift", "since", "weights", "plasticity")
FORMATS = ("png", "svg", "pdf")


def plot(folder: str, kind: str, trial_id: str | None, metric_name: str, by: Sequence[str], output: str | None) -> str:
    """Makes one figure and writes it.

    Args:
        kind: of ``KINDS``.
        trial_id: beginning of an id; by default the trial that is best by ``metric_name``.
        metric_name: of a study, which similarity is shown; by default the first one of its file.
        by: settings of ``compare``, at most two; by default the two that most trials have.
        output: a file ending in .png, .svg or .pdf; default ``<sweep>-<kind>.png`` here.

    Returns:
        Where it is.

    Raises:
        UserError: one of these is wrong, or the trial logged nothing that the figure could show.
    """
    if kind not in KINDS:
        raise UserError(f"no plot {kind!r}; {did_you_mean(kind, KINDS)}")
    sweep = open_sweep(folder)
    path = Path(output or f"{sweep.name}-{kind}.png")
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise UserError(f"{path}: a figure is written as one of {', '.join('.' + form for form in FORMATS)}")
    with styled():
        if kind in OF_SWEEP:
            figure, said = _sweep_figure(sweep, kind, metric_name, by)
        else:
            figure, said = _trial_figure(sweep, kind, trial_id, metric_name)
        note(figure, f"{sweep.name}: {said}")
    data = figure_bytes(figure, form)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return str(path)


def _sweep_figure(sweep: SweepFiles, kind: str, metric_name: str, by: Sequence[str]) -> tuple[Figure, str]:
    sweep = with_metrics(sweep, MeasureStore(sweep.storage))
    if not len(sweep.finished):
        raise UserError(f"{sweep.storage.display}: no trial is done yet; see clray status")
    name = find_metric(metric_name, sweep.metrics)
    sweep, keys = with_settings(sweep, by or _chosen(sweep, kind))
    if not keys:
        raise UserError(f"{sweep.storage.display}: nothing was varied; give a setting with --by")
    if kind == "compare":
        if len(keys) > 2:
            raise UserError(f"compare shows one or two settings, got {len(keys)}: {', '.join(keys)}")
        figure = sweep_figures.compare_figure(sweep, keys, name)
    else:
        figure = sweep_figures.parallel_figure(sweep.finished, keys, [name])
    left_out = [key for key in sweep.varied if key not in keys]
    named = left_out if len(left_out) <= MOST_NAMED + 1 else [*left_out[:MOST_NAMED], f"{len(left_out) - MOST_NAMED} more settings"]
    return figure, NOTES[kind] + (f"; also varied (--by): {', '.join(named)}" if left_out else "")


def _chosen(sweep: SweepFiles, kind: str) -> list[str]:
    """Settings to show where none are asked for: those that most trials have, and of ``compare`` a second one only if all of them do."""
    if kind == "parallel":
        return sweep.by_coverage[: sweep_figures.MOST_AXES]
    factors, finished = sweep.factors or sweep.by_coverage, sweep.finished
    return sweep_figures.along_first(sweep, [key for key in factors[:2] if key == factors[0] or finished[f"param.{key}"].notna().all()])


def _trial_figure(sweep: SweepFiles, kind: str, trial_id: str | None, metric_name: str) -> tuple[Figure, str]:
    ranked_by = "acc" if kind in OF_STUDY else metric_name
    if trial_id is None:
        chosen = choose(sweep, find_metric(ranked_by, sweep.metrics) if sweep.metrics else ranked_by, 1)
        if not chosen:
            raise UserError(f"{sweep.storage.display}: no trial has begun; see clray status")
        trial_id = chosen[0][0]
    trial = sweep.trial(trial_id)
    if kind in OF_STUDY:
        return _study_figure(trial, kind, metric_name), f"trial {trial.trial_id}"
    curves = trial.curves()
    if curves is None:
        reason = trial.problems[0] if trial.problems else "no task is committed"
        raise UserError(f"{trial.trial_id}: nothing to plot: {reason}")
    n_diverged = int(curves.diverged.sum())
    repeats = count(int(curves.kept.sum()), "repeat") + (f" ({n_diverged} diverged)" if n_diverged else "")
    none = [name for name, found in (("expert", curves.expert_end), ("joint", curves.joint)) if found is None]
    missing = f"; baselines that were not asked for: {', '.join(none)}" if none else ""
    of_means = kind in ("accuracy", "loss", "drift") and len(curves.eval_tasks) > trial_figures.MOST_ROWS
    said = NOTES.get("matrix" if of_means else kind, OVER_REPEATS).format(repeats, missing)
    return _figure_of_trial(sweep, trial, curves, kind), f"trial {trial.trial_id}; {said}"


def _figure_of_trial(sweep: SweepFiles, trial: TrialFiles, curves: TrialCurves, kind: str) -> Figure:
    if kind in INNER:
        return _inner_figure(sweep, trial, curves, kind)
    chance = trial.chance
    if kind in ("accuracy", "loss"):
        return trial_figures.curve_figure(curves, kind, chance)
    if kind == "matrix":
        return trial_figures.matrix_figure(curves, chance)
    return trial_figures.forgetting_figure(curves) if kind == "forgetting" else trial_figures.baselines_figure(curves, chance)


def _study_figure(trial: TrialFiles, kind: str, metric_name: str) -> Figure:
    study = read_study(trial)
    metric = study.metric(metric_name)
    shown = study.similarity if metric == "cosine" else study.similarity[study.similarity["fraction"] < 1.0]
    if not np.isfinite(shown[metric]).any():
        raise UserError(
            f"{trial.trial_id}: nothing to plot: {metric} is nowhere a number: all networks diverged, or 1 is the only fraction"
        )
    if kind == "similarity":
        return study_figures.similarity_figure(study, metric)
    if study.joined is None:
        raise UserError(f"{trial.trial_id}: no networks were trained with the memory sets yet (or the study says downstream: null)")
    return study_figures.downstream_figure(study, metric)


def _inner_figure(sweep: SweepFiles, trial: TrialFiles, curves: TrialCurves, kind: str) -> Figure:
    found = measure(trial, curves, MeasureStore(sweep.storage), False, lambda: None)
    frame = found.drift if kind in ("drift", "since") else getattr(found, kind)
    if frame is None:
        what = "logging.weights: false" if kind == "weights" else "logging.representations: none"
        raise UserError(f"{trial.trial_id}: nothing to plot: the experiment says {what}")
    return getattr(drift_figures, f"{kind}_figure")(frame, curves)
