"""Figures of a whole sweep: what each setting does to the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from clray.report.figures.style import BLUE, COLUMN_INCHES, INK, MUTED, PAGE_INCHES, PAPER, SERIES, label_ends, panels
from clray.report.labels import metric, short_names, show_value
from clray.report.sweep_files import SweepFiles

MOST_TICKS = 8
MOST_LINES = 6
"""Values of a second setting that get a line each."""
MOST_PHASES = 8
MOST_AXES = 6
"""Settings of ``parallel_figure`` that are chosen without being asked for."""


def ordered_values(column: pd.Series) -> list[Any]:
    """Distinct values of a setting: numbers by size, text in the order of the trials; missing ones left out."""
    values = list(dict.fromkeys(value for value in column if not pd.isna(value)))
    return sorted(values) if all(_is_number(value) for value in values) else values


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mark(values: Sequence[Any]) -> str:
    """Dots, and lines between them where the values have an order."""
    return "o-" if all(_is_number(value) for value in values) else "o"


def _scale(values: Sequence[Any]) -> str:
    """How an axis of a setting is drawn: few values at equal distances by name, many numbers linear or as logarithms."""
    numbers = len(values) > 0 and all(_is_number(value) for value in values)
    if not numbers or len(values) <= MOST_TICKS:
        return "names"
    return "log" if min(values) > 0 and max(values) / min(values) >= 30 else "linear"


def places(column: pd.Series, values: Sequence[Any]) -> np.ndarray:
    """Where each trial stands on the axis of a setting; NaN for a missing value."""
    if _scale(values) == "names":
        index = {value: place for place, value in enumerate(values)}
        return np.array([index.get(value, np.nan) if not pd.isna(value) else np.nan for value in column], np.float64)
    return np.asarray(column.astype(float))


def factor_axis(axes: Axes, key: str, values: Sequence[Any]) -> None:
    """Ticks, scale and label of the horizontal axis of a setting."""
    scale = _scale(values)
    if scale == "names":
        names = [show_value(value) for value in values]
        crowded = sum(map(len, names)) > 34
        axes.set_xticks(range(len(values)), names, rotation=35 if crowded else 0, ha="right" if crowded else "center")
        axes.set_xlim(-0.4, len(values) - 0.6)
    else:
        axes.set_xscale(scale)
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(key)


def factor_table(sweep: SweepFiles, key: str, names: Sequence[str]) -> pd.DataFrame:
    """A row a value of one setting: its number of trials, and mean and standard error of metrics (``grouped``).

    Many numbers become at most ``MOST_TICKS`` groups of about as many trials each, named by their median.
    """
    trials = sweep.finished
    column = trials[f"param.{key}"]
    values = ordered_values(column)
    if _scale(values) == "names":
        groups = column.map({value: place for place, value in enumerate(values)})
        labels: list[Any] = values
    else:
        numbers = column.astype(float)
        ranks = numbers.rank(method="first") - 1
        groups = (ranks * min(MOST_TICKS, max(len(trials) // 4, 1)) // numbers.notna().sum()).astype(float)
        labels = list(numbers.groupby(groups).median())
    table = grouped(sweep, groups, names)
    table.insert(0, key, [labels[int(group)] for group in table.index])
    return table.reset_index(drop=True)


def grouped(sweep: SweepFiles, groups: pd.Series, names: Sequence[str]) -> pd.DataFrame:
    """Mean and standard error of metrics over groups of finished trials.

    Trials of one sweep share their repeats: repeat 3 has the same classes and the same order in all of them. So the trials
    of a group are averaged for each repeat (and seed) first, and the error is that over repeats. It says how far the mean
    would move with other repeats, not how different the trials are.

    Args:
        groups: a number for each row of ``sweep.finished``; trials without one are left out.

    Returns:
        A row a group, by number: ``trials``, ``<metric>_mean``, ``<metric>_sem``.
    """
    trials = sweep.finished.assign(group=groups).dropna(subset=["group"])
    blocks = ["group", *(["param.seed"] if "param.seed" in trials.columns else []), "repeat"]
    rows = sweep.repeats.merge(trials[["trial_id", *blocks[:-1]]], on="trial_id")
    for name in names:
        if name not in rows.columns:
            rows[name] = np.nan
    by_group = rows.groupby(blocks)[list(names)].mean().groupby("group")
    means, errors = by_group.mean(), by_group.sem()
    table = trials.groupby("group").size().to_frame("trials")
    for name in names:
        table[f"{name}_mean"], table[f"{name}_sem"] = means[name], errors[name]
    return table


def factor_figure(sweep: SweepFiles, key: str, names: Sequence[str]) -> Figure:
    """Metrics over one setting: a dot a trial, mean and standard error over repeats of all trials with that value."""
    trials = sweep.finished
    values = ordered_values(trials[f"param.{key}"])
    few = _scale(values) == "names"
    table = factor_table(sweep, key, names)
    x = places(trials[f"param.{key}"], values)
    at = np.arange(len(values)) if few else table[key].to_numpy()
    if few:
        x = x + np.random.default_rng(0).uniform(-0.09, 0.09, len(x))
    figure, axes = panels(1.15 + 1.15 * len(names), len(names), sharex=True)
    for panel, name in zip(axes.flat, names, strict=True):
        if (table["trials"] > 1).any():
            panel.scatter(x, trials[f"{name}_mean"], s=9, color=MUTED, alpha=0.45, linewidths=0, zorder=1)
        panel.errorbar(at, table[f"{name}_mean"], table[f"{name}_sem"].fillna(0), color=BLUE, fmt=_mark(values), elinewidth=1.4, zorder=3)
        panel.set_title(metric(name).axis, loc="left", pad=3)
        panel.locator_params(axis="y", nbins=5)
        panel.grid(axis="y")
    factor_axis(axes[-1, 0], key, values)
    return figure


def along_first(sweep: SweepFiles, keys: Sequence[str]) -> list[str]:
    """Keys for ``compare_figure``: the setting with more values goes along the axis, and each value of the other gets a line."""
    finished = sweep.finished
    return sorted(keys, key=lambda key: (-finished[f"param.{key}"].nunique(), finished[f"param.{key}"].dtype == object))


def compare_table(sweep: SweepFiles, keys: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """A row a combination of settings: number of trials, mean and standard error of metrics (``grouped``).

    Without keys one row over all trials.
    """
    trials = sweep.finished
    columns = [f"param.{key}" for key in keys]
    groups = trials.groupby(columns, sort=False, dropna=False).ngroup() if keys else pd.Series(0, index=trials.index)
    table = grouped(sweep, groups, names)
    first = trials.assign(group=groups).drop_duplicates("group").set_index("group")
    for place, (key, column) in enumerate(zip(keys, columns, strict=True)):
        table.insert(place, key, first.loc[table.index, column])
    return table.reset_index(drop=True)


def compare_figure(sweep: SweepFiles, keys: Sequence[str], name: str) -> Figure:
    """A metric over one setting, with a line for each value of a second one; without lines where the setting has no order."""
    table = compare_table(sweep, keys, [name])
    values = ordered_values(table[keys[0]])
    figure, axes = panels(2.3)
    panel = axes[0, 0]
    labels: list[tuple[float, str, str]] = []
    groups: list[tuple[Any, pd.DataFrame]] = [(None, table)]
    if len(keys) > 1:
        groups = [(value, table[table[keys[1]] == value]) for value in ordered_values(table[keys[1]])[:MOST_LINES]]
    for index, (value, rows) in enumerate(groups):
        x = places(rows[keys[0]], values)
        order = np.argsort(x)
        rows, x = rows.iloc[order], x[order]
        shift = 0.03 * (index - (len(groups) - 1) / 2) if _scale(values) == "names" else 0.0
        mean = rows[f"{name}_mean"].to_numpy()
        panel.errorbar(x + shift, mean, rows[f"{name}_sem"].fillna(0), color=SERIES[index], fmt=_mark(values), elinewidth=1.2)
        if value is not None and len(mean):
            labels.append((float(mean[-1]), show_value(value), SERIES[index]))
    factor_axis(panel, keys[0], values)
    panel.set_ylabel(metric(name).axis)
    panel.grid(axis="y")
    if labels:
        label_ends(panel, labels)
        panel.text(1.02, 1.05, short_names([keys[1]])[0], transform=panel.transAxes, color=MUTED, fontsize=7, va="bottom")
    return figure


def parallel_figure(trials: pd.DataFrame, keys: Sequence[str], names: Sequence[str]) -> Figure:
    """A line a trial across all settings and metrics, coloured by the first metric; the best on top."""
    color_by = trials[f"{names[0]}_mean"]
    order = np.argsort(color_by.to_numpy(), kind="stable")
    if metric(names[0]).better == "low":
        order = order[::-1]
    columns: list[np.ndarray] = []
    scales: list[tuple[list[str], list[float]]] = []
    for key in keys:
        values = ordered_values(trials[f"param.{key}"])
        at = places(trials[f"param.{key}"], values)
        scale = _scale(values)
        columns.append(_unit(np.log10(at) if scale == "log" else at, *_limits(at, scale)))
        scales.append(_ticks(values, at, scale))
    for name in names:
        at = trials[f"{name}_mean"].to_numpy()
        columns.append(_unit(at, *_limits(at, "linear")))
        scales.append(_ticks([0.0] * (MOST_TICKS + 1), at, "linear"))
    titles = [*short_names(list(keys)), *(metric(name).title for name in names)]
    width = max(COLUMN_INCHES, min(PAGE_INCHES, 1.2 * len(columns) + 0.8))
    figure, axes = panels(2.9, width=width)
    panel = axes[0, 0]
    norm = Normalize(np.nanmin(color_by), np.nanmax(color_by)) if color_by.notna().any() else Normalize(0, 1)
    _draw_lines(panel, np.column_stack(columns)[order], color_by.to_numpy()[order], norm)
    panel.axis("off")
    panel.set_xlim(-0.1, len(columns) - 0.5)
    panel.set_ylim(-0.08, 1.08)
    halo = {"facecolor": PAPER, "alpha": 0.8, "edgecolor": "none", "pad": 0.6}
    for place, (title, (texts, heights)) in enumerate(zip(titles, scales, strict=True)):
        panel.axvline(place, color=MUTED, linewidth=0.7, ymin=0.07, ymax=0.93)
        panel.text(place, 1.07, title.replace(".", ".\n"), ha="left" if place == 0 else "center", va="bottom", fontsize=7.5, color=INK)
        for text, height in zip(texts, heights, strict=True):
            panel.text(place + 0.03, height, text, ha="left", va="center", fontsize=6.5, color=INK, bbox=halo, zorder=5)
    return figure


def _draw_lines(panel: Axes, heights: np.ndarray, colors: np.ndarray, norm: Normalize) -> None:
    alpha = float(np.clip(30 / max(len(heights), 1), 0.35, 0.9))
    for line, value in zip(heights, colors, strict=True):
        if np.isfinite(value):
            panel.plot(range(len(line)), line, color=colormaps["viridis"](0.88 * norm(value)), alpha=alpha, linewidth=1.0)


def _limits(at: np.ndarray, scale: str) -> tuple[float, float]:
    given = at[np.isfinite(at)]
    if not len(given):
        return 0.0, 1.0
    low, high = float(given.min()), float(given.max())
    return (float(np.log10(low)), float(np.log10(high))) if scale == "log" else (low, high)


def _unit(at: np.ndarray, low: float, high: float) -> np.ndarray:
    """To [0, 1]; a missing setting goes below the axis, so that its trials still have a line."""
    unit = np.full(at.shape, 0.5) if high == low else (at - low) / (high - low)
    return np.where(np.isfinite(at), unit, -0.06)


def _ticks(values: Sequence[Any], at: np.ndarray, scale: str) -> tuple[list[str], list[float]]:
    if scale == "names":
        span = max(len(values) - 1, 1)
        return [show_value(value) for value in values], [place / span if len(values) > 1 else 0.5 for place in range(len(values))]
    low, high = _limits(at, scale)
    marks = np.linspace(low, high, 5) if high > low else np.array([low])
    numbers = 10**marks if scale == "log" else marks
    return [f"{number:.3g}" for number in numbers], [float(h) for h in _unit(marks, low, high)]


def phases_figure(phases: Mapping[str, Mapping[str, float]]) -> Figure:
    """Seconds by phase: the median over trials, and every trial as a dot."""
    names = list(dict.fromkeys(phase for trial in phases.values() for phase in trial))
    by_phase = {name: np.array([trial[name] for trial in phases.values() if name in trial]) for name in names}
    ranked = sorted(names, key=lambda name: -float(np.median(by_phase[name])))[:MOST_PHASES]
    figure, axes = panels(0.7 + 0.24 * max(len(ranked), 2))
    panel = axes[0, 0]
    for place, name in enumerate(ranked):
        seconds = by_phase[name]
        panel.barh(place, np.median(seconds), color=BLUE, height=0.55)
        if len(seconds) > 1:
            panel.scatter(seconds, np.full(len(seconds), place), s=7, color=INK, alpha=0.5, linewidths=0, zorder=3)
    panel.set_yticks(range(len(ranked)), ranked)
    panel.invert_yaxis()
    panel.tick_params(axis="y", length=0)
    panel.set_xlim(left=0)
    panel.set_xlabel("seconds (bar: median, dots: trials)")
    return figure
