"""How all figures look: sizes, fonts, colours, and labels that stand beside what they name.

Figures are one column of a paper wide (3.4 inches), which is also what a phone shows without zooming; those that need it are
two columns wide. The colours begin with the blue and the vermillion of Okabe & Ito; the others were chosen so that all stay
apart with any kind of colour blindness and can be read as text.
"""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLUMN_INCHES = 3.4
PAGE_INCHES = 7.0
DOTS_PER_INCH = 200
NOTE_CHARACTERS_PER_INCH = 19
NOTE_LINE_INCHES = 0.115

PAPER = "#fefefe"
INK = "#1b1f24"
MUTED = "#5f6b76"
GRID = "#dde2e7"
BLUE, VERMILLION, GREEN, PURPLE, BROWN, SKY = "#0072b2", "#d55e00", "#00563c", "#8e2f7c", "#624a08", "#4ba3dc"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, BROWN, SKY)
SEQUENTIAL = "cividis"

LEARNER, EXPERT, JOINT, FINAL = BLUE, BROWN, PURPLE, VERMILLION
"""The same thing has the same colour in every figure."""

DARK = {
    PAPER: "#14181d",
    INK: "#e8ebee",
    MUTED: "#a3adb8",
    GRID: "#3a424b",
    BLUE: "#58b4ee",
    VERMILLION: "#ff8c4d",
    GREEN: "#8cf8b1",
    PURPLE: "#dc3fab",
    BROWN: "#a67c10",
    SKY: "#cfe8f7",
}
"""What takes a colour's place on a dark page."""

RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "errorbar.capsize": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "clray",
    "figure.constrained_layout.h_pad": 0.04,
    "figure.constrained_layout.w_pad": 0.04,
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Figures made and saved inside look like clray's, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)  # type: ignore[arg-type]
        yield


def panels(height: float, rows: int = 1, columns: int = 1, width: float = COLUMN_INCHES, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns).

    Args:
        height: inches.
        options: for ``Figure.subplots``.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def note(figure: Figure, text: str) -> None:
    """A line or more below everything, for figures that stand alone; the figure grows by as much."""
    lines = textwrap.wrap(text, int(figure.get_figwidth() * NOTE_CHARACTERS_PER_INCH * _narrowness(text)))
    figure.set_figheight(figure.get_figheight() + 0.04 + NOTE_LINE_INCHES * len(lines))
    room = figure.get_supxlabel()
    if room:  # the one place below the panels that constrained layout keeps free
        figure.supxlabel(room + "\n" + "\n".join(lines), fontsize=7)
        return
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color=MUTED)


def _narrowness(text: str) -> float:
    """How many more of a text's characters fit a line than of common ones; capitals are wider."""
    return len(text) / (len(text) + 0.35 * sum(character.isupper() or character in "_mwMW@%" for character in text))


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file: ``png``, ``svg`` or ``pdf``. SVG keeps text as text and has no background.

    The canvases are called without ``savefig``, which would draw everything twice over.
    """
    buffer = io.BytesIO()
    engine = figure.get_layout_engine()
    with styled():
        if isinstance(engine, ConstrainedLayoutEngine):
            engine.execute(figure)
            figure.set_layout_engine("none")  # laid out once, however many files are made of it
        figure.set_facecolor("none" if kind == "svg" else "white")
        figure.set_dpi(DOTS_PER_INCH)
        if kind == "png":
            FigureCanvasAgg(figure).print_png(buffer)
        elif kind == "svg":
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
        else:
            FigureCanvasPdf(figure).print_pdf(buffer, metadata={"CreationDate": None})
    return buffer.getvalue()


def mean_and_spread(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over an axis, NaN left out; the error is 0 for a single value."""
    values = np.asarray(values, np.float64)
    n = (~np.isnan(values)).sum(axis=axis)
    total = np.nansum(values, axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, total / np.maximum(n, 1), np.nan)
        squares = np.nansum((values - np.expand_dims(mean, axis)) ** 2, axis=axis)
        error = np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1) / np.maximum(n, 1)), 0.0)
    return mean, error


def band(axes: Axes, x: np.ndarray, mean: np.ndarray, error: np.ndarray, color: str, **line: Any) -> None:
    """A line with its standard error as a band."""
    axes.plot(x, mean, color=color, solid_capstyle="round", **line)
    if np.nanmax(error, initial=0.0) > 0:
        axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], x: float = 1.02, gap: float = 0.085) -> None:
    """Names lines at their right ends; labels that would overlap move apart.

    Args:
        labels: (y in data units, text, colour); a label without a finite y is left out.
        x: in axes units.
        gap: least distance between labels, in axes units.
    """
    shown = [label for label in labels if np.isfinite(label[0])]
    low, high = axes.get_ylim()
    scale = axes.transData + axes.transAxes.inverted()
    places = [float(np.clip(scale.transform((0.0, y))[1], 0.0, 1.0)) if low != high else 0.5 for y, _, _ in shown]
    for place, (_, text, color) in zip(spread(places, gap), shown, strict=True):
        axes.text(x, place, text, transform=axes.transAxes, color=color, va="center", ha="left", fontsize=7)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places in [0, 1] moved as little as possible so that neighbours are ``gap`` apart, or as far as there is room.

    Least squares under the order: pooling of neighbours (isotonic regression) after the gaps are taken out.
    """
    gap = min(gap, 1.0 / max(len(places) - 1, 1))
    order = np.argsort(places, kind="stable")
    blocks: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, size = places[index] - gap * rank, 1
        while blocks and blocks[-1][0] > mean:
            before, n = blocks.pop()
            mean, size = (before * n + mean * size) / (n + size), n + size
        blocks.append((mean, size))
    pooled = [mean for mean, size in blocks for _ in range(size)]
    moved = [0.0] * len(places)
    for rank, index in enumerate(order):
        moved[index] = float(np.clip(pooled[rank], 0.0, 1.0 - gap * (len(places) - 1)) + gap * rank)
    return moved


def key_line(figure: Figure, entries: Sequence[tuple[str, str, str]]) -> None:
    """Names the colours in one line above the panels, without a box.

    Args:
        entries: (mark, text, colour); the mark is a character that looks like the line or point.
    """
    handles = [matplotlib.lines.Line2D([], [], color=color, linestyle=_line(mark), marker=_marker(mark)) for mark, _, color in entries]
    legend = figure.legend(
        handles,
        [text for _, text, _ in entries],
        loc="outside upper left",
        ncols=len(entries),
        frameon=False,
        fontsize=7,
        handlelength=1.6,
        columnspacing=1.2,
        handletextpad=0.5,
        borderpad=0.0,
        labelcolor="linecolor",
    )
    legend.set_in_layout(True)


def _line(mark: str) -> Any:
    return mark if mark in ("-", "--", ":", "-.") else "none"


def _marker(mark: str) -> str:
    return "" if mark in ("-", "--", ":", "-.") else mark


def sequence_colors(n: int) -> list[str]:
    """One colour for each of n things in an order: those of ``SERIES`` for few, else along a scale."""
    if n <= len(SERIES):
        return list(SERIES[:n])
    scale = matplotlib.colormaps["viridis"](np.linspace(0.12, 0.88, n))
    return [matplotlib.colors.to_hex(color) for color in scale]


def whole_ticks(axes: Axes, axis: str, values: Sequence[int], most: int = 12) -> None:
    """Ticks at whole numbers, thinned where there are many."""
    step = max(1, -(-len(values) // most))
    ticks = list(values)[::step]
    (axes.set_xticks if axis == "x" else axes.set_yticks)(ticks)
