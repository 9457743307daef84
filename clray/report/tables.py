"""Tables of metrics by setting, for the terminal and for papers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import pandas as pd

from clray.errors import UserError, did_you_mean
from clray.report.figures.sweep import compare_table, ordered_values
from clray.report.labels import metric, short_names, show_mean, show_value
from clray.report.sweep_files import SweepFiles, settings_of

FORMATS = ("text", "markdown", "latex", "csv")


def with_settings(sweep: SweepFiles, keys: Sequence[str]) -> tuple[SweepFiles, list[str]]:
    """The sweep with a column for each key, and the keys in full.

    Args:
        keys: dotted keys of the experiment, or the end of one that was varied (``learning_rate``).

    Raises:
        UserError: no trial has such a key, or several keys end like that.
    """
    full = []
    for key in keys:
        varied = [name for name in sweep.varied if name == key or name.endswith(f".{key}")]
        if len(varied) > 1 and key not in varied:
            raise UserError(f"{key!r} is the end of several keys; give one of: {', '.join(varied)}")
        name = key if key in varied or not varied else varied[0]
        if f"param.{name}" not in sweep.trials.columns:
            sweep = dataclasses.replace(sweep, trials=sweep.trials.assign(**{f"param.{name}": settings_of(sweep, name)}))
        full.append(name)
    return sweep, full


def metrics_table(sweep: SweepFiles, keys: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """A row a combination of settings, sorted by them: the keys, ``trials``, and mean and standard error of each metric.

    Raises:
        UserError: no trial is done yet.
    """
    if not len(sweep.finished):
        raise UserError(f"{sweep.storage.display}: no trial is done yet; see clray status")
    frame = compare_table(sweep, keys, names)
    for key in reversed(keys):
        order = {value: place for place, value in enumerate(ordered_values(frame[key]))}
        frame = frame.sort_values(key, key=lambda column, order=order: column.map(order), kind="stable")
    return frame.reset_index(drop=True)


def render(frame: pd.DataFrame, keys: Sequence[str], names: Sequence[str], form: str) -> str:
    """The table as text; the best value of each metric is bold in Markdown and LaTeX.

    Args:
        form: text, markdown, latex or csv.

    Raises:
        UserError: another form.
    """
    if form not in FORMATS:
        raise UserError(f"no table format {form!r}; {did_you_mean(form, FORMATS)}")
    if form == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    heads = [*short_names(list(keys)), "trials", *(metric(name).title for name in names)]
    rows = [[*(show_value(row[key]) for key in keys), str(int(row["trials"]))] for row in frame.to_dict("records")]
    for name in names:
        best = _best(frame, name)
        for index, row in enumerate(frame.to_dict("records")):
            rows[index].append(_emphasised(show_mean(row[f"{name}_mean"], row[f"{name}_sem"]), index == best, form))
    n_text = len(keys)
    if form == "markdown":
        rule = ["---"] * n_text + ["---:"] * (len(heads) - n_text)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in [_escaped(heads, "|"), rule, *(_escaped(row, "|") for row in rows)])
    return _latex(heads, rows, n_text) if form == "latex" else _text(heads, rows, n_text)


def _best(frame: pd.DataFrame, name: str) -> int | None:
    means = frame[f"{name}_mean"]
    if len(frame) < 2 or not metric(name).better or not means.notna().any():
        return None
    return int(means.argmax() if metric(name).better == "high" else means.argmin())


def _emphasised(shown: str, is_best: bool, form: str) -> str:
    if form == "markdown":
        return f"**{shown}**" if is_best and shown else shown
    if form == "latex" and shown:
        number = shown.replace("±", r"\pm")
        return rf"$\mathbf{{{number}}}$" if is_best else f"${number}$"
    return shown


def _escaped(cells: Sequence[str], character: str) -> list[str]:
    return [cell.replace(character, f"\\{character}") for cell in cells]


def _latex(heads: Sequence[str], rows: Sequence[Sequence[str]], n_text: int) -> str:
    lines = [r"% needs \usepackage{booktabs}; mean and standard error over repeats"]
    lines += [rf"\begin{{tabular}}{{{'l' * n_text}{'r' * (len(heads) - n_text)}}}", r"\toprule"]
    lines += [" & ".join(map(latex_text, heads)) + r" \\", r"\midrule"]
    for row in rows:
        lines.append(" & ".join([*map(latex_text, row[:n_text]), *row[n_text:]]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def latex_text(plain: str) -> str:
    """Text with the characters that mean something to LaTeX escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda match: special.get(match[0], f"\\{match[0]}"), plain)


def _text(heads: Sequence[str], rows: Sequence[Sequence[str]], n_text: int) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    lines = []
    for cells in [heads, *rows]:
        padded = [cell.ljust(w) if i < n_text else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
