"""Figures of what happened inside the networks: weights, representations, units in use, geometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clray.report.figures.style import (
    BLUE,
    INK,
    MUTED,
    PAGE_INCHES,
    SEQUENTIAL,
    VERMILLION,
    band,
    label_ends,
    mean_and_spread,
    panels,
    sequence_colors,
    whole_ticks,
)
from clray.report.figures.trial import MOST_ROWS, mark_tasks
from clray.report.trial_files import TrialCurves

PLASTICITY = {
    "dormant_ratio": "dormant units (fraction)",
    "active_fraction": "active units (fraction)",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "feature_norm": "feature norm",
    "feature_variance": "feature variance",
}
SINCE = {
    "cka": ("CKA", 1.0),
    "class_cosine": ("cosine of class means", 1.0),
    "procrustes": ("Procrustes distance", 1.0),
    "principal_angle": ("principal angle (degrees)", 180 / np.pi),
}
MOST_PARAMETERS = 6


def global_steps(frame: pd.DataFrame, curves: TrialCurves) -> pd.Series:
    """Batches since the beginning of the sequence."""
    return frame["task"] * int(curves.steps[-1]) + frame["step"]


def _by_time(frame: pd.DataFrame, curves: TrialCurves, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batches, mean and standard error over the repeats that are kept."""
    kept = frame[frame["repeat"].isin(curves.repeats[curves.kept])]
    table = kept.assign(time=global_steps(kept, curves)).pivot_table(index="time", columns="repeat", values=column, dropna=False)
    mean, error = mean_and_spread(table.to_numpy(), axis=1)
    return table.index.to_numpy(), mean, error


def plasticity_figure(frame: pd.DataFrame, curves: TrialCurves) -> Figure:
    """Units in use, ranks and size of the hidden layer over all batches."""
    figure, axes = panels(3.6, 3, 2, sharex=True)
    for panel, (column, label) in zip(axes.flat, PLASTICITY.items(), strict=True):
        mark_tasks(panel, curves)
        band(panel, *_by_time(frame, curves, column), BLUE)
        panel.set_title(label, loc="left", pad=3)
        panel.set_ylim(bottom=0)
        panel.locator_params(axis="both", nbins=4)
    figure.supxlabel("batches trained", fontsize=7.5)
    return figure


def weights_figure(frame: pd.DataFrame, curves: TrialCurves) -> Figure:
    """Distance of each weight matrix to its initial value, relative to the norm it had."""
    matrices = frame[(frame["axes"] >= 2) & (frame["initial_norm"] > 0)]
    parameters = list(dict.fromkeys(matrices["parameter"]))
    parameters = parameters[: MOST_PARAMETERS - 1] + parameters[-1:] if len(parameters) > MOST_PARAMETERS else parameters
    figure, axes = panels(2.1)
    panel = axes[0, 0]
    mark_tasks(panel, curves, names=True)
    labels = []
    for parameter, color in zip(parameters, sequence_colors(len(parameters)), strict=True):
        rows = matrices[matrices["parameter"] == parameter]
        time, mean, error = _by_time(rows.assign(relative=rows["from_initial"] / rows["initial_norm"]), curves, "relative")
        band(panel, np.concatenate([[0], time]), np.concatenate([[0.0], mean]), np.concatenate([[0.0], error]), color)
        labels.append((float(mean[-1]), parameter.removesuffix(".kernel"), color))
    panel.set_ylim(bottom=0)
    panel.set_xlabel("batches trained")
    panel.set_ylabel("distance to initialisation\n(norms of the initial weights)")
    label_ends(panel, labels)
    return figure


def drift_figure(frame: pd.DataFrame, curves: TrialCurves) -> Figure:
    """Similarity of each task's representations to those at the end of its own training, over all later batches."""
    tasks = [int(task) for task in curves.eval_tasks if task < curves.n_tasks]
    if len(tasks) > MOST_ROWS:
        return _drift_image(frame, curves)
    figure, axes = panels(2.3)
    panel = axes[0, 0]
    mark_tasks(panel, curves, names=True)
    labels = []
    for task, color in zip(tasks, sequence_colors(len(tasks)), strict=True):
        rows = frame[(frame["eval_task"] == task) & (frame["task"] >= task)]
        time, mean, error = _by_time(rows, curves, "cka_own")
        later = time >= (task + 1) * int(curves.steps[-1])
        band(panel, time[later], mean[later], error[later], color)
        labels.append((float(mean[-1]), f"task {task}", color))
    panel.set_ylim(top=1.02)
    panel.set_xlabel("batches trained")
    panel.set_ylabel("CKA to the end of the own task")
    label_ends(panel, labels)
    return figure


def _drift_image(frame: pd.DataFrame, curves: TrialCurves) -> Figure:
    ends = frame[(frame["step"] == curves.steps[-1]) & frame["repeat"].isin(curves.repeats[curves.kept])]
    table = ends.pivot_table(index="eval_task", columns="task", values="cka_own")
    figure, axes = panels(3.0)
    _image(figure, axes[0, 0], table.to_numpy(), "CKA to the end of the own task")
    step = max(1, len(table) // 8)
    axes[0, 0].set_yticks(range(0, len(table), step), [str(task) for task in table.index[::step]])
    whole_ticks(axes[0, 0], "x", range(table.shape[1]), 8)
    axes[0, 0].set_xlabel("after training task")
    axes[0, 0].set_ylabel("evaluated task")
    return figure


def since_figure(frame: pd.DataFrame, curves: TrialCurves) -> Figure:
    """Four measures of drift against the number of tasks trained since, mean over tasks."""
    kept = frame[frame["repeat"].isin(curves.repeats[curves.kept]) & (frame["step"] == curves.steps[-1])]
    kept = kept.assign(since=kept["task"] - kept["eval_task"])
    kept = kept[kept["since"] >= 0]
    figure, axes = panels(2.8, 2, 2, sharex=True)
    for panel, (measure, (label, factor)) in zip(axes.flat, SINCE.items(), strict=True):
        # One value a repeat first: tasks of one repeat are not independent.
        table = kept.pivot_table(index="since", columns="repeat", values=f"{measure}_own", dropna=False)
        mean, error = mean_and_spread(table.to_numpy() * factor, axis=1)
        band(panel, table.index.to_numpy(), mean, error, VERMILLION, marker="o" if len(table) <= 20 else "", markersize=3)
        panel.set_title(label, loc="left", pad=3)
        panel.locator_params(axis="y", nbins=4)
        whole_ticks(panel, "x", [int(value) for value in table.index], 6)
    figure.supxlabel("tasks trained since the own task", fontsize=7.5)
    return figure


def moments_figure(frame: pd.DataFrame, curves: TrialCurves) -> Figure:
    """CKA of a task's representations between every two ends of tasks."""
    tasks = list(dict.fromkeys(frame["eval_task"]))
    figure, axes = panels(2.45, 1, len(tasks), width=PAGE_INCHES if len(tasks) > 1 else PAGE_INCHES / 2, sharey=True)
    kept = frame[frame["repeat"].isin(curves.repeats[curves.kept])]
    low = np.floor(10 * float(kept.groupby(["eval_task", "first", "second"])["cka"].mean().min())) / 10
    for index, (panel, task) in enumerate(zip(axes.flat, tasks, strict=True)):
        table = kept[kept["eval_task"] == task].pivot_table(index="first", columns="second", values="cka", dropna=False)
        values = table.to_numpy()
        values = np.where(np.isnan(values), values.T, values)
        last = index == len(tasks) - 1
        _image(figure, panel, values, "CKA" if last else "", min(low, 0.9) if np.isfinite(low) else 0.0)
        names = ["untrained" if moment < 0 else str(moment) for moment in table.index]
        _named_ticks(panel, names)
        panel.set_title(f"representations of task {task}", loc="left", pad=4)
        panel.set_xlabel("after training task")
        if index == 0:
            panel.set_ylabel("after training task")
    return figure


def _named_ticks(panel: Axes, names: Sequence[str]) -> None:
    step = max(1, -(-len(names) // 8))
    short = ["–" if name == "untrained" else name for name in names]
    panel.set_xticks(range(0, len(names), step), short[::step])
    panel.set_yticks(range(0, len(names), step), names[::step])


def _image(figure: Figure, panel: Axes, values: np.ndarray, label: str, low: float = 0.0) -> None:
    shown = panel.imshow(values, cmap=SEQUENTIAL, vmin=low, vmax=1.0, aspect="auto", interpolation="nearest")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    if max(values.shape) <= 8:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                text = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.0"
                color = "#ffffff" if (value - low) / (1 - low) < 0.55 else "#000000"
                panel.text(column, row, text, ha="center", va="center", fontsize=6, color=color)
    if label:
        bar = figure.colorbar(shown, ax=panel, pad=0.02, fraction=0.05)
        bar.set_label(label)
        bar.outline.set_visible(False)


def geometry_figure(frame: pd.DataFrame, curves: TrialCurves) -> Figure:
    """Capacity, radius and dimension of class manifolds of tasks trained already and of those to come."""
    figure, axes = panels(3.6, 3, 1, sharex=True)
    kept = frame[frame["repeat"].isin(curves.repeats[curves.kept])]
    titles = {"capacity": "capacity (manifolds per unit)", "radius": "radius (centroid distances)", "dimension": "dimension"}
    for panel, (column, title) in zip(axes.flat, titles.items(), strict=True):
        labels = []
        for name, color, rows in (
            ("trained", BLUE, kept[kept["eval_task"] <= kept["task"]]),
            ("to come", MUTED, kept[kept["eval_task"] > kept["task"]]),
        ):
            if len(rows):
                table = rows.pivot_table(index="task", columns="repeat", values=column)
                mean, error = mean_and_spread(table.to_numpy(), axis=1)
                band(panel, table.index.to_numpy(), mean, error, color, marker="o" if len(table) <= 20 else "", markersize=3)
                labels.append((float(mean[-1]), name, color))
        panel.set_title(title, loc="left", pad=3, color=INK)
        panel.locator_params(axis="y", nbins=4)
        label_ends(panel, labels, gap=0.2)
    whole_ticks(axes[-1, 0], "x", range(curves.n_tasks))
    axes[-1, 0].set_xlabel("after training task")
    return figure
