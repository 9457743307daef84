"""Figures of one trial: what it could do at every moment, and how that compares to its baselines."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory

from clray.metrics.curves import with_starts
from clray.report.figures.style import (
    COLUMN_INCHES,
    EXPERT,
    FINAL,
    GRID,
    JOINT,
    LEARNER,
    MUTED,
    SEQUENTIAL,
    band,
    key_line,
    label_ends,
    mean_and_spread,
    panels,
    whole_ticks,
)
from clray.report.trial_files import TrialCurves

MOST_ROWS = 12
"""Evaluated tasks that get a panel each; more become rows of one image."""
MOST_NUMBERS = 12
"""Rows and columns of a matrix whose cells carry their number."""
MOST_BOUNDARIES, MOST_DUMBBELLS = 30, 16
"""Tasks up to which their boundaries are drawn, and up to which each has a row beside its baselines."""


def time_axis(curves: TrialCurves) -> np.ndarray:
    """(T', 1 + L) batches since the beginning of the sequence; column 0 is where a task begins."""
    starts = np.arange(curves.n_tasks) * curves.steps[-1]
    return starts[:, None] + np.concatenate([[0], curves.steps])


def courses(curves: TrialCurves, quantity: str) -> np.ndarray:
    """(T', 1 + L, R', E) of the repeats that means are taken over, with the value each task begins with."""
    full = with_starts(curves.logs[quantity], curves.end[quantity], curves.initial[quantity])
    return np.asarray(full[:, :, curves.kept])


def curve_figure(curves: TrialCurves, quantity: str, chance: float) -> Figure:
    """Accuracy or loss of every evaluated task over all batches, mean and standard error over repeats."""
    if len(curves.eval_tasks) > MOST_ROWS:
        return _curve_image(curves, quantity, chance)
    x = time_axis(curves)
    mean, error = mean_and_spread(courses(curves, quantity), axis=2)
    figure, axes = panels(0.75 + 0.44 * len(curves.eval_tasks), len(curves.eval_tasks), sharex=True, sharey=True)
    entries = [("-", "learner", LEARNER)]
    for column, task in enumerate(curves.eval_tasks):
        panel = axes[column, 0]
        mark_tasks(panel, curves, int(task), names=column == 0)
        if quantity == "accuracy":
            panel.axhline(chance, color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
        if curves.joint is not None:
            panel.axhline(np.nanmean(curves.joint[quantity][column][curves.kept]), color=JOINT, linewidth=0.9, linestyle=":")
        if curves.expert is not None and task < curves.n_tasks:
            level, _ = mean_and_spread(curves.expert[quantity][task][:, curves.kept], axis=1)
            panel.plot(x[task, 1:], level, color=EXPERT, linestyle="--", linewidth=1.0)
        band(panel, x.ravel(), mean[..., column].ravel(), error[..., column].ravel(), LEARNER)
        panel.set_ylabel(f"task {task}", rotation=0, ha="right", va="center")
    entries += [("--", "expert", EXPERT)] if curves.expert is not None else []
    entries += [(":", "joint", JOINT)] if curves.joint is not None else []
    entries += [(":", "chance", MUTED)] if quantity == "accuracy" else []
    _value_axis(axes[0, 0], quantity, chance, mean)
    axes[-1, 0].set_xlabel("batches trained")
    figure.supylabel("accuracy" if quantity == "accuracy" else "cross-entropy (nats)", fontsize=7.5)
    key_line(figure, entries)
    return figure


def mark_tasks(axes: Axes, curves: TrialCurves, own: int | None = None, names: bool = False) -> None:
    """Lines at task boundaries, the own training time of a task shaded, and the tasks' numbers on top."""
    span = curves.steps[-1]
    for task in range(1, curves.n_tasks if curves.n_tasks <= MOST_BOUNDARIES else 0):
        axes.axvline(task * span, color=GRID, linewidth=0.7, zorder=0)
    if own is not None and own < curves.n_tasks:
        axes.axvspan(own * span, (own + 1) * span, color=LEARNER, alpha=0.12, linewidth=0, zorder=0)
    axes.set_xlim(0, curves.n_tasks * span)
    if names:
        place = blended_transform_factory(axes.transData, axes.transAxes)
        step = max(1, -(-curves.n_tasks // MOST_ROWS))
        axes.text(-0.02, 1.06, "training", transform=axes.transAxes, ha="right", va="bottom", fontsize=6.5, color=MUTED)
        for task in range(0, curves.n_tasks, step):
            axes.text((task + 0.5) * span, 1.06, str(task), transform=place, ha="center", va="bottom", fontsize=6.5, color=MUTED)


def _value_axis(axes: Axes, quantity: str, chance: float, mean: np.ndarray) -> None:
    if quantity == "accuracy":
        low = min(chance, float(np.nanmin(mean, initial=chance))) - 0.03
        axes.set_ylim(max(low, -0.03), 1.03)
        axes.set_yticks([chance, 1.0])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_ylim())))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def log_ticks(low: float, high: float) -> list[float]:
    """Two ticks of a logarithmic axis, far apart: powers of ten, or else 1, 2 and 5 times such, or else what the ends are near.

    Args:
        low: above 0.
        high: above ``low``.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        inside = [float(f"{factor}e{power}") for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(inside) >= 2:
            return [inside[0], inside[-1]]
    digits = 2 + math.ceil(math.log10(high / (high - low)))
    return [float(f"{low * (high / low) ** share:.{digits}g}") for share in (0.1, 0.9)]


def _floor(values: np.ndarray, chance: float) -> float:
    """Where the colours of accuracies begin: at the smallest or at chance, the tenth below."""
    return float(np.floor(10 * min(chance, float(np.nanmin(values, initial=chance)))) / 10)


def _curve_image(curves: TrialCurves, quantity: str, chance: float) -> Figure:
    mean, _ = mean_and_spread(courses(curves, quantity), axis=2)
    n_evaluated = len(curves.eval_tasks)
    values = mean[:, 1:].reshape(-1, n_evaluated).T
    figure, axes = panels(3.0)
    panel = axes[0, 0]
    last = curves.n_tasks * curves.steps[-1]
    limits = {"vmin": _floor(values, chance), "vmax": 1.0} if quantity == "accuracy" else {}
    shown = panel.imshow(
        values, aspect="auto", cmap=SEQUENTIAL, extent=(0, last, n_evaluated - 0.5, -0.5), interpolation="nearest", **limits
    )
    ticks = np.arange(0, n_evaluated, max(1, n_evaluated // 8))
    panel.set_yticks(ticks, [str(curves.eval_tasks[tick]) for tick in ticks])
    panel.set_xlabel("batches trained")
    panel.set_ylabel("evaluated task")
    bar = figure.colorbar(shown, ax=panel, pad=0.02, fraction=0.05)
    bar.set_label("accuracy" if quantity == "accuracy" else "cross-entropy (nats)")
    bar.outline.set_visible(False)
    return figure


def seen_figure(curves: TrialCurves, chance: float) -> Figure:
    """Mean accuracy over the tasks seen so far, against what experts and the joint network reach on the same tasks."""
    x = time_axis(curves)
    learner = courses(curves, "accuracy")
    figure, axes = panels(2.1)
    panel = axes[0, 0]
    mark_tasks(panel, curves, names=True)
    by_task, labels = [], []
    for task in range(curves.n_tasks):
        seen = curves.eval_tasks <= task
        by_task.append(learner[task][:, :, seen].mean(axis=2) if seen.any() else np.full(learner.shape[1:3], np.nan))
    mean, error = mean_and_spread(np.stack(by_task), axis=2)
    panel.axhline(chance, color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
    labels.append((chance, "chance", MUTED))
    for task in range(curves.n_tasks):
        band(panel, x[task], mean[task], error[task], LEARNER)
    labels.append((mean[-1, -1], "learner", LEARNER))
    own = curves.eval_tasks < curves.n_tasks
    if curves.expert_end is not None:
        expert = np.array([np.nanmean(curves.expert_end["accuracy"][: task + 1][:, curves.kept]) for task in range(curves.n_tasks)])
        panel.step([*x[:, 0], x[-1, -1]], [*expert, expert[-1]], where="post", color=EXPERT, linestyle="--")
        labels.append((expert[-1], "experts", EXPERT))
    if curves.joint is not None and own.any():
        joint = float(np.nanmean(curves.joint["accuracy"][own][:, curves.kept]))
        panel.axhline(joint, color=JOINT, linestyle=":")
        labels.append((joint, "joint", JOINT))
    panel.set_ylim(top=1.02)
    panel.set_xlabel("batches trained")
    panel.set_ylabel("mean accuracy, tasks so far")
    label_ends(panel, labels)
    return figure


def matrix_figure(curves: TrialCurves, chance: float) -> Figure:
    """The accuracy matrix: rows after training a task, columns evaluated tasks, mean over repeats."""
    rows = np.concatenate([curves.initial["accuracy"][None], curves.end["accuracy"]])[:, :, curves.kept]
    values, _ = mean_and_spread(rows, axis=2)
    n_rows, n_columns = values.shape
    figure, axes = panels(min(3.6, 0.9 + 0.3 * max(n_rows, 5)))
    panel = axes[0, 0]
    low = _floor(values, chance)
    shown = panel.imshow(values, cmap=SEQUENTIAL, vmin=low, vmax=1.0, aspect="auto", interpolation="nearest")
    names = ["untrained", *(str(task) for task in range(n_rows - 1))]
    step_y, step_x = max(1, -(-n_rows // 12)), max(1, -(-n_columns // 12))
    panel.set_yticks(range(0, n_rows, step_y), names[::step_y])
    panel.set_xticks(range(0, n_columns, step_x), [str(task) for task in curves.eval_tasks[::step_x]])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_xlabel("evaluated task")
    panel.set_ylabel("after training task")
    if max(n_rows, n_columns) <= MOST_NUMBERS:
        _number_cells(panel, values, low)
        for column, task in enumerate(curves.eval_tasks):
            if task < n_rows - 1:
                panel.add_patch(Rectangle((column - 0.48, task + 0.52), 0.96, 0.96, fill=False, edgecolor="#000000", linewidth=1.0))
    bar = figure.colorbar(shown, ax=panel, pad=0.02, fraction=0.05)
    bar.set_label("accuracy")
    bar.outline.set_visible(False)
    return figure


def _number_cells(axes: Axes, values: np.ndarray, low: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = (value - low) / (1 - low) < 0.55
            text = f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.0"
            axes.text(column, row, text, ha="center", va="center", color="#ffffff" if dark else "#000000", fontsize=7)


def forgetting_figure(curves: TrialCurves) -> Figure:
    """Accuracy lost on each task by the end, from its best and from its own end; mean and standard error over repeats."""
    end = curves.end["accuracy"][:, :, curves.kept]
    columns = [c for c, task in enumerate(curves.eval_tasks) if task < curves.n_tasks - 1]
    tasks = curves.eval_tasks[columns]
    figure, axes = panels(2.0)
    panel = axes[0, 0]
    panel.axhline(0, color=MUTED, linewidth=0.7)
    if len(columns):
        best = end[:-1].max(axis=0)[columns] - end[-1][columns]
        own = end[tasks, columns] - end[-1][columns]
        for values, shift, color, marker in ((best, -0.08, FINAL, "o"), (own, 0.08, LEARNER, "s")):
            mean, error = mean_and_spread(values, axis=1)
            panel.errorbar(tasks + shift, mean, error, color=color, fmt=marker, elinewidth=1.0)
        whole_ticks(panel, "x", [int(task) for task in tasks])
        panel.set_xlim(min(tasks) - 0.5, max(tasks) + 0.5)
    else:
        panel.text(0.5, 0.5, "one task is trained so far", transform=panel.transAxes, ha="center", color=MUTED)
    panel.set_xlabel("task")
    panel.set_ylabel("accuracy lost by the end")
    key_line(figure, [("o", "from its best", FINAL), ("s", "from its own end", LEARNER)])
    return figure


def baselines_figure(curves: TrialCurves, chance: float) -> Figure:
    """Each task after its own training, at the end of the sequence, and by its baselines; means with standard errors."""
    columns = np.flatnonzero(curves.eval_tasks < curves.n_tasks)
    tasks = curves.eval_tasks[columns]
    end = curves.end["accuracy"][:, :, curves.kept]
    series = [("after its own training", LEARNER, "o", end[tasks, columns]), ("at the end", FINAL, "D", end[-1][columns])]
    if curves.expert_end is not None:
        series.append(("expert", EXPERT, "^", curves.expert_end["accuracy"][tasks][:, curves.kept]))
    if curves.joint is not None:
        series.append(("joint", JOINT, "s", curves.joint["accuracy"][columns][:, curves.kept]))
    if len(tasks) > MOST_DUMBBELLS:
        return _baseline_lines(tasks, series, chance)
    figure, axes = panels(0.8 + 0.28 * len(tasks), width=COLUMN_INCHES)
    panel = axes[0, 0]
    panel.axvline(chance, color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
    panel.text(chance, 1.0, " chance", transform=blended_transform_factory(panel.transData, panel.transAxes), color=MUTED, fontsize=6.5)
    places = np.arange(len(tasks))
    before, after = (mean_and_spread(values, axis=1)[0] for _, _, _, values in series[:2])
    panel.hlines(places, before, after, color=GRID, linewidth=2.5, zorder=0)
    for index, (_, color, marker, values) in enumerate(series):
        mean, error = mean_and_spread(values, axis=1)
        shift = 0.0 if index < 2 else 0.22 * (index - 1)
        panel.errorbar(mean, places + shift, xerr=error, color=color, fmt=marker, elinewidth=1.0, markersize=3.5)
    panel.set_yticks(places, [f"task {task}" for task in tasks])
    panel.set_ylim(len(tasks) - 0.3, -0.5)
    panel.set_xlim(right=1.02)
    panel.set_xlabel("accuracy")
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    key_line(figure, [(marker, name, color) for name, color, marker, _ in series])
    return figure


def _baseline_lines(tasks: np.ndarray, series: list[tuple[str, str, str, np.ndarray]], chance: float) -> Figure:
    """The same for many tasks: a line a series over the tasks."""
    figure, axes = panels(2.4)
    panel = axes[0, 0]
    panel.axhline(chance, color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
    for _, color, _, values in series:
        band(panel, tasks, *mean_and_spread(values, axis=1), color)
    whole_ticks(panel, "x", [int(task) for task in tasks])
    panel.set_xlabel("task")
    panel.set_ylabel("accuracy")
    key_line(figure, [("-", name, color) for name, color, _, _ in series])
    return figure
