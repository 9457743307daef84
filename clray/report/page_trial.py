"""Sections 2 and 3 of the page: single trials, what they could do and what happened inside their networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from clray.report.figures import drift as drift_figures
from clray.report.figures import trial as figures
from clray.report.figures.style import mean_and_spread
from clray.report.html import definitions, element, text
from clray.report.labels import count, metric, show_mean, show_settings
from clray.report.measures import Measures
from clray.report.output import ReportFiles
from clray.report.page_sweep import traceback_of
from clray.report.sweep_files import SweepFiles
from clray.report.trial_files import TrialCurves, TrialFiles

OUTER_FIGURES, MOST_INNER_FIGURES = 6, 6
SHOWN_METRICS = ("acc", "forgetting", "learning_acc", "fwt", "learning_time", "largest_dip", "expert_acc", "joint_acc")
REPEATS_NOTE = "Line and band: mean and standard error over repeats."


@dataclass(frozen=True)
class ShownTrial:
    """A trial with a section of its own.

    Attributes:
        why: why this one: best, worst, chosen ...
        curves: None where no task is committed or it cannot be read.
        measures: None where there are no curves.
    """

    files: TrialFiles
    why: str
    curves: TrialCurves | None
    measures: Measures | None


def trials_section(sweep: SweepFiles, files: ReportFiles, shown: list[ShownTrial]) -> str:
    """Section 2."""
    note = (
        f"{count(len(shown), 'trial')} of {len(sweep.trials)}. Others: <code>clray report DIR --trial ID</code>, or <code>--show N</code>."
    )
    parts = [_trial(sweep, files, trial) for trial in shown]
    return element("section", element("h2", "Single trials") + element("p", note) + "".join(parts), id="single")


def _heading(sweep: SweepFiles, trial: ShownTrial) -> str:
    row = sweep.trials.set_index("trial_id").loc[trial.files.trial_id]
    keys = sweep.varied
    settings = show_settings(keys, [row[f"param.{key}"] for key in keys])
    return text(trial.files.trial_id) + element("small", text(f" {trial.why}" + (f": {settings}" if settings else "")))


def _facts(sweep: SweepFiles, trial: ShownTrial) -> str:
    row = sweep.trials.set_index("trial_id").loc[trial.files.trial_id]
    status = str(row["status"])
    facts = {"status": element("span", status, class_=f"status {status}")}
    if trial.curves is not None:
        done, total = trial.curves.n_tasks, trial.files.n_tasks
        facts["tasks"] = str(total) if done == total else f"{done} of {total} committed"
        facts["repeats"] = f"{len(trial.curves.repeats)}" + _diverged(trial.curves)
    for name in SHOWN_METRICS:
        if name in sweep.metrics and pd.notna(row[f"{name}_mean"]):
            facts[metric(name).title] = show_mean(row[f"{name}_mean"], row[f"{name}_sem"])
    if isinstance(row["error"], str) and row["error"]:
        facts["error"] = text(row["error"])
    return definitions(facts)


def _diverged(curves: TrialCurves) -> str:
    n = int(curves.diverged.sum())
    return "" if not n else ", all diverged" if n == len(curves.diverged) else f", {n} diverged and left out of means"


def _trial(sweep: SweepFiles, files: ReportFiles, trial: ShownTrial) -> str:
    parts = [_facts(sweep, trial)]
    parts += [element("p", text(problem), class_="problem") for problem in trial.files.problems]
    if trial.curves is None:
        parts.append(element("p", "No task is committed, so there is nothing to plot.", class_="problem"))
        if trace := traceback_of(sweep, trial.files.trial_id):
            parts.append(element("details", element("summary", "end of the traceback") + element("pre", text(trace))))
    else:
        parts.append(element("div", "".join(_outer_figures(files, trial.files, trial.curves)), class_="figures"))
    body = element("summary", element("h3", _heading(sweep, trial), id=trial.files.trial_id)) + "".join(parts)
    return element("details", body, open="open", class_="trial")


def curve_table(curves: TrialCurves) -> pd.DataFrame:
    """Mean and standard error over repeats of accuracy and loss, a row a log point and evaluated task; step 0 included."""
    columns: dict[str, np.ndarray] = {}
    steps = np.concatenate([[0], curves.steps])
    grids = np.meshgrid(np.arange(curves.n_tasks), steps, curves.eval_tasks, indexing="ij")
    columns |= {name: grid.ravel() for name, grid in zip(("task", "step", "eval_task"), grids, strict=True)}
    for quantity in ("accuracy", "loss"):
        mean, error = mean_and_spread(figures.courses(curves, quantity), axis=2)
        columns |= {f"{quantity}_mean": mean.ravel(), f"{quantity}_sem": error.ravel()}
    return pd.DataFrame(columns)


def matrix_table(curves: TrialCurves) -> pd.DataFrame:
    """Mean and standard error over repeats of the accuracy matrix; task -1 is the untrained network."""
    rows = np.concatenate([curves.initial["accuracy"][None], curves.end["accuracy"]])[:, :, curves.kept]
    mean, error = mean_and_spread(rows, axis=2)
    grids = np.meshgrid(np.arange(-1, curves.n_tasks), curves.eval_tasks, indexing="ij")
    return pd.DataFrame({"task": grids[0].ravel(), "eval_task": grids[1].ravel(), "mean": mean.ravel(), "sem": error.ravel()})


def task_table(curves: TrialCurves) -> pd.DataFrame:
    """A row an evaluated task: accuracy after its own training, at the end, best earlier one, expert and joint, with SEM."""
    columns = np.flatnonzero(curves.eval_tasks < curves.n_tasks)
    tasks, end = curves.eval_tasks[columns], curves.end["accuracy"][:, :, curves.kept]
    series = {"own_end": end[tasks, columns], "final": end[-1][columns]}
    earlier = end[:-1].max(axis=0)[columns] if len(end) > 1 else np.full_like(series["final"], np.nan)
    past = (tasks < curves.n_tasks - 1)[:, None]
    series["forgetting"] = np.where(past, earlier - series["final"], np.nan)
    series["forgetting_from_first"] = np.where(past, series["own_end"] - series["final"], np.nan)
    if curves.expert_end is not None:
        series["expert"] = curves.expert_end["accuracy"][tasks][:, curves.kept]
    if curves.joint is not None:
        series["joint"] = curves.joint["accuracy"][columns][:, curves.kept]
    frame: dict[str, np.ndarray] = {"task": tasks}
    for name, values in series.items():
        frame[f"{name}_mean"], frame[f"{name}_sem"] = mean_and_spread(values, axis=1)
    return pd.DataFrame(frame)


def _outer_figures(files: ReportFiles, trial: TrialFiles, curves: TrialCurves) -> list[str]:
    name, chance = trial.trial_id, trial.chance
    by_task = task_table(curves)
    few = len(curves.eval_tasks) <= figures.MOST_ROWS
    note = f"{REPEATS_NOTE} Shaded: the task itself is trained." if few else "Mean over repeats."
    course = curve_table(curves)
    return [
        files.figure(
            f"{name}-accuracy",
            lambda: figures.curve_figure(curves, "accuracy", chance),
            f"Accuracy on every task at every log point. {note}",
            course,
        ),
        files.figure(f"{name}-loss", lambda: figures.curve_figure(curves, "loss", chance), f"Loss on every task. {note}", course),
        files.figure(
            f"{name}-seen",
            lambda: figures.seen_figure(curves, chance),
            "Mean accuracy over the tasks seen so far. Experts: a fresh network for each of these tasks.",
        ),
        files.figure(
            f"{name}-matrix",
            lambda: figures.matrix_figure(curves, chance),
            "Accuracy after each task. Framed: the task that was just trained. Mean over repeats.",
            matrix_table(curves),
        ),
        files.figure(
            f"{name}-forgetting",
            lambda: figures.forgetting_figure(curves),
            "Accuracy lost on each task, from the best it ever was and from the end of its own training. Bars: standard error.",
            by_task,
        ),
        files.figure(
            f"{name}-baselines",
            lambda: figures.baselines_figure(curves, chance),
            "Each task just after its training, at the end of the sequence, and by the baselines. Bars: standard error.",
            by_task,
        ),
    ]


def inside_section(sweep: SweepFiles, files: ReportFiles, shown: list[ShownTrial]) -> str:
    """Section 3."""
    parts = []
    for trial in shown:
        if trial.curves is not None and trial.measures is not None:
            made = _inner_figures(files, trial.files.trial_id, trial.curves, trial.measures)
            body = (
                element("div", "".join(made), class_="figures")
                if made
                else element("p", "Neither weights nor representations were logged.")
            )
            parts.append(element("details", element("summary", element("h3", _heading(sweep, trial))) + body, open="open", class_="trial"))
    note = (
        "Representations are the activations that enter the head, of the same samples of each task at all times. "
        "CKA is 1 where they are equal up to rotation and scale; with few samples and many units it stays well above 0 even for "
        "unrelated ones."
    )
    body = "".join(parts) or element("p", "Nothing is committed yet.")
    return element("section", element("h2", "Weights and representations") + element("p", note) + body, id="drift")


def _inner_figures(files: ReportFiles, name: str, curves: TrialCurves, found: Measures) -> list[str]:
    made = []
    weights, drift, plasticity, moments, geometry = found.weights, found.drift, found.plasticity, found.moments, found.geometry
    if weights is not None:
        made.append(
            files.figure(
                f"{name}-weights",
                lambda: drift_figures.weights_figure(weights, curves),
                f"Distance of each weight matrix to its initial value. {REPEATS_NOTE}",
                weights,
            )
        )
    if drift is not None and plasticity is not None and moments is not None:
        made += [
            files.figure(
                f"{name}-drift",
                lambda: drift_figures.drift_figure(drift, curves),
                f"How similar the representations of each task stay to those at the end of its own training. {REPEATS_NOTE}",
                drift,
            ),
            files.figure(
                f"{name}-since",
                lambda: drift_figures.since_figure(drift, curves),
                "Drift against the number of later tasks, mean over tasks. Principal angle: mean of the first three. Band: standard error.",
            ),
            files.figure(
                f"{name}-plasticity",
                lambda: drift_figures.plasticity_figure(plasticity, curves),
                f"The hidden layer over the samples of all tasks. Dormant: below 0.025 of the mean activity. {REPEATS_NOTE}",
                plasticity,
            ),
            files.figure(
                f"{name}-moments",
                lambda: drift_figures.moments_figure(moments, curves),
                "CKA of the representations of one task between any two ends of tasks (–: untrained). Mean over repeats.",
                moments,
            ),
        ]
    if geometry is not None:
        made.append(
            files.figure(
                f"{name}-geometry",
                lambda: drift_figures.geometry_figure(geometry, curves),
                f"Mean-field geometry of class manifolds, of tasks trained already and of those to come. {REPEATS_NOTE}",
                geometry,
            )
        )
    return made
