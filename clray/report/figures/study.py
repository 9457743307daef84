"""Figures of a study: how similar the gradients of memory sets are to that of everything, and what networks trained with them reach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from clray.report.figures.style import GRID, INK, MUTED, PAGE_INCHES, SERIES, panels, sequence_colors, spread
from clray.report.study_files import METRICS, WHOLE, StudyResults

MOST_PANELS = 8
LOW, HIGH = 0.16, 0.84
"""Quantiles that bands reach to: one standard deviation of a normal distribution to each side."""
LEGEND = f"line: median, band: {LOW:.0%} to {HIGH:.0%} of "


def method_colors(methods: Sequence[str]) -> dict[str, str]:
    """A colour a method."""
    colors = [*SERIES, INK][: len(methods)] if len(methods) <= len(SERIES) + 1 else sequence_colors(len(methods))
    return dict(zip(methods, colors, strict=True))


def similarity_figure(study: StudyResults, metric: str) -> Figure:
    """One metric over the fraction that is remembered: of the whole gradient, and of each layer below."""
    arrays = _layers(study)
    columns = min(4, max(len(arrays), 1))
    rows = -(-len(arrays) // columns)
    figure, axes = panels(2.5 + 1.45 * rows, 1 + rows, columns, PAGE_INCHES, gridspec_kw={"height_ratios": [1.7, *[1.0] * rows]})
    for unused in axes[0]:
        unused.remove()
    whole = figure.add_subplot(axes[0, 0].get_gridspec()[0, :])
    colors = method_colors(study.methods)
    _curves(whole, study.similarity[study.similarity["parameter"] == WHOLE], study, metric, colors, labels=True)
    whole.set_title("whole gradient", loc="left", pad=4)
    whole.set_title(LEGEND + "memory sets and networks", loc="right", pad=4, color=MUTED)
    whole.set_ylabel(METRICS[metric].replace(" gradient", "\ngradient"))
    shared: Axes | None = None
    for panel, name in zip(axes[1:].flat, arrays, strict=False):
        if shared is not None:
            panel.sharey(shared)
            panel.tick_params(labelleft=False)
        shared = shared or panel
        _curves(panel, study.similarity[study.similarity["parameter"] == name], study, metric, colors, labels=False)
        panel.set_title(name, loc="left", pad=3)
    for panel in axes[1:].flat[len(arrays) :]:
        panel.remove()
    figure.supxlabel("fraction of every past task in memory", fontsize=7.5)
    return figure


def downstream_figure(study: StudyResults, metric: str) -> Figure:
    """Accuracy on past tasks over the fraction, and over the similarity of the gradients."""
    assert study.joined is not None
    frame = study.joined[study.joined["parameter"] == WHOLE]
    methods = [method for method in study.methods if method in set(frame["method"])]
    colors = method_colors(study.methods)
    figure, axes = panels(2.7, 1, 2, PAGE_INCHES, sharey=True, gridspec_kw={"width_ratios": [1.35, 1.0]})
    left, right = axes[0]
    labels = []
    for method in methods:
        own = frame[frame["method"] == method].groupby(["fraction", "repeat"])["accuracy_past"].mean().unstack()
        labels.append((_band(left, own, colors[method]), method, colors[method]))
    _fraction_axis(left, sorted(frame["fraction"].unique()), room=0.36)
    left.set_title(LEGEND + "networks", loc="left", pad=4, color=MUTED)
    left.set_ylabel("accuracy on past tasks (fraction correct)")
    left.set_xlabel("fraction of every past task in memory")
    of_network = frame.groupby(["method", "fraction", "repeat"])[[metric, "accuracy_past"]].mean()  # over tasks
    points = of_network.groupby(["method", "fraction"]).median().reset_index()
    for method in methods:
        own = points[points["method"] == method].sort_values("fraction")
        size = 8 + 26 * np.linspace(0, 1, len(own))
        right.plot(own[metric], own["accuracy_past"], color=colors[method], linewidth=0.6, alpha=0.5)
        right.scatter(own[metric], own["accuracy_past"], s=size, color=colors[method], alpha=0.85, linewidths=0)
    if metric != "cosine":
        right.set_xscale("log")
    right.set_xlabel(METRICS[metric])
    rank = points[points["fraction"] < 1.0][[metric, "accuracy_past"]].rank().corr().iloc[0, 1]
    right.set_title("a point a method and fraction; larger: more", loc="left", pad=4, color=MUTED)
    if np.isfinite(rank):
        # Similar gradients go with high accuracy: the corner below is empty at the side where they are similar.
        x, side = (0.97, "right") if metric == "cosine" else (0.03, "left")
        right.text(x, 0.04, f"rank correlation {rank:.2f}", transform=right.transAxes, ha=side, va="bottom", color=MUTED, fontsize=7)
    _label_starts(left, labels, min(frame["fraction"]))
    return figure


def _layers(study: StudyResults) -> list[str]:
    """The arrays that get a panel: all but biases, where there are enough others."""
    found = study.parameters
    matrices = [name for name in found if not name.endswith("bias")]
    chosen = matrices or found
    return chosen if len(chosen) <= MOST_PANELS else chosen[: MOST_PANELS - 1] + chosen[-1:]


def _curves(axes: Axes, frame: pd.DataFrame, study: StudyResults, metric: str, colors: dict[str, str], labels: bool) -> None:
    if metric != "mse":
        axes.axhline(1.0, color=GRID, linewidth=0.8, zorder=0)
    named = []
    for method in study.methods:
        # Bands are over sets and ideal models; tasks are averaged first.
        own = frame[frame["method"] == method].groupby(["fraction", "sample", "repeat"])[metric].mean().unstack(["sample", "repeat"])
        own = own[own.index < 1.0] if metric == "mse" else own
        named.append((_band(axes, own, colors[method]), method, colors[method]))
    if metric != "cosine":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _fraction_axis(axes, sorted(frame["fraction"].unique()), room=0.24 if labels else 0.0)
    if labels:
        _label_starts(axes, named, min(frame["fraction"]))


def _band(axes: Axes, table: pd.DataFrame, color: str) -> float:
    """Median and band over the columns of a table by fraction; where the line begins."""
    x = table.index.to_numpy(float)
    middle = table.median(axis=1).to_numpy()  # a mean of squared differences can lie far above most of them, outside of the band
    axes.plot(x, middle, color=color, marker="o", markersize=2.2, linewidth=1.2, solid_capstyle="round", zorder=3)
    if table.shape[1] > 1:
        low, high = table.quantile(LOW, axis=1), table.quantile(HIGH, axis=1)
        axes.fill_between(x, low, high, color=color, alpha=0.08, linewidth=0, zorder=1)
        for edge in (low, high):
            axes.plot(x, edge, color=color, alpha=0.4, linewidth=0.4, zorder=2)
    return float(middle[0]) if len(middle) else float("nan")


def _fraction_axis(axes: Axes, fractions: Sequence[float], room: float) -> None:
    """A logarithmic axis of fractions.

    Args:
        room: at the left of the lines for their names, relative to the lines' width.
    """
    axes.set_xscale("log")
    low, high = min(fractions), max(fractions)
    axes.set_xlim(low / max(high / low, 4.0) ** max(room, 0.05), high * max(high / low, 4.0) ** 0.03)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    marks = [digit * 10.0**decade for decade in decades for digit in range(1, 10)]
    inside = [mark for mark in marks if low * 0.999 <= mark <= high * 1.001]
    tens = [mark for mark in inside if np.isclose(np.log10(mark) % 1.0, 0.0) or np.isclose(np.log10(mark) % 1.0, 1.0)]
    axes.xaxis.set_major_locator(FixedLocator(tens if len(tens) > 1 else list(fractions)))
    axes.xaxis.set_minor_locator(FixedLocator(inside))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label_starts(axes: Axes, labels: Sequence[tuple[float, str, str]], x: float) -> None:
    """Names lines at their left ends, where they are apart; names that would overlap move apart."""
    shown = [label for label in labels if np.isfinite(label[0])]
    axes.get_ylim()  # limits are brought up to date when they are asked for
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [float(np.clip(to_axes.transform((x, y))[1], 0.0, 1.0)) for y, _, _ in shown]
    left = float(to_axes.transform((x, 1.0))[0]) - 0.015
    for place, (_, text, color) in zip(spread(places, 0.075), shown, strict=True):
        axes.text(left, place, text, transform=axes.transAxes, color=color, ha="right", va="center", fontsize=7)
